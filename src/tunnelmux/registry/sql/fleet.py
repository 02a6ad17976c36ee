"""The part of the registry for proxies, in SQL."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from tunnelmux.config import Secret
from tunnelmux.registry.changes import Effect
from tunnelmux.registry.fleet import (
    FleetDevice,
    Proxy,
    SessionBegan,
    SessionEnded,
    Sighting,
)
from tunnelmux.registry.sql import schema
from tunnelmux.registry.sql.changes import PROXY_SILENCE, is_living
from tunnelmux.registry.sql.devices import add_credential, end_credentials
from tunnelmux.registry.sql.fleet_leases import SqlFleetLeases
from tunnelmux.registry.sql.secrets import digest_of
from tunnelmux.registry.sql.transaction import Transaction, reads, writes
from tunnelmux.registry.sql.visitors import rules_of

__all__ = ["SqlFleet"]

_D = schema.devices
_T = schema.tenants
_C = schema.credentials
_S = schema.device_states
_H = schema.device_sessions
_P = schema.proxies
_E = schema.change_effects

_MOST_NEW = 3
# New credentials of one device that it has not used yet.

_KEPT_SESSIONS = 200
# Sessions in a device's history; a device that connects every second must not fill the disk.


class SqlFleet(SqlFleetLeases):
    """See `Fleet`."""

    @reads
    def devices(self, tx: Transaction, *, after: str = "", limit: int = 1000) -> list[FleetDevice]:
        query = _fleet().where(_D.c.id > after).order_by(_D.c.id).limit(limit)
        return _with_digests(tx, tx.execute(query).all())

    @reads
    def devices_with_ids(self, tx: Transaction, device_ids: list[str]) -> list[FleetDevice]:
        return _with_digests(tx, tx.execute(_fleet().where(_D.c.id.in_(device_ids))).all())

    @reads
    def devices_of_tenant(self, tx: Transaction, tenant_id: str) -> list[FleetDevice]:
        return _with_digests(tx, tx.execute(_fleet().where(_D.c.tenant_id == tenant_id)).all())

    @reads
    def identify(self, tx: Transaction, digest: str) -> FleetDevice | None:
        living = sa.and_(_C.c.digest == digest, _C.c.state.in_(("active", "new")))
        rows = tx.execute(_fleet().join(_C, _C.c.device_id == _D.c.id).where(living)).all()
        found = _with_digests(tx, rows)
        return found[0] if found else None

    @writes
    def report(
        self,
        tx: Transaction,
        proxy_id: str,
        *,
        began: list[SessionBegan],
        ended: list[SessionEnded],
        seen: list[Sighting],
    ) -> None:
        events: list[SessionBegan | SessionEnded | Sighting] = [*began, *ended, *seen]
        tenants = self._tenants_of(tx, {event.device_id for event in events})
        for start in began:
            if start.device_id in tenants:
                self._note_start(tx, tenants[start.device_id], proxy_id, start)
        self._note_sightings(tx, [sight for sight in seen if sight.device_id in tenants])
        for end in ended:
            if end.device_id in tenants:
                self._note_end(tx, end)

    def _tenants_of(self, tx: Transaction, device_ids: Iterable[str]) -> dict[str, str]:
        """The tenants of those of these devices that exist; they are locked until the end."""
        rows = tx.execute(
            sa.select(_D.c.id, _D.c.tenant_id)
            .where(_D.c.id.in_(sorted(device_ids)))
            .with_for_update(read=True, key_share=True)
        )
        return {row.id: row.tenant_id for row in rows}

    def _note_start(
        self, tx: Transaction, tenant_id: str, proxy_id: str, start: SessionBegan
    ) -> None:
        told = {"address": start.address, "agent_version": start.agent_version}
        rival = {"rival": start.rival, "rival_seen": start.at} if start.rival else {}
        tx.execute(
            _H.insert().values(
                id=start.session_id,
                tenant_id=tenant_id,
                device_id=start.device_id,
                proxy_id=proxy_id,
                started=start.at,
                **told,
            )
        )
        tx.execute(
            _S.update()
            .where(_S.c.device_id == start.device_id)
            .values(
                online=True,
                proxy_id=proxy_id,
                session_id=start.session_id,
                since=start.at,
                last_seen=start.at,
                reason="",
                **told,
                **rival,
            )
        )
        mine = sa.and_(_H.c.tenant_id == tenant_id, _H.c.device_id == start.device_id)
        oldest_kept = (
            sa.select(_H.c.id)
            .where(mine)
            .order_by(_H.c.id.desc())
            .offset(_KEPT_SESSIONS - 1)
            .limit(1)
            .scalar_subquery()
        )
        tx.execute(_H.delete().where(mine, _H.c.id < oldest_kept))

    def _note_sightings(self, tx: Transaction, seen: list[Sighting]) -> None:
        if not seen:
            return
        mine = _S.c.device_id == sa.bindparam("b_device")
        times = [{"b_device": sight.device_id, "b_at": sight.at} for sight in seen]
        tx.execute(_S.update().where(mine).values(last_seen=sa.bindparam("b_at")), times)
        offers = [
            {"b_device": sight.device_id, "b_services": list(sight.services)}
            for sight in seen
            if sight.services is not None
        ]
        if offers:
            tx.execute(_S.update().where(mine).values(services=sa.bindparam("b_services")), offers)

    def _note_end(self, tx: Transaction, end: SessionEnded) -> None:
        tx.execute(
            _H.update()
            .where(_H.c.id == end.session_id)
            .values(
                ended=end.at,
                reason=end.reason,
                bytes_to_device=end.bytes_to_device,
                bytes_from_device=end.bytes_from_device,
            )
        )
        # Only if it is the current session: a late end must not hide the one that replaced it.
        current = _S.c.device_id == end.device_id, _S.c.session_id == end.session_id
        values = {"online": False, "since": end.at, "last_seen": end.at, "reason": end.reason}
        tx.execute(_S.update().where(*current).values(self._session_beside(tx, end) or values))

    @staticmethod
    def _session_beside(tx: Transaction, end: SessionEnded) -> dict[str, Any] | None:
        """The state by another session of the device, with another node of its cluster."""
        row = tx.execute(
            sa.select(_H)
            .join(_P, _P.c.id == _H.c.proxy_id)
            .where(
                _H.c.device_id == end.device_id,
                _H.c.ended.is_(None),
                _P.c.working.is_(sa.true()),
                _P.c.beat > tx.now - PROXY_SILENCE,
            )
            .order_by(_H.c.id.desc())
            .limit(1)
        ).first()
        if row is None:
            return None
        return {
            "online": True,
            "proxy_id": row.proxy_id,
            "session_id": row.id,
            "since": row.started,
            "last_seen": end.at,
            "address": row.address,
            "agent_version": row.agent_version,
            "reason": "",
        }

    @writes
    def hello(
        self, tx: Transaction, proxy_id: str, *, name: str, internal_url: str, version: str
    ) -> None:
        self._forget_sessions(tx, proxy_id, "the proxy was restarted")
        values: dict[str, Any] = {
            "name": name,
            "internal_url": internal_url,
            "version": version,
            "started": tx.now,
            "beat": tx.now,
            "working": True,
            # It reads everything after this, so it has all changes up to now.
            "applied": tx.last_change(),
        }
        if not tx.execute(_P.update().where(_P.c.id == proxy_id).values(**values)).rowcount:
            tx.execute(_P.insert().values(id=proxy_id, **values))

    @writes
    def move(self, tx: Transaction, proxy_id: str, *, internal_url: str) -> None:
        tx.execute(_P.update().where(_P.c.id == proxy_id).values(internal_url=internal_url))

    @writes
    def beat(
        self, tx: Transaction, proxy_id: str, *, applied: int, effects: dict[int, Effect]
    ) -> None:
        for number, effect in sorted(effects.items()):
            tx.execute(_E.delete().where(_E.c.number == number, _E.c.proxy_id == proxy_id))
            tx.execute(
                _E.insert().values(
                    number=number,
                    proxy_id=proxy_id,
                    sessions=effect.sessions,
                    visits=effect.visits,
                    at=tx.now,
                )
            )
        tx.execute(
            _P.update()
            .where(_P.c.id == proxy_id)
            .values(beat=tx.now, applied=applied, working=True)
        )

    @writes
    def goodbye(self, tx: Transaction, proxy_id: str) -> None:
        self._forget_sessions(tx, proxy_id, "the proxy was stopped")
        tx.execute(_P.update().where(_P.c.id == proxy_id).values(working=False, beat=tx.now))

    def _forget_sessions(self, tx: Transaction, proxy_id: str, reason: str) -> None:
        tx.execute(
            _H.update()
            .where(_H.c.proxy_id == proxy_id, _H.c.ended.is_(None))
            .values(ended=tx.now, reason=reason)
        )
        tx.execute(
            _S.update()
            .where(_S.c.proxy_id == proxy_id, _S.c.online.is_(sa.true()))
            .values(online=False, since=tx.now, reason=reason)
        )

    @reads
    def proxies(self, tx: Transaction) -> list[Proxy]:
        rows = tx.execute(sa.select(_P).order_by(_P.c.name, _P.c.id)).all()
        found = [
            Proxy(
                id=row.id,
                name=row.name,
                internal_url=row.internal_url,
                version=row.version,
                started=row.started,
                beat=row.beat,
                living=is_living(row, tx),
            )
            for row in rows
        ]
        return sorted(found, key=lambda proxy: not proxy.living)

    @writes
    def begin_credential(self, tx: Transaction, device_id: str) -> tuple[str, Secret] | None:
        row = tx.execute(sa.select(_D.c.tenant_id).where(_D.c.id == device_id)).first()
        if row is None:
            return None
        inner = tx.within(row.tenant_id)
        wanted = inner.execute(
            inner.select(_D, _D.c.rotation_wanted).where(_D.c.id == device_id)
        ).scalar()
        if not wanted:
            return None
        waiting = inner.execute(
            inner.select(_C, _C.c.id)
            .where(_C.c.device_id == device_id, _C.c.state == "new")
            .order_by(_C.c.id.desc())
        ).scalars()
        for oldest in list(waiting)[_MOST_NEW - 1 :]:
            _end_new(inner, oldest, "too many were begun")
        secret = add_credential(inner, device_id, state="new")
        credential_id: str = inner.execute(
            inner.select(_C, _C.c.id).where(_C.c.digest == digest_of(secret))
        ).scalar_one()
        inner.announce("device", device_id)
        return credential_id, secret

    @writes
    def drop_credential(self, tx: Transaction, credential_id: str, reason: str) -> None:
        row = tx.execute(sa.select(_C.c.tenant_id).where(_C.c.id == credential_id)).first()
        if row is None:
            return
        inner = tx.within(row.tenant_id)
        device_id = _end_new(inner, credential_id, reason)
        if device_id is not None:
            inner.announce("device", device_id)

    @writes
    def prove_credential(self, tx: Transaction, credential_id: str) -> bool:
        row = tx.execute(sa.select(_C.c.tenant_id).where(_C.c.id == credential_id)).first()
        if row is None:
            return False
        inner = tx.within(row.tenant_id)
        mine = inner.one(_C, credential_id, "credential")
        if mine.state != "new":
            return False
        inner.update(_C, _C.c.id == credential_id, state="active", proved=tx.now)
        inner.record(
            "credential.prove",
            "credential",
            credential_id,
            before={"state": "new"},
            after={"state": "active", "device": mine.device_id},
        )
        end_credentials(inner, mine.device_id, "rotated", but=credential_id)
        inner.update(_D, _D.c.id == mine.device_id, rotation_wanted=False)
        inner.announce("device", mine.device_id)
        return True


def _end_new(tx: Transaction, credential_id: str, reason: str) -> str | None:
    """End this credential if it is a new one; returns the id of its device, if it was."""
    row = tx.one(_C, credential_id, "credential")
    if row.state != "new":
        return None
    tx.update(_C, _C.c.id == credential_id, state="ended", ended=tx.now, end_reason=reason)
    tx.record(
        "credential.end",
        "credential",
        credential_id,
        before={"device": row.device_id, "state": "new"},
        after={"reason": reason},
    )
    device_id: str = row.device_id
    return device_id


def _fleet() -> sa.Select[Any]:
    return sa.select(
        _D.c.id,
        _D.c.tenant_id,
        _D.c.label,
        _D.c.serial,
        _D.c.labels,
        _D.c.enabled,
        _D.c.quarantine,
        _D.c.paired_by,
        _D.c.rotation_wanted,
        _T.c.enabled.label("tenant_enabled"),
    ).join(_T, _T.c.id == _D.c.tenant_id)


def _with_digests(tx: Transaction, rows: Iterable[Row[Any]]) -> list[FleetDevice]:
    rows = list(rows)
    digests: dict[str, dict[str, str]] = defaultdict(dict)
    living = tx.execute(
        sa.select(_C.c.device_id, _C.c.digest, _C.c.id).where(
            _C.c.device_id.in_([row.id for row in rows]), _C.c.state.in_(("active", "new"))
        )
    )
    for credential in living:
        digests[credential.device_id][credential.digest] = credential.id
    rules = rules_of(tx, [row.id for row in rows])
    return [
        FleetDevice(
            device_id=row.id,
            tenant_id=row.tenant_id,
            label=row.label,
            serial=row.serial,
            labels=row.labels,
            digests=digests[row.id],
            refused=_refused(row),
            paired_by=row.paired_by,
            rotation_wanted=row.rotation_wanted,
            rules=rules.get(row.id, {}),
        )
        for row in rows
    ]


def _refused(row: Row[Any]) -> str:
    if not row.tenant_enabled:
        return "its tenant is disabled"
    if not row.enabled:
        return "it is disabled"
    if row.quarantine:
        return f"it is in quarantine: {row.quarantine}"
    return ""
