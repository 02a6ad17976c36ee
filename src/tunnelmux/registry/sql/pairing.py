"""Pairings and install keys in SQL, for a tenant's operators."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Row

from tunnelmux.config import Secret, hash_token
from tunnelmux.errors import NoSuchRecord, RegistryRefused
from tunnelmux.registry import names
from tunnelmux.registry.audit_details import count_of
from tunnelmux.registry.devices import Device
from tunnelmux.registry.ids import Page, new_id
from tunnelmux.registry.pairing import (
    InstallKey,
    InstallKeys,
    Pairing,
    PairingRules,
    Pairings,
    PairingState,
)
from tunnelmux.registry.sql import paging, schema
from tunnelmux.registry.sql.devices import (
    add_device,
    check_name_free,
    check_serial_free,
    end_credentials,
    find_device,
    remove_device,
    serial_key,
    set_enabled,
)
from tunnelmux.registry.sql.guessing import Guesser, find_code, look_up
from tunnelmux.registry.sql.room import need_room
from tunnelmux.registry.sql.secrets import half_of, new_code, new_secret
from tunnelmux.registry.sql.transaction import (
    Repository,
    RuledRepository,
    Transaction,
    reads,
    writes,
)

__all__ = ["SqlInstallKeys", "SqlPairings", "as_pairing", "insert_pairing", "take_place"]

_P = schema.pairings
_K = schema.install_keys
_D = schema.devices

_MAX_USES = 1_000_000

_PART = 25
# Devices of a revoked key that one transaction ends: 20 ms each were seen on a busy machine.

_MOST_SERIALS = 200_000
# Characters of a key's serial numbers: 10,000 of 20.


class SqlPairings(RuledRepository, Pairings):
    """See `Pairings`."""

    @writes
    def make_code(
        self,
        tx: Transaction,
        *,
        name: str = "",
        serial: str = "",
        labels: dict[str, str] | None = None,
        replace: str | None = None,
        lifetime: float | None = None,
    ) -> tuple[Pairing, Secret]:
        labels = names.check_labels(labels or {})
        serial = names.check_text("serial", serial, 128)
        if replace is not None:
            name = find_device(tx, replace).name
        elif name:
            check_name_free(tx, name)
        check_serial_free(tx, serial, replace or "")
        mine = sa.and_(_P.c.kind == "console", _P.c.state == "open", _P.c.expires > tx.now)
        what = "codes of a tenant are good at once: use an install key for many devices"
        need_room(tx, _P, mine, most=tx.limits.pairing_codes_per_tenant, what=what)
        pairing_id, code = insert_pairing(
            tx.above(),
            self._rules,
            kind="console",
            tenant_id=tx.tenant,
            name=name,
            serial=serial,
            labels=labels,
            lifetime=lifetime,
            replaces=replace,
            created_by=tx.actor.user_id,
            created_by_name=tx.actor.name,
        )
        after = {"name": name, "serial": serial, "labels": labels, "replaces": replace}
        tx.record("pairing.add", "pairing", pairing_id, after=after)
        tx.announce("pairing", pairing_id)
        return as_pairing(tx, tx.one(_P, pairing_id, "pairing")), code

    async def find_request(self, code: str) -> Pairing:
        found = await self._find_request(code)
        if isinstance(found, RegistryRefused):
            raise found
        return found

    @writes
    def _find_request(self, tx: Transaction, code: str) -> Pairing | RegistryRefused:
        guesser = Guesser.acting(tx, self._rules)
        found = find_code(tx.above(), code, kind="device", guesser=guesser, rules=self._rules)
        if isinstance(found, RegistryRefused):
            return found
        if found.tenant_id not in (None, tx.tenant):
            # A request by install key belongs to its tenant. The code was right, so no guess
            # counts.
            return RegistryRefused("there is no such code", code="code_unknown", field="code")
        look_up(tx.above(), _P, found)
        return as_pairing(tx, found)

    @writes
    def approve(
        self,
        tx: Transaction,
        pairing_id: str,
        *,
        name: str,
        labels: dict[str, str] | None = None,
        replace: str | None = None,
    ) -> Device:
        row = _decidable(tx, pairing_id, kinds=("device",))
        labels = {**row.labels, **(labels or {})}
        if replace is None:
            device_id = add_device(
                tx,
                self._rules,
                name=name,
                serial=row.serial,
                labels=labels,
                paired_by=tx.actor.user_id,
                paired_by_name=tx.actor.name,
                install_key_id=row.install_key_id,
            )
        else:
            device_id = take_place(tx, replace, row.serial)
        _decide(
            tx,
            row,
            "approved",
            device_id=device_id,
            name=find_device(tx, device_id).name,
            replaces=replace,
            # From now it has the same time again to fetch its credential.
            expires=tx.now + timedelta(seconds=self._rules.lifetime),
        )
        tx.announce("device", device_id)
        return find_device(tx, device_id)

    @writes
    def deny(self, tx: Transaction, pairing_id: str) -> None:
        row = _decidable(tx, pairing_id, kinds=("device", "console"))
        _decide(tx, row, "denied" if row.kind == "device" else "cancelled")
        tx.announce("pairing", pairing_id)

    @reads
    def find(self, tx: Transaction, pairing_id: str) -> Pairing:
        return as_pairing(tx, tx.one(_P, pairing_id, "pairing"))

    @reads
    def page(
        self,
        tx: Transaction,
        *,
        waiting: bool = False,
        limit: int = 50,
        after: str | None = None,
    ) -> Page[Pairing]:
        query = tx.select(_P)
        if waiting:
            query = query.where(_P.c.state == "open", _P.c.expires > tx.now)

        def build(row: Row[Any]) -> Pairing:
            return as_pairing(tx, row)

        return paging.descending(tx, query, _P.c.id, build, limit=limit, after=after)


class SqlInstallKeys(Repository, InstallKeys):
    """See `InstallKeys`."""

    @writes
    def add(
        self,
        tx: Transaction,
        name: str,
        *,
        lifetime: float,
        max_uses: int,
        needs_approval: bool = False,
        serials: tuple[str, ...] = (),
        labels: dict[str, str] | None = None,
    ) -> tuple[InstallKey, Secret]:
        if not 1 <= max_uses <= _MAX_USES:
            raise RegistryRefused(
                f"max_uses must be from 1 to {_MAX_USES}", code="invalid", field="max_uses"
            )
        serials = tuple(names.check_text("serials", text, 128, least=1) for text in serials)
        if sum(map(len, serials)) > _MOST_SERIALS:
            raise RegistryRefused(
                f"the serial numbers of a key have at most {_MOST_SERIALS} characters in all: make "
                "another key for the others",
                code="invalid",
                field="serials",
            )
        good = sa.and_(_K.c.revoked.is_(None), _K.c.expires > tx.now, _K.c.uses < _K.c.max_uses)
        what = "install keys are good at once: revoke some"
        need_room(tx, _K, good, most=tx.limits.install_keys_per_tenant, what=what)
        secret, digest = new_secret("tmk")
        key_id = new_id()
        values: dict[str, Any] = {
            "name": names.check_text("name", name, 255, least=1),
            "labels": names.check_labels(labels or {}),
            "needs_approval": needs_approval,
            "serials": list(serials),
            "max_uses": max_uses,
            "expires": tx.now + timedelta(seconds=lifetime),
            "created_by": tx.actor.user_id,
        }
        tx.insert(_K, id=key_id, digest=digest, created=tx.now, **values)
        after = values | count_of("serials", serials)  # the key itself has them
        tx.record("install_key.add", "install_key", key_id, after=after)
        return _install_key(tx.one(_K, key_id, "install key")), secret

    @reads
    def find(self, tx: Transaction, key_id: str) -> InstallKey:
        return _install_key(tx.one(_K, key_id, "install key"))

    @reads
    def page(
        self, tx: Transaction, *, limit: int = 50, after: str | None = None
    ) -> Page[InstallKey]:
        query = tx.select(_K)
        return paging.descending(
            tx, query, _K.c.id, _install_key, limit=limit, after=after, large=(_K.c.serials,)
        )

    async def revoke(
        self, key_id: str, *, devices: Literal["keep", "disable", "remove"]
    ) -> tuple[InstallKey, list[str], int]:
        key, number = await self._end(key_id, devices)
        ended: list[str] = []
        while devices != "keep":
            # A thief may have enrolled 10,000: one transaction of all would be out of time.
            some, number = await self._end_devices(key_id, devices, number)
            ended += some
            if len(some) < _PART:
                break
        return key, ended, number

    @writes
    def _end_devices(
        self, tx: Transaction, key_id: str, what: Literal["disable", "remove"], number: int
    ) -> tuple[list[str], int]:
        """Disable or remove some that used the key; their ids, and the last change's number."""
        used_it = tx.select(_D, _D.c.id).where(_D.c.install_key_id == key_id)
        if what == "disable":
            used_it = used_it.where(_D.c.enabled.is_(sa.true()))
        some = list(tx.execute(used_it.order_by(_D.c.id).limit(_PART)).scalars())
        for device_id in some:
            if what == "disable":
                number = set_enabled(tx, device_id, False).change
            else:
                number = remove_device(tx, device_id).change
        return some, number

    @writes
    def _end(self, tx: Transaction, key_id: str, devices: str) -> tuple[InstallKey, int]:
        row = tx.one(_K, key_id, "install key")
        if row.revoked is None:
            tx.update(_K, _K.c.id == key_id, revoked=tx.now)
        # Devices that still wait for approval used the key, too.
        tx.update(_P, _P.c.install_key_id == key_id, _P.c.state == "open", state="cancelled")
        tx.record(
            "install_key.revoke",
            "install_key",
            key_id,
            before={"revoked": row.revoked},
            after={"devices": devices},
        )
        return _install_key(tx.one(_K, key_id, "install key")), tx.last_change()


def take_place(tx: Transaction, device: str, serial: str) -> str:
    """Prepare a device for its new installation, and end its old credentials. Returns its id."""
    device_id = find_device(tx, device).id
    check_serial_free(tx, serial, device_id)
    end_credentials(tx, device_id, "replaced by a new installation")
    values: dict[str, Any] = {
        "quarantine": "",
        "rotation_wanted": False,
        "host_key": "",
        "reported_host_keys": "",
    }
    if serial:
        values["serial"] = serial
        values["serial_key"] = serial_key(serial)
    tx.update(_D, _D.c.id == device_id, **values)
    return device_id


def insert_pairing(
    tx: Transaction,
    rules: PairingRules,
    *,
    kind: str,
    labels: dict[str, str],
    lifetime: float | None = None,
    **values: object,
) -> tuple[str, Secret]:
    """Add an open pairing, in a transaction bound to no tenant; returns its id and its code."""
    pairing_id = new_id()
    code = new_code()
    while tx.execute(  # one in 2^34
        sa.select(_P.c.id).where(_P.c.code_digest == hash_token(code), _P.c.state == "open")
    ).first():
        code = new_code()
    tx.execute(
        _P.insert().values(
            id=pairing_id,
            kind=kind,
            state="open",
            code_digest=hash_token(code),
            code_half=half_of(code.reveal()),
            labels=labels,
            created=tx.now,
            expires=tx.now + timedelta(seconds=lifetime or rules.lifetime),
            **values,
        )
    )
    return pairing_id, code


def as_pairing(tx: Transaction, row: Row[Any]) -> Pairing:
    """The record of a row, with its current state."""
    state: PairingState = row.state
    if state in ("open", "approved") and row.expires <= tx.now:
        state = "expired"
    return Pairing(
        id=row.id,
        kind=row.kind,
        state=state,
        name=row.name,
        serial=row.serial,
        labels=row.labels,
        address=row.address,
        fingerprint=row.fingerprint,
        agent_version=row.agent_version,
        created_by=row.created_by,
        created=row.created,
        expires=row.expires,
        decided_by=row.decided_by,
        device_id=row.device_id,
        replaces=row.replaces,
    )


def _decidable(tx: Transaction, pairing_id: str, *, kinds: tuple[str, ...]) -> Row[Any]:
    """A pairing that this tenant may decide about: its own, or one without a tenant yet."""
    row = (
        tx.above()
        .execute(
            sa.select(_P)
            .where(
                _P.c.id == pairing_id,
                _P.c.kind.in_(kinds),
                sa.or_(_P.c.tenant_id == tx.tenant, _P.c.tenant_id.is_(None)),
            )
            .with_for_update()
        )
        .first()
    )
    if row is None:
        raise NoSuchRecord("pairing", pairing_id)
    if row.state != "open" or row.expires <= tx.now:
        raise RegistryRefused(
            "this pairing was decided, used or has expired already: ask for another code",
            code="pairing_over",
        )
    return row


def _decide(tx: Transaction, row: Row[Any], state: PairingState, **values: object) -> None:
    tx.above().execute(
        _P.update()
        .where(_P.c.id == row.id)
        .values(
            state=state,
            tenant_id=tx.tenant,
            decided_by=tx.actor.user_id,
            decided_by_name=tx.actor.name,
            **values,
        )
    )
    tx.record(
        f"pairing.{state}",
        "pairing",
        row.id,
        before={"state": row.state, "serial": row.serial, "address": row.address},
        after={"state": state, **values},
    )


def _install_key(row: Row[Any]) -> InstallKey:
    return InstallKey(
        id=row.id,
        name=row.name,
        labels=row.labels,
        needs_approval=row.needs_approval,
        serials=tuple(row.serials),
        max_uses=row.max_uses,
        uses=row.uses,
        created_by=row.created_by,
        created=row.created,
        expires=row.expires,
        last_used=row.last_used,
        revoked=row.revoked,
    )
