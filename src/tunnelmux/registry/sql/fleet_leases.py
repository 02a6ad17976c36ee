"""The part of the registry for proxies that concerns leases, in SQL; `SqlFleet` inherits it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from tunnelmux.errors import NoSuchRecord, RegistryRefused
from tunnelmux.registry.actor import Actor
from tunnelmux.registry.assist import AssistState
from tunnelmux.registry.fleet import Fleet, FleetLease
from tunnelmux.registry.ids import is_id
from tunnelmux.registry.leases import MAX_LEASE, RIGHTS, Lease
from tunnelmux.registry.sql import schema
from tunnelmux.registry.sql.devices import check_serial_free, find_device, serial_key
from tunnelmux.registry.sql.host_keys import report_host_keys
from tunnelmux.registry.sql.leases import (
    change_lease,
    end_lease,
    find_lease,
    is_living,
    read_lease,
    use_lease,
)
from tunnelmux.registry.sql.transaction import Repository, Transaction, reads, writes

__all__ = ["SqlFleetLeases"]

_D = schema.devices
_L = schema.leases
_S = schema.device_states

_MOST_CODES = 16
# Living leases by code of one device: a person there makes one, and another when it is lost.

_CLOCKS = timedelta(days=1, hours=1)
# How far a device's clock may be off when it reports a lease that it made.

_SAME_END = timedelta(seconds=5)
# How much later an end may be that a device reports once more, as to the node of its second
# session: it tells the seconds that are left, which take their time to arrive. People prolong by
# minutes.


class SqlFleetLeases(Repository, Fleet):
    """The part of `Fleet` for leases and for what devices report about themselves."""

    @reads
    def leases(self, tx: Transaction, *, after: str = "", limit: int = 1000) -> list[FleetLease]:
        query = sa.select(_L).where(is_living(tx.now), _L.c.id > after)
        rows = tx.execute(query.order_by(_L.c.id).limit(limit)).all()
        return [FleetLease(tenant_id=row.tenant_id, lease=read_lease(row)) for row in rows]

    @reads
    def leases_with_ids(self, tx: Transaction, lease_ids: list[str]) -> list[FleetLease]:
        rows = tx.execute(sa.select(_L).where(_L.c.id.in_(lease_ids))).all()
        return [FleetLease(tenant_id=row.tenant_id, lease=read_lease(row)) for row in rows]

    @writes
    def answer_lease(
        self, tx: Transaction, lease_id: str, device_id: str, *, given: bool, reason: str = ""
    ) -> None:
        inner, lease = self._of_device(tx, lease_id, device_id)
        if lease.consent != "asked" or lease.state(tx.now) not in ("waiting", "used_up"):
            return
        values: dict[str, Any] = {"consent": "given" if given else "refused"}
        if given:
            change_lease(inner, lease, "lease.consent", values)
        else:
            end_lease(inner, lease, reason or "the device refused", "lease.refuse", values)

    @writes
    def end_lease(self, tx: Transaction, lease_id: str, device_id: str, reason: str) -> None:
        inner, lease = self._of_device(tx, lease_id, device_id)
        if lease.state(tx.now) not in ("ended", "expired"):
            end_lease(inner, lease, reason)

    @reads
    def code_lease(self, tx: Transaction, key_fingerprint: str) -> FleetLease | None:
        if not key_fingerprint:
            return None
        mine = sa.and_(_L.c.key_fingerprint == key_fingerprint, _L.c.kind == "code")
        for row in tx.execute(sa.select(_L).where(mine, is_living(tx.now))):
            lease = read_lease(row)
            if lease.state(tx.now) == "running":
                return FleetLease(tenant_id=row.tenant_id, lease=lease)
        return None

    @writes
    def open_code_lease(
        self,
        tx: Transaction,
        lease_id: str,
        device_id: str,
        *,
        services: tuple[str, ...],
        starts: datetime,
        ends: datetime,
        key_fingerprint: str = "",
    ) -> None:
        inner = self._in_tenant_of(tx, device_id)
        if not is_id(lease_id) or not services or ends <= starts or ends - starts > MAX_LEASE:
            raise RegistryRefused("a device may not make such a lease", code="invalid")
        # Its length comes from the device; its start does not, because the clock there may be
        # wrong.
        if abs(starts - tx.now) > _CLOCKS:
            starts, ends = tx.now, tx.now + (ends - starts)
        row = tx.execute(sa.select(_L.c.tenant_id).where(_L.c.id == lease_id)).first()
        if row is not None:
            _, lease = self._of_device(tx, lease_id, device_id)
            longer = ends - lease.ends > _SAME_END
            if lease.kind == "code" and lease.ended is None and longer:
                values = {"ends": ends, "extended": lease.extended + 1}
                change_lease(inner, lease, "lease.extend", values)
            return
        mine = sa.and_(_L.c.device_id == device_id, _L.c.kind == "code", is_living(tx.now))
        if inner.execute(inner.select(_L, sa.func.count()).where(mine)).scalar_one() >= _MOST_CODES:
            message = f"{_MOST_CODES} codes of this device are good already"
            raise RegistryRefused(message, code="too_many")
        if key_fingerprint and self._is_another_code(tx, key_fingerprint):
            # The holder of a code would be led to whichever device is found first.
            raise RegistryRefused("this key is that of another code", code="invalid")
        values = {
            "device_id": device_id,
            "kind": "code",
            "services": list(services),
            "rights": list(RIGHTS),
            "holder": "",
            "holder_name": "the holder of the code",
            "reason": "assistance by code, opened on the device",
            "recorded": True,
            "sealed": True,
            "addresses": [],
            "approval": "not_needed",
            "consent": "given",
            "starts": starts,
            "ends": ends,
            "max_uses": None,
            "key_fingerprint": key_fingerprint[:64],
        }
        by = {"created_by": device_id, "created_by_name": inner.actor.name}
        inner.insert(_L, id=lease_id, created=tx.now, **by, **values)
        inner.record("lease.open", "lease", lease_id, after=values)
        inner.announce("lease", lease_id)

    @writes
    def use_lease(
        self,
        tx: Transaction,
        lease_id: str,
        device_id: str,
        address: str,
        details: dict[str, object],
    ) -> None:
        inner, lease = self._of_device(tx, lease_id, device_id)
        holder = Actor(kind="user", id=lease.holder, name=lease.holder_name, address=address)
        use_lease(inner.acting(holder), lease_id, details)

    @writes
    def report_assist(self, tx: Transaction, device_id: str, state: AssistState) -> None:
        # No entry in the audit: this is a state that the device reports, like its services.
        inner = self._in_tenant_of(tx, device_id)
        known = find_device(inner, device_id).state.assist
        inner.update(_S, _S.c.device_id == device_id, assist=state.as_json())
        if known is None or (known.mode, known.until) != (state.mode, state.until):
            inner.announce("device", device_id)

    @writes
    def report_serial(self, tx: Transaction, device_id: str, serial: str) -> str:
        inner = self._in_tenant_of(tx, device_id)
        before = find_device(inner, device_id)
        if before.serial:
            if serial_key(before.serial) == serial_key(serial):
                return ""
            return f"the registry has another serial number for it: {before.serial}"
        serial = serial.strip()
        if not serial or len(serial) > 128 or not serial.isprintable():
            return "a serial number has 1 to 128 printable characters"
        try:
            check_serial_free(inner, serial, device_id)
        except RegistryRefused as error:
            return str(error)
        key = serial_key(serial)
        inner.update(_D, _D.c.id == device_id, serial=serial, serial_key=key)
        inner.record(
            "device.change", "device", device_id, before={"serial": ""}, after={"serial": serial}
        )
        inner.announce("device", device_id)
        return ""

    @writes
    def report_host_keys(self, tx: Transaction, device_id: str, keys: Sequence[str]) -> str:
        found = report_host_keys(self._in_tenant_of(tx, device_id), device_id, keys)
        if not found.reported:
            return ""
        return (
            "its SSH server has new host keys: an operator has to accept them on the device's page "
            "of the console, or with: tunnelmux device host-keys DEVICE --accept"
        )

    def _is_another_code(self, tx: Transaction, key_fingerprint: str) -> bool:
        same = sa.and_(_L.c.key_fingerprint == key_fingerprint[:64], _L.c.kind == "code")
        return tx.execute(sa.select(_L.c.id).where(same, is_living(tx.now))).first() is not None

    def _in_tenant_of(self, tx: Transaction, device_id: str) -> Transaction:
        """The transaction, bound to a device's tenant, with the device as the actor."""
        row = tx.execute(sa.select(_D.c.tenant_id, _D.c.name).where(_D.c.id == device_id)).first()
        if row is None:
            raise NoSuchRecord("device", device_id)
        device = Actor(kind="device", id=device_id, name=row.name)
        return tx.within(row.tenant_id).acting(device)

    def _of_device(
        self, tx: Transaction, lease_id: str, device_id: str
    ) -> tuple[Transaction, Lease]:
        inner = self._in_tenant_of(tx, device_id)
        lease = find_lease(inner, lease_id)
        if lease.device_id != device_id:
            raise NoSuchRecord("lease", lease_id)
        return inner, lease
