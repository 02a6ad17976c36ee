"""Who may visit, in SQL."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Row

from tunnelmux.config import hash_token
from tunnelmux.config.access import AccessRule
from tunnelmux.errors import NoSuchRecord, RegistryRefused
from tunnelmux.registry import names
from tunnelmux.registry.ids import Page, new_id
from tunnelmux.registry.sql import paging, schema
from tunnelmux.registry.sql.devices import find_device
from tunnelmux.registry.sql.transaction import Repository, Transaction, reads, writes
from tunnelmux.registry.visitors import (
    DeviceRule,
    GrantState,
    RuleChange,
    ServiceLink,
    ServiceLinks,
    SigningKey,
    VisitorRules,
    Visitors,
)

__all__ = ["SqlServiceLinks", "SqlVisitorRules", "SqlVisitors", "read_rule", "rules_of"]

_R = schema.access_rules
_L = schema.service_links
_K = schema.signing_keys
_B = schema.browser_sessions
_D = schema.devices
_M = schema.memberships
_O = schema.used_once
_T = schema.tenants
_U = schema.users

_MOST_RULES = 64
# Rules of one device: as many as a proxy knows services of it.

_KEY_LIFETIME = timedelta(days=1)

_LONGEST_LINK = 31 * 86_400.0


class SqlVisitorRules(Repository, VisitorRules):
    """See `VisitorRules`."""

    @reads
    def of(self, tx: Transaction, device_id: str) -> list[DeviceRule]:
        find_device(tx, device_id)
        return _rules(tx, device_id)

    @writes
    def set(self, tx: Transaction, device_id: str, service: str, rule: AccessRule) -> RuleChange:
        find_device(tx, device_id)
        before = {one.service: one.rule for one in _rules(tx, device_id)}
        if service not in before and len(before) >= _MOST_RULES:
            raise RegistryRefused(
                f"a device has at most {_MOST_RULES} rules: remove one",
                code="too_many",
            )
        values = {"rule": _as_json(rule), "changed": tx.now, "changed_by": tx.actor.user_id}
        mine = [_R.c.device_id == device_id, _R.c.service == service]
        if not tx.update(_R, *mine, **values):
            tx.insert(_R, device_id=device_id, service=service, **values)
        was = {"service": service, "rule": _as_json(before[service])} if service in before else None
        after = {"service": service, "rule": values["rule"]}
        tx.record("access.set", "device", device_id, before=was, after=after)
        number = tx.announce("device", device_id)
        return RuleChange(rules=_rules(tx, device_id), change=number)

    @writes
    def remove(self, tx: Transaction, device_id: str, service: str) -> RuleChange:
        find_device(tx, device_id)
        before = {one.service: one.rule for one in _rules(tx, device_id)}
        number = tx.last_change()
        if service in before:
            tx.delete(_R, _R.c.device_id == device_id, _R.c.service == service)
            was = {"service": service, "rule": _as_json(before[service])}
            tx.record("access.remove", "device", device_id, before=was)
            number = tx.announce("device", device_id)
        return RuleChange(rules=_rules(tx, device_id), change=number)


class SqlServiceLinks(Repository, ServiceLinks):
    """See `ServiceLinks`."""

    @writes
    def add(
        self,
        tx: Transaction,
        device_id: str,
        service: str,
        *,
        lifetime: float,
        once: bool,
        note: str = "",
    ) -> ServiceLink:
        find_device(tx, device_id)
        if not 0 < lifetime <= _LONGEST_LINK:
            raise RegistryRefused(
                "a link is valid for 31 days at most", code="invalid", field="lifetime"
            )
        living = tx.execute(
            tx.select(_L, sa.func.count()).where(
                _L.c.device_id == device_id, _L.c.revoked.is_(None), _L.c.ends > tx.now
            )
        ).scalar_one()
        if living >= tx.limits.links_per_device:
            raise RegistryRefused(
                f"this device has {living} valid links already: revoke some",
                code="too_many",
            )
        link_id = new_id()
        values: dict[str, Any] = {
            "service": service,
            "note": names.check_text("note", note, 255),
            "once": once,
            "ends": tx.now + timedelta(seconds=lifetime),
        }
        tx.insert(
            _L,
            id=link_id,
            device_id=device_id,
            created=tx.now,
            created_by=tx.actor.user_id,
            **values,
        )
        tx.record("link.add", "link", link_id, after={"device": device_id, **values})
        return _find_link(tx, device_id, link_id)

    @reads
    def page(
        self, tx: Transaction, device_id: str, *, limit: int = 50, after: str | None = None
    ) -> Page[ServiceLink]:
        device = find_device(tx, device_id)
        query = tx.select(_L).where(_L.c.device_id == device_id)
        return paging.descending(
            tx, query, _L.c.id, lambda row: _link(row, device.label), limit=limit, after=after
        )

    @writes
    def revoke(self, tx: Transaction, device_id: str, link_id: str) -> tuple[ServiceLink, int]:
        link = _find_link(tx, device_id, link_id)
        number = tx.last_change()
        if link.revoked is None:
            tx.update(_L, _L.c.id == link_id, revoked=tx.now)
            tx.record("link.revoke", "link", link_id, before={"device": device_id})
            number = tx.announce("link", link_id)
        return _find_link(tx, device_id, link_id), number


class SqlVisitors(Repository, Visitors):
    """See `Visitors`."""

    async def look_up(
        self, grants: Sequence[tuple[str, str]], *, used: Sequence[tuple[str, str]] = ()
    ) -> list[GrantState]:
        if used:
            await self._touch([grant_id for kind, grant_id in used if kind == "session"])
        return await self._look_up(list(grants))

    @reads
    def _look_up(self, tx: Transaction, grants: list[tuple[str, str]]) -> list[GrantState]:
        found = _sessions(tx, [grant_id for kind, grant_id in grants if kind == "session"])
        found |= _links(tx, [grant_id for kind, grant_id in grants if kind == "link"])
        return [
            found.get((kind, grant_id))
            or GrantState(
                kind="link" if kind == "link" else "session", id=grant_id, is_living=False
            )
            for kind, grant_id in grants
        ]

    @writes
    def _touch(self, tx: Transaction, session_ids: list[str]) -> None:
        rows = tx.execute(
            sa.select(_B.c.id, _B.c.idle).where(_B.c.id.in_(session_ids), _B.c.idle_ends > tx.now)
        ).all()
        for row in rows:
            tx.execute(
                _B.update()
                .where(_B.c.id == row.id)
                .values(last_seen=tx.now, idle_ends=tx.now + timedelta(seconds=row.idle))
            )

    @writes
    def use_ticket(self, tx: Transaction, ticket_id: str, until: float) -> bool:
        # Each call also deletes expired ones: the table holds the tickets used recently.
        tx.execute(_O.delete().where(_O.c.until <= tx.now))
        key = hash_token(f"ticket {ticket_id}")
        return tx.insert_new(_O, key=key, until=datetime.fromtimestamp(until, UTC))

    @writes
    def use_link(self, tx: Transaction, link_id: str, label: str, service: str) -> bool:
        again = sa.or_(_L.c.once.is_(sa.false()), _L.c.uses == 0)
        device = sa.select(_D.c.id).where(_D.c.label == label, _D.c.enabled.is_(sa.true()))
        counted = tx.execute(
            _L.update()
            .where(
                _L.c.id == link_id,
                _L.c.service == service,
                _L.c.device_id.in_(device),
                _L.c.revoked.is_(None),
                _L.c.ends > tx.now,
                again,
            )
            .values(uses=_L.c.uses + 1, last_used=tx.now)
        ).rowcount
        return counted == 1

    @writes
    def publish_key(
        self,
        tx: Transaction,
        key_id: str,
        public: bytes,
        *,
        maker: Literal["proxy", "api"],
        url: str = "",
    ) -> None:
        row = tx.execute(sa.select(_K).where(_K.c.id == key_id)).first()
        values = {"url": url, "ends": tx.now + _KEY_LIFETIME}
        if row is None:
            tx.execute(_K.delete().where(_K.c.ends <= tx.now))
            tx.execute(
                _K.insert().values(id=key_id, maker=maker, public=public, created=tx.now, **values)
            )
            tx.announce("key", key_id)
        else:
            tx.execute(_K.update().where(_K.c.id == key_id).values(**values))
            if row.url != url:
                tx.announce("key", key_id)

    @writes
    def withdraw_keys(
        self, tx: Transaction, maker: Literal["proxy", "api"], but: Sequence[str]
    ) -> None:
        old = sa.and_(_K.c.maker == maker, _K.c.id.not_in(list(but)))
        if tx.execute(_K.delete().where(old)).rowcount:
            tx.announce("key", maker)

    @reads
    def keys(self, tx: Transaction) -> list[SigningKey]:
        rows = tx.execute(sa.select(_K).where(_K.c.ends > tx.now).order_by(_K.c.created, _K.c.id))
        return [
            SigningKey(id=row.id, maker=row.maker, public=row.public, url=row.url) for row in rows
        ]


def rules_of(tx: Transaction, device_ids: Iterable[str]) -> dict[str, dict[str, AccessRule]]:
    """The rules of these devices, of any tenant, by device and service."""
    found: dict[str, dict[str, AccessRule]] = defaultdict(dict)
    query = sa.select(_R.c.device_id, _R.c.service, _R.c.rule)
    for row in tx.execute(query.where(_R.c.device_id.in_(list(device_ids)))):
        found[row.device_id][row.service] = read_rule(row.rule)
    return found


def read_rule(content: object) -> AccessRule:
    """Read a stored rule. One that cannot be read, for example of a newer version, refuses all."""
    try:
        return msgspec.convert(content, AccessRule)
    except msgspec.ValidationError:
        return AccessRule()


def _as_json(rule: AccessRule) -> Any:
    kept = msgspec.to_builtins(rule)
    default = msgspec.to_builtins(AccessRule())
    return {key: value for key, value in kept.items() if value != default[key]}


def _rules(tx: Transaction, device_id: str) -> list[DeviceRule]:
    rows = tx.execute(tx.select(_R).where(_R.c.device_id == device_id).order_by(_R.c.service))
    return [
        DeviceRule(
            device_id=row.device_id,
            service=row.service,
            rule=read_rule(row.rule),
            changed=row.changed,
            changed_by=row.changed_by,
        )
        for row in rows
    ]


def _find_link(tx: Transaction, device_id: str, link_id: str) -> ServiceLink:
    device = find_device(tx, device_id)
    row = tx.one(_L, link_id, "link")
    if row.device_id != device_id:
        raise NoSuchRecord("link", link_id)
    return _link(row, device.label)


def _link(row: Row[Any], label: str) -> ServiceLink:
    return ServiceLink(
        id=row.id,
        device_id=row.device_id,
        label=label,
        service=row.service,
        note=row.note,
        once=row.once,
        uses=row.uses,
        last_used=row.last_used,
        created=row.created,
        created_by=row.created_by,
        ends=row.ends,
        revoked=row.revoked,
    )


def _sessions(tx: Transaction, ids: list[str]) -> dict[tuple[str, str], GrantState]:
    if not ids:
        return {}
    rows = tx.execute(
        sa.select(
            _B.c.id, _B.c.idle_ends, _B.c.ends, _U.c.id.label("user_id"), _U.c.name, _U.c.email
        )
        .join(_U, _U.c.id == _B.c.user_id)
        .where(
            _B.c.id.in_(ids),
            _B.c.idle_ends > tx.now,
            _B.c.ends > tx.now,
            _U.c.enabled.is_(sa.true()),
        )
    ).all()
    roles: dict[str, dict[str, str]] = defaultdict(dict)
    query = sa.select(_M.c.user_id, _M.c.role, _T.c.name).join(_T, _T.c.id == _M.c.tenant_id)
    users = {row.user_id for row in rows}
    for row in tx.execute(query.where(_M.c.user_id.in_(users), _T.c.enabled.is_(sa.true()))):
        roles[row.user_id][row.name] = row.role
    return {
        ("session", row.id): GrantState(
            kind="session",
            id=row.id,
            is_living=True,
            ends=min(row.idle_ends, row.ends).timestamp(),
            user_id=row.user_id,
            name=row.name,
            email=row.email,
            roles=roles[row.user_id],
        )
        for row in rows
    }


def _links(tx: Transaction, ids: list[str]) -> dict[tuple[str, str], GrantState]:
    if not ids:
        return {}
    rows = tx.execute(
        sa.select(_L.c.id, _L.c.ends).where(
            _L.c.id.in_(ids), _L.c.revoked.is_(None), _L.c.ends > tx.now
        )
    )
    return {
        ("link", row.id): GrantState(
            kind="link",
            id=row.id,
            is_living=True,
            ends=row.ends.timestamp(),
            name=f"link:{row.id}",
        )
        for row in rows
    }
