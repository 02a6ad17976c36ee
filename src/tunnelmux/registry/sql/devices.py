"""Devices and credentials in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from tunnelmux.config import Secret
from tunnelmux.errors import NoSuchRecord, RegistryRefused
from tunnelmux.registry import names
from tunnelmux.registry.assist import AssistState
from tunnelmux.registry.devices import (
    Credential,
    Credentials,
    Device,
    DeviceFilter,
    DeviceHostKeys,
    Devices,
    DeviceSession,
    DeviceState,
    Revocation,
)
from tunnelmux.registry.ids import Page, new_id
from tunnelmux.registry.pairing import PairingRules
from tunnelmux.registry.sql import paging, schema
from tunnelmux.registry.sql.changes import PROXY_SILENCE
from tunnelmux.registry.sql.host_keys import (
    accept_host_keys,
    change_host_keys,
    find_host_keys,
    report_host_keys,
)
from tunnelmux.registry.sql.room import need_room
from tunnelmux.registry.sql.secrets import new_secret
from tunnelmux.registry.sql.transaction import (
    Repository,
    RuledRepository,
    Transaction,
    reads,
    writes,
)

__all__ = [
    "SqlCredentials",
    "SqlDevices",
    "add_credential",
    "add_device",
    "check_name_free",
    "check_serial_free",
    "end_credentials",
    "find_device",
    "remove_device",
    "serial_key",
    "set_enabled",
    "tenant_name",
]

_D = schema.devices
_S = schema.device_states
_C = schema.credentials
_H = schema.device_sessions
_L = schema.host_labels
_P = schema.proxies
_T = schema.tenants


class SqlDevices(RuledRepository, Devices):
    """See `Devices`."""

    @writes
    def add(
        self,
        tx: Transaction,
        name: str,
        *,
        serial: str = "",
        labels: dict[str, str] | None = None,
        paired_by: str = "",
        paired_by_name: str = "",
    ) -> tuple[Device, Secret]:
        device_id = add_device(
            tx,
            self._rules,
            name=name,
            serial=serial,
            labels=labels or {},
            paired_by=paired_by,
            paired_by_name=paired_by_name,
        )
        secret = add_credential(tx, device_id, state="active")
        tx.announce("device", device_id)
        return find_device(tx, device_id), secret

    @reads
    def find(self, tx: Transaction, device_id: str) -> Device:
        return find_device(tx, device_id)

    @reads
    def find_named(self, tx: Transaction, name: str) -> Device:
        row = tx.execute(_devices(tx).where(_D.c.name == name)).first()
        if row is None:
            raise NoSuchRecord("device", name)
        return _device(row)

    @reads
    def find_called(self, tx: Transaction, text: str) -> Device:
        # In any case: OpenSSH turns host names into lower case.
        text = text.strip()
        for condition in (_D.c.name == text.lower(), _D.c.serial_key == serial_key(text)):
            row = tx.execute(_devices(tx).where(condition)).first() if text else None
            if row is not None:
                return _device(row)
        raise NoSuchRecord("device", text)

    @reads
    def page(
        self,
        tx: Transaction,
        *,
        where: DeviceFilter | None = None,
        limit: int = 50,
        after: str | None = None,
    ) -> Page[Device]:
        query = _devices(tx).where(*_conditions(tx, where or DeviceFilter()))
        return paging.ascending(tx, query, _D.c.name, _device, limit=limit, after=after)

    @reads
    def count(self, tx: Transaction, where: DeviceFilter | None = None) -> int:
        query = (
            tx.select(_D, sa.func.count())
            .select_from(_with_state(tx))
            .where(*_conditions(tx, where or DeviceFilter()))
        )
        number: int = tx.execute(query).scalar_one()
        return number

    @writes
    def change(
        self,
        tx: Transaction,
        device_id: str,
        *,
        name: str | None = None,
        serial: str | None = None,
        labels: dict[str, str] | None = None,
    ) -> Device:
        before = find_device(tx, device_id)
        values: dict[str, Any] = {}
        if name is not None and name != before.name:
            values["name"] = name
            values["label"] = _take_name(tx, name, device_id)
        if serial is not None:
            values["serial"] = _clean_serial(serial)
            check_serial_free(tx, values["serial"], device_id)
            tx.update(_D, _D.c.id == device_id, serial_key=serial_key(values["serial"]))
        if labels is not None:
            values["labels"] = names.check_labels(labels)
        _change(tx, before, "device.change", values)
        return find_device(tx, device_id)

    @writes
    def set_enabled(self, tx: Transaction, device_id: str, enabled: bool) -> Revocation:
        return set_enabled(tx, device_id, enabled)

    @writes
    def set_quarantine(self, tx: Transaction, device_id: str, reason: str) -> Revocation:
        before = find_device(tx, device_id)
        reason = names.check_text("reason", reason, 255)
        action = "device.quarantine" if reason else "device.release"
        number = _change(tx, before, action, {"quarantine": reason})
        return Revocation(device=find_device(tx, device_id), change=number)

    @reads
    def host_keys(self, tx: Transaction, device_id: str) -> DeviceHostKeys:
        return find_host_keys(tx, device_id)

    @writes
    def pin_host_key(self, tx: Transaction, device_id: str, key: str) -> DeviceHostKeys:
        found = find_host_keys(tx, device_id)
        return found if found.pinned else report_host_keys(tx, device_id, (key,))

    @writes
    def report_host_keys(
        self, tx: Transaction, device_id: str, keys: Sequence[str]
    ) -> DeviceHostKeys:
        return report_host_keys(tx, device_id, keys)

    @writes
    def accept_host_keys(
        self, tx: Transaction, device_id: str, fingerprints: Sequence[str]
    ) -> DeviceHostKeys:
        return accept_host_keys(tx, device_id, fingerprints)

    @writes
    def forget_host_keys(self, tx: Transaction, device_id: str) -> DeviceHostKeys:
        return change_host_keys(tx, device_id, DeviceHostKeys(), "device.forget_host_keys")

    @writes
    def remove(self, tx: Transaction, device_id: str) -> Revocation:
        return remove_device(tx, device_id)

    @reads
    def sessions(
        self, tx: Transaction, device_id: str, *, limit: int = 50, after: str | None = None
    ) -> Page[DeviceSession]:
        find_device(tx, device_id)
        query = tx.select(_H).where(_H.c.device_id == device_id)
        return paging.descending(tx, query, _H.c.id, _session, limit=limit, after=after)


class SqlCredentials(Repository, Credentials):
    """See `Credentials`."""

    @reads
    def of(self, tx: Transaction, device_id: str) -> list[Credential]:
        find_device(tx, device_id)
        rows = tx.execute(tx.select(_C).where(_C.c.device_id == device_id).order_by(_C.c.id.desc()))
        return [_credential(row) for row in rows]

    @writes
    def replace(self, tx: Transaction, device_id: str) -> tuple[Revocation, Secret]:
        find_device(tx, device_id)
        end_credentials(tx, device_id, "replaced")
        secret = add_credential(tx, device_id, state="active")
        tx.update(_D, _D.c.id == device_id, rotation_wanted=False)
        number = tx.announce("device", device_id)
        return Revocation(device=find_device(tx, device_id), change=number), secret

    @writes
    def revoke(self, tx: Transaction, device_id: str) -> Revocation:
        find_device(tx, device_id)
        ended = end_credentials(tx, device_id, "revoked")
        tx.update(_D, _D.c.id == device_id, rotation_wanted=False)
        tx.record("device.revoke", "device", device_id, after={"credentials_ended": ended})
        number = tx.announce("device", device_id)
        return Revocation(device=find_device(tx, device_id), change=number)

    @writes
    def rotate(self, tx: Transaction, device_id: str) -> Device:
        before = find_device(tx, device_id)
        if not before.enabled or before.quarantine:
            raise RegistryRefused(
                f'"{before.name}" may not connect and so cannot get a new credential: enable it '
                "first",
                code="not_enabled",
            )
        _change(tx, before, "device.rotate", {"rotation_wanted": True})
        return find_device(tx, device_id)

    @writes
    def cancel_rotation(self, tx: Transaction, device_id: str) -> Revocation:
        before = find_device(tx, device_id)
        end_credentials(tx, device_id, "the rotation was cancelled", state="new")
        number = _change(tx, before, "device.cancel_rotation", {"rotation_wanted": False})
        return Revocation(device=find_device(tx, device_id), change=number)


# -- for the other repositories -----------------------------------------------------------------


def find_device(tx: Transaction, device_id: str) -> Device:
    """The device of this id in the transaction's tenant; raises NoSuchRecord."""
    row = tx.execute(_devices(tx).where(_D.c.id == device_id)).first()
    if row is None:
        raise NoSuchRecord("device", device_id)
    return _device(row)


def tenant_name(tx: Transaction) -> str:
    """The name of the transaction's tenant."""
    name: str = tx.execute(sa.select(_T.c.name).where(_T.c.id == tx.tenant)).scalar_one()
    return name


def add_device(
    tx: Transaction,
    rules: PairingRules,
    *,
    name: str,
    serial: str,
    labels: dict[str, str],
    paired_by: str,
    paired_by_name: str,
    install_key_id: str | None = None,
) -> str:
    """Add a device without a credential, with its audit entry; returns its id. Each way in comes
    here; raises RegistryRefused `too_many` and those of names."""
    what = (
        "devices of a tenant are allowed: remove some, or raise limits.max_devices_per_tenant in "
        "the configuration of tunnelmux-api"
    )
    need_room(tx, _D, most=rules.max_devices, what=what)
    device_id = new_id()
    label = names.device_label(name, tenant_name(tx))
    serial = _clean_serial(serial)
    labels = names.check_labels(labels)
    check_name_free(tx, name)
    check_serial_free(tx, serial, device_id)
    tx.insert(
        _D,
        id=device_id,
        name=name,
        label=label,
        serial=serial,
        serial_key=serial_key(serial),
        labels=labels,
        paired_by=paired_by,
        paired_by_name=paired_by_name,
        install_key_id=install_key_id,
        created=tx.now,
    )
    tx.insert(_L, label=label, device_id=device_id)
    tx.insert(_S, device_id=device_id, services=[])
    after = {"name": name, "serial": serial, "labels": labels, "paired_by": paired_by}
    tx.record("device.add", "device", device_id, after=after)
    return device_id


def remove_device(tx: Transaction, device_id: str) -> Revocation:
    """Delete a device and all that belongs to it; raises NoSuchRecord."""
    device = find_device(tx, device_id)
    leases = schema.leases
    tx.update(
        leases,
        leases.c.device_id == device_id,
        leases.c.ended.is_(None),
        ended=tx.now,
        ended_by=tx.actor.id,
        end_reason="the device was removed",
    )
    tx.delete(_D, _D.c.id == device_id)
    before = {
        "name": device.name,
        "serial": device.serial,
        "labels": device.labels,
        "enabled": device.enabled,
        "paired_by": device.paired_by,
    }
    tx.record("device.remove", "device", device_id, before=before)
    return Revocation(device=device, change=tx.announce("device", device_id))


def set_enabled(tx: Transaction, device_id: str, enabled: bool) -> Revocation:
    """Let a device connect, or not; raises NoSuchRecord."""
    before = find_device(tx, device_id)
    action = "device.enable" if enabled else "device.disable"
    number = _change(tx, before, action, {"enabled": enabled})
    return Revocation(device=find_device(tx, device_id), change=number)


def add_credential(tx: Transaction, device_id: str, *, state: str) -> Secret:
    """Add a credential of a device, with its audit entry; returns its token."""
    secret, digest = new_secret("tmd")
    credential_id = new_id()
    tx.insert(
        _C,
        id=credential_id,
        device_id=device_id,
        digest=digest,
        state=state,
        created=tx.now,
        proved=tx.now if state == "active" else None,
    )
    after = {"device": device_id, "state": state}
    tx.record("credential.add", "credential", credential_id, after=after)
    return secret


def end_credentials(
    tx: Transaction, device_id: str, reason: str, *, state: str | None = None, but: str = ""
) -> int:
    """End the living credentials of a device (in this state only); how many there were."""
    states = ("active", "new") if state is None else (state,)
    rows = tx.execute(
        tx.select(_C).where(_C.c.device_id == device_id, _C.c.state.in_(states), _C.c.id != but)
    ).all()
    for row in rows:
        tx.update(_C, _C.c.id == row.id, state="ended", ended=tx.now, end_reason=reason)
        tx.record(
            "credential.end",
            "credential",
            row.id,
            before={"device": device_id, "state": row.state},
            after={"reason": reason},
        )
    if state is None and not but:
        # Nor may it come back by an SSH key at the gateway.
        tx.delete(schema.device_ssh_keys, schema.device_ssh_keys.c.device_id == device_id)
        # Another machine that had the credential cannot use it any more.
        tx.update(_S, _S.c.device_id == device_id, rival="", rival_seen=None)
    return len(rows)


def check_serial_free(tx: Transaction, serial: str, device_id: str) -> None:
    """Raise RegistryRefused for a serial number that another device of this tenant has."""
    if not serial:
        return
    # In any case, as in a search.
    same = _D.c.serial_key == serial_key(serial)
    other = tx.execute(tx.select(_D, _D.c.name).where(same, _D.c.id != device_id)).scalar()
    if other is not None:
        raise RegistryRefused(
            f'the device "{other}" has this serial number: if it was reinstalled, let the new one '
            "replace it",
            code="serial_taken",
            field="serial",
        )


# -- inside -------------------------------------------------------------------------------------


def check_name_free(tx: Transaction, name: str) -> None:
    """Raise RegistryRefused for a name that no device may have in this tenant, or that one has."""
    tenant = tenant_name(tx)
    names.check_device_name(name, tenant)
    taken = tx.execute(tx.select(_D, _D.c.id).where(_D.c.name == name)).first() is not None
    if not taken and tenant == names.DEFAULT_TENANT:
        # This tells whether another tenant has the name, which host names tell anyway.
        taken = tx.label_is_taken(name)
    if taken:
        raise RegistryRefused(
            f'"{name}" is taken: a device has it, or a tenant, whose host names would be the same',
            code="taken",
            field="name",
        )


def _take_name(tx: Transaction, name: str, device_id: str) -> str:
    """Give a device another name; returns its label in host names."""
    check_name_free(tx, name)
    label = names.device_label(name, tenant_name(tx))
    tx.update(_L, _L.c.device_id == device_id, label=label)
    return label


def _change(tx: Transaction, before: Device, action: str, values: dict[str, Any]) -> int:
    """Write the values that differ. Returns the change's number; without a difference, that of the
    last change."""
    changed = {key: value for key, value in values.items() if getattr(before, key) != value}
    if not changed:
        return tx.last_change()
    tx.update(_D, _D.c.id == before.id, **changed)
    was = {key: getattr(before, key) for key in changed}
    tx.record(action, "device", before.id, before=was, after=changed)
    return tx.announce("device", before.id)


def serial_key(serial: str) -> str:
    """The form in which serial numbers are compared: without case, and without space around."""
    return serial.strip().casefold()[:255]


def _clean_serial(serial: str) -> str:
    return names.check_text("serial", serial, 128)


def _with_state(tx: Transaction) -> sa.sql.selectable.Join:
    mine = sa.and_(_S.c.device_id == _D.c.id, _S.c.tenant_id == tx.tenant)
    # A proxy that died could not write that its sessions ended: its devices count as offline.
    living = sa.and_(
        _P.c.id == _S.c.proxy_id, _P.c.working.is_(sa.true()), _P.c.beat > tx.now - PROXY_SILENCE
    )
    return _D.join(_S, mine).outerjoin(_P, living)


def _devices(tx: Transaction) -> sa.Select[Any]:
    state = [column for column in _S.c if column.name not in ("tenant_id", "device_id", "online")]
    return tx.select(_D, _D, *state, _is_online(tx).label("online")).select_from(_with_state(tx))


def _is_online(tx: Transaction) -> sa.ColumnElement[bool]:
    """Whether the proxy with the newest session lives, or one that has another session."""
    living = (
        sa.select(_P.c.id)
        .where(_P.c.working.is_(sa.true()), _P.c.beat > tx.now - PROXY_SILENCE)
        .correlate(None)
    )
    elsewhere = sa.select(_H.c.device_id).where(
        _H.c.tenant_id == tx.tenant, _H.c.ended.is_(None), _H.c.proxy_id.in_(living)
    )
    newest = sa.and_(_S.c.online.is_(sa.true()), _P.c.id.is_not(None))
    return sa.or_(newest, _D.c.id.in_(elsewhere))


def _conditions(tx: Transaction, where: DeviceFilter) -> list[sa.ColumnElement[bool]]:
    found: list[sa.ColumnElement[bool]] = []
    if where.name:
        found.append(
            sa.or_(
                _D.c.name.contains(where.name.lower(), autoescape=True),
                _D.c.serial.icontains(where.name, autoescape=True),
            )
        )
    found.extend(_D.c.labels[key].as_string() == value for key, value in where.labels)
    if where.online is not None:
        found.append(_is_online(tx) if where.online else sa.not_(_is_online(tx)))
    if where.enabled is not None:
        found.append(_D.c.enabled.is_(where.enabled))
    if where.quarantined is not None:
        found.append(_D.c.quarantine != "" if where.quarantined else _D.c.quarantine == "")
    if where.asks_for_help is not None:
        # Written by AssistState.as_json in one format, of which texts sort as their times.
        until = sa.func.coalesce(_S.c.assist["until"].as_string(), "")
        now = tx.now.astimezone(UTC).isoformat(timespec="seconds")
        found.append(until > now if where.asks_for_help else until <= now)
    if where.install_key_id is not None:
        found.append(_D.c.install_key_id == where.install_key_id)
    return found


def _device(row: Row[Any]) -> Device:
    return Device(
        id=row.id,
        name=row.name,
        label=row.label,
        serial=row.serial,
        labels=row.labels,
        enabled=row.enabled,
        quarantine=row.quarantine,
        paired_by=row.paired_by,
        paired_by_name=row.paired_by_name,
        install_key_id=row.install_key_id,
        rotation_wanted=row.rotation_wanted,
        created=row.created,
        state=DeviceState(
            online=bool(row.online),
            proxy_id=row.proxy_id,
            since=row.since,
            last_seen=row.last_seen,
            address=row.address,
            agent_version=row.agent_version,
            services=tuple(row.services),
            reason=row.reason,
            rival=row.rival,
            rival_seen=row.rival_seen,
            assist=AssistState.from_json(row.assist),
        ),
    )


def _session(row: Row[Any]) -> DeviceSession:
    return DeviceSession(
        id=row.id,
        proxy_id=row.proxy_id,
        started=row.started,
        ended=row.ended,
        address=row.address,
        agent_version=row.agent_version,
        reason=row.reason,
        bytes_to_device=row.bytes_to_device,
        bytes_from_device=row.bytes_from_device,
    )


def _credential(row: Row[Any]) -> Credential:
    return Credential(
        id=row.id,
        device_id=row.device_id,
        state=row.state,
        created=row.created,
        proved=row.proved,
        ended=row.ended,
        end_reason=row.end_reason,
    )
