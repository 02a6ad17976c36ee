"""SSH keys of devices in SQL."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from tunnelmux.config import Secret
from tunnelmux.errors import NoSuchRecord, RegistryRefused
from tunnelmux.registry.actor import Actor
from tunnelmux.registry.device_keys import DeviceSshKey, DeviceSshKeys, SshDevice, SshDevices
from tunnelmux.registry.ids import new_id
from tunnelmux.registry.sql import schema
from tunnelmux.registry.sql.devices import add_credential, find_device
from tunnelmux.registry.sql.secrets import digest_of
from tunnelmux.registry.sql.transaction import Repository, Transaction, reads, writes
from tunnelmux.registry.ssh_keys import parse_public_key

__all__ = ["SqlDeviceSshKeys", "SqlSshDevices"]

_K = schema.device_ssh_keys
_C = schema.credentials
_D = schema.devices
_T = schema.tenants

_MOST_KEYS = 10
# Valid keys of one device at once: it makes the next one before the last one expires.

_LONGEST = 366 * 86_400.0


class SqlDeviceSshKeys(Repository, DeviceSshKeys):
    """See `DeviceSshKeys`."""

    @writes
    def add(self, tx: Transaction, device_id: str, key: str, lifetime: float) -> DeviceSshKey:
        public = parse_public_key(key)
        find_device(tx, device_id)
        if not 0 < lifetime <= _LONGEST:
            raise RegistryRefused(
                "a device's key is valid for a year at most", code="invalid", field="lifetime"
            )
        tx.delete(_K, _K.c.expires <= tx.now)
        expires = tx.now + timedelta(seconds=lifetime)
        same = _K.c.fingerprint == public.fingerprint
        mine = tx.execute(tx.select(_K).where(same, _K.c.device_id == device_id)).first()
        if mine is not None:
            tx.update(_K, _K.c.id == mine.id, expires=expires)
        else:
            # This looks into all tenants, because the gateway finds the device by the key alone.
            if tx.above().execute(sa.select(_K.c.id).where(same, _K.c.expires > tx.now)).first():
                raise RegistryRefused(
                    "another device has this key: make one for each", code="taken", field="key"
                )
            if len(_living(tx, device_id)) >= _MOST_KEYS:
                raise RegistryRefused(
                    f"a device has at most {_MOST_KEYS} keys: remove one", code="too_many"
                )
            tx.above().execute(_K.delete().where(same))
            tx.insert(
                _K,
                id=new_id(),
                device_id=device_id,
                fingerprint=public.fingerprint,
                line=public.line,
                created=tx.now,
                expires=expires,
            )
        found = _key(tx.execute(tx.select(_K).where(same)).one())
        after = {"device": device_id, "fingerprint": found.fingerprint, "expires": expires}
        tx.record("device_ssh_key.add", "device_ssh_key", found.id, after=after)
        tx.announce("device", device_id)
        return found

    @reads
    def of(self, tx: Transaction, device_id: str) -> list[DeviceSshKey]:
        find_device(tx, device_id)
        return _living(tx, device_id)

    @writes
    def remove(self, tx: Transaction, device_id: str, key_id: str) -> int:
        row = tx.one(_K, key_id, "SSH key")
        if row.device_id != device_id:
            raise NoSuchRecord("SSH key", key_id)
        tx.delete(_K, _K.c.id == key_id)
        before = {"device": row.device_id, "fingerprint": row.fingerprint}
        tx.record("device_ssh_key.remove", "device_ssh_key", key_id, before=before)
        _end(tx, _C.c.ssh_key_id == key_id, reason="its SSH key was removed")
        return tx.announce("device", row.device_id)


class SqlSshDevices(Repository, SshDevices):
    """See `SshDevices`."""

    @reads
    def find(self, tx: Transaction, fingerprint: str) -> SshDevice | None:
        row = _find(tx, _K.c.fingerprint == fingerprint)
        if row is None:
            return None
        return SshDevice(
            key=_key(row),
            tenant_id=row.tenant_id,
            name=row.name,
            label=row.label,
            serial=row.serial,
        )

    @writes
    def begin(self, tx: Transaction, key_id: str, address: str) -> Secret | None:
        row = _find(tx, _K.c.id == key_id)
        if row is None:
            return None
        actor = Actor(kind="device", id=row.device_id, name=row.name, address=address)
        inner = tx.acting(actor).within(row.tenant_id)
        if _find(tx, _K.c.id == key_id) is None:
            return None  # it was shut out before this transaction's turn came
        _end(
            inner,
            sa.and_(_C.c.device_id == row.device_id, _C.c.ssh_key_id.is_not(None)),
            reason="logged in again",
        )
        token = add_credential(inner, row.device_id, state="active")
        inner.update(_C, _C.c.digest == digest_of(token), ssh_key_id=key_id)
        inner.update(_K, _K.c.id == key_id, last_used=tx.now, last_address=address[:64])
        inner.announce("device", row.device_id)
        return token

    @writes
    def end(self, tx: Transaction, token: Secret, reason: str) -> None:
        mine = _C.c.digest == digest_of(token)
        row = tx.execute(sa.select(_C.c.tenant_id, _C.c.device_id).where(mine)).first()
        if row is None:
            return
        actor = Actor(kind="device", id=row.device_id, name="")
        inner = tx.acting(actor).within(row.tenant_id)
        if _end(inner, mine, reason=reason):
            inner.announce("device", row.device_id)


def _end(tx: Transaction, which: sa.ColumnElement[bool], *, reason: str) -> int:
    """End those of these credentials that are living; how many there were."""
    rows = tx.execute(tx.select(_C).where(which, _C.c.state == "active")).all()
    for row in rows:
        tx.update(_C, _C.c.id == row.id, state="ended", ended=tx.now, end_reason=reason)
        tx.record(
            "credential.end",
            "credential",
            row.id,
            before={"device": row.device_id, "state": row.state},
            after={"reason": reason},
        )
    return len(rows)


def _find(tx: Transaction, which: sa.ColumnElement[bool]) -> Row[Any] | None:
    return tx.execute(
        sa.select(_K, _D.c.name, _D.c.label, _D.c.serial)
        .join(_D, _D.c.id == _K.c.device_id)
        .join(_T, _T.c.id == _K.c.tenant_id)
        .where(
            which,
            _K.c.expires > tx.now,
            _D.c.enabled.is_(sa.true()),
            _D.c.quarantine == "",
            _T.c.enabled.is_(sa.true()),
        )
    ).first()


def _living(tx: Transaction, device_id: str) -> list[DeviceSshKey]:
    query = tx.select(_K).where(_K.c.device_id == device_id, _K.c.expires > tx.now)
    return [_key(row) for row in tx.execute(query.order_by(_K.c.id.desc()))]


def _key(row: Row[Any]) -> DeviceSshKey:
    return DeviceSshKey(**{name: getattr(row, name) for name in DeviceSshKey.__dataclass_fields__})
