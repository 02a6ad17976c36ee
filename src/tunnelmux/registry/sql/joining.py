"""Pairing in SQL, for devices."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from tunnelmux.config import Secret
from tunnelmux.config.networks import block_of
from tunnelmux.errors import RegistryRefused
from tunnelmux.registry import names
from tunnelmux.registry.actor import Actor
from tunnelmux.registry.ids import Clock
from tunnelmux.registry.pairing import Arrival, Joining, Pairing, PairingRules
from tunnelmux.registry.sql import schema
from tunnelmux.registry.sql.database import Database
from tunnelmux.registry.sql.devices import add_credential, add_device, find_device
from tunnelmux.registry.sql.guessing import (
    PLACES_HERE,
    Guesser,
    find_code,
    make_room,
    may_ask,
    spend,
)
from tunnelmux.registry.sql.pairing import as_pairing, insert_pairing, take_place
from tunnelmux.registry.sql.secrets import digest_of, new_secret
from tunnelmux.registry.sql.transaction import Repository, Transaction, reads, writes

__all__ = ["SqlJoining"]

_P = schema.pairings
_K = schema.install_keys


class SqlJoining(Repository, Joining):
    """See `Joining`."""

    def __init__(self, database: Database, clock: Clock, *, rules: PairingRules) -> None:
        super().__init__(database, clock, tenant_id=None, actor=Actor.program("pairing"))
        self._rules = rules

    async def exchange(
        self, code: str, *, address: str, name: str = "", serial: str = "", agent_version: str = ""
    ) -> Arrival:
        about = {"name": name, "serial": serial, "agent_version": agent_version}
        answer = await self._exchange(code, address, about)
        if isinstance(answer, RegistryRefused):
            raise answer
        return answer

    @writes
    def _exchange(
        self, tx: Transaction, code: str, address: str, about: dict[str, str]
    ) -> Arrival | RegistryRefused:
        about = _clean(about)
        guesser = Guesser(self._rules, address=address)
        found = find_code(tx, code, kind="console", guesser=guesser, rules=self._rules)
        if isinstance(found, RegistryRefused):
            return found
        if found.serial and about["serial"] and found.serial != about["serial"]:
            raise RegistryRefused(
                "this code is for another device: the serial numbers differ",
                code="wrong_serial",
                field="serial",
            )
        name = found.name or about["name"]
        if not name:
            raise RegistryRefused(
                "the code names no device: say how this one is called",
                code="name_needed",
                field="name",
            )
        inner = _as_device(tx, name, address).within(found.tenant_id)
        # First of all, and only if it is still open: of two devices with one code, one is accepted.
        used = inner.update(
            _P,
            _P.c.id == found.id,
            _P.c.state == "open",
            state="used",
            address=address,
            agent_version=about["agent_version"],
        )
        if not used:
            raise RegistryRefused("this code was used already", code="code_used")
        serial = found.serial or about["serial"]
        if found.replaces is not None:
            device_id = take_place(inner, found.replaces, serial)
        else:
            device_id = add_device(
                inner,
                self._rules,
                name=name,
                serial=serial,
                labels=found.labels,
                paired_by=found.created_by,
                paired_by_name=found.created_by_name,
            )
        inner.update(_P, _P.c.id == found.id, device_id=device_id, name=name)
        return self._let_in(inner, found, device_id)

    @writes
    def request(
        self,
        tx: Transaction,
        *,
        address: str,
        name: str = "",
        serial: str = "",
        fingerprint: str = "",
        agent_version: str = "",
    ) -> tuple[Pairing, Secret, Secret]:
        about = _clean({"name": name, "serial": serial, "agent_version": agent_version})
        fingerprint = names.check_text("fingerprint", fingerprint, 255)
        self._make_room(tx, address, None)
        poll, poll_digest = new_secret("tmp")
        pairing_id, code = insert_pairing(
            tx,
            self._rules,
            lifetime=None,
            kind="device",
            poll_digest=poll_digest,
            labels={},
            address=address,
            fingerprint=fingerprint,
            **about,
        )
        row = tx.execute(sa.select(_P).where(_P.c.id == pairing_id)).one()
        return as_pairing(tx, row), code, poll

    def _make_room(self, tx: Transaction, address: str, tenant_id: str | None) -> None:
        """Make room for one more waiting request, of this tenant where a device has shown one of
        its install keys; raises RegistryRefused when there is none."""
        rules = self._rules
        waiting = sa.and_(
            _P.c.kind == "device",
            _P.c.state == "open",
            _P.c.tenant_id.is_(None) if tenant_id is None else _P.c.tenant_id == tenant_id,
        )
        here = None
        # Of devices with a key, a whole workshop may come from one address.
        if tenant_id is None:
            if not may_ask(tx, "pairing", address, rules):
                raise _too_many_wait()
            here = PLACES_HERE * rules.address_budget
        if not make_room(tx, _P, waiting, address, most=rules.max_waiting, most_here=here):
            raise _too_many_wait()

    async def poll(self, secret: Secret, *, fingerprint: str = "") -> Arrival | Pairing:
        # Devices ask every few seconds, strangers as often as they like, and nothing is written
        # then: of SQLite's one writer, only those take the time that are let in.
        pairing = await self._look(secret, fingerprint)
        return pairing if pairing.state == "open" else await self._fetch(secret, fingerprint)

    @reads
    def _look(self, tx: Transaction, secret: Secret, fingerprint: str) -> Pairing:
        asked = sa.select(_P).where(_P.c.poll_digest == digest_of(secret))
        return _decided(tx, tx.execute(asked).first(), fingerprint)

    @writes
    def _fetch(self, tx: Transaction, secret: Secret, fingerprint: str) -> Arrival | Pairing:
        asked = sa.select(_P).where(_P.c.poll_digest == digest_of(secret))
        row = tx.execute(asked).first()
        pairing = _decided(tx, row, fingerprint)
        if pairing.state == "open":
            return pairing
        assert row is not None
        assert row.device_id is not None  # approving and naming the device are one step
        inner = _as_device(tx, row.name, row.address).within(row.tenant_id)
        # Of two that ask at once, one is let in.
        if not inner.update(_P, _P.c.id == row.id, _P.c.state == "approved", state="used"):
            return _decided(tx, tx.execute(asked).first(), fingerprint)
        return self._let_in(inner, row, row.device_id)

    async def install(
        self,
        key: Secret,
        *,
        address: str,
        name: str,
        serial: str = "",
        fingerprint: str = "",
        agent_version: str = "",
    ) -> Arrival | tuple[Pairing, Secret]:
        about = {"name": name, "serial": serial, "agent_version": agent_version}
        answer = await self._install(key, address, fingerprint, about)
        if isinstance(answer, RegistryRefused):
            raise answer
        return answer

    @writes
    def _install(
        self,
        tx: Transaction,
        key: Secret,
        address: str,
        fingerprint: str,
        about: dict[str, str],
    ) -> Arrival | tuple[Pairing, Secret] | RegistryRefused:
        about = _clean(about)
        asked = sa.select(_K).where(_K.c.digest == digest_of(key))
        row = tx.execute(asked).first()
        if row is None:
            # A right key is never refused: a neighbour may have used the budget up, and no key can
            # be guessed.
            guesser = Guesser(self._rules, address=address)
            refusal = guesser.refusal(tx)
            if refusal is None:
                guesser.was_wrong(tx)
            return refusal or RegistryRefused("there is no such install key", code="key_unknown")
        _check_key(tx, row, about["serial"])
        inner = _as_device(tx, about["name"], address).within(row.tenant_id)
        # It may have been used or revoked before this transaction's turn came.
        row = tx.execute(asked).one()
        _check_key(tx, row, about["serial"])
        if not self._may_use(inner, row, address):
            return RegistryRefused(
                "this install key was used so often lately that it has to rest: try again in some "
                "minutes; if this is more than you expect, an administrator should revoke the key",
                code="key_resting",
            )
        inner.update(_K, _K.c.id == row.id, uses=row.uses + 1, last_used=tx.now)
        if row.needs_approval:
            return self._wait_for_approval(tx, row, address, fingerprint, about)
        device_id = add_device(
            inner,
            self._rules,
            name=about["name"],
            serial=about["serial"],
            labels=row.labels,
            paired_by=row.created_by,
            paired_by_name="",
            install_key_id=row.id,
        )
        token = add_credential(inner, device_id, state="active")
        inner.announce("device", device_id)
        return Arrival(tenant_id=row.tenant_id, device=find_device(inner, device_id), token=token)

    def _may_use(self, tx: Transaction, key: Row[Any], address: str) -> bool:
        """Count one use, and enter the first one over the budget into the audit."""
        rules, above = self._rules, tx.above()
        budgets = {
            f"key {key.id} {block_of(address)}": (rules.key_budget + 1) // 2,
            f"key {key.id}": rules.key_budget,
        }
        for subject, most in budgets.items():
            if not spend(above, subject, most, rules.budget_period):
                if spend(above, f"{subject} over", 1, rules.budget_period):
                    after = {"uses": most, "seconds": rules.budget_period}
                    tx.record("install_key.rest", "install_key", key.id, after=after)
                return False
        return True

    def _wait_for_approval(
        self,
        tx: Transaction,
        key: Row[Any],
        address: str,
        fingerprint: str,
        about: dict[str, str],
    ) -> tuple[Pairing, Secret]:
        self._make_room(tx, address, key.tenant_id)
        poll, poll_digest = new_secret("tmp")
        pairing_id, _code = insert_pairing(
            tx,
            self._rules,
            lifetime=None,
            kind="device",
            tenant_id=key.tenant_id,
            poll_digest=poll_digest,
            labels=key.labels,
            address=address,
            fingerprint=names.check_text("fingerprint", fingerprint, 255),
            install_key_id=key.id,
            **about,
        )
        tx.within(key.tenant_id).announce("pairing", pairing_id)
        row = tx.execute(sa.select(_P).where(_P.c.id == pairing_id)).one()
        return as_pairing(tx, row), poll

    def _let_in(self, tx: Transaction, pairing: Row[Any], device_id: str) -> Arrival:
        token = add_credential(tx, device_id, state="active")
        tx.record(
            "pairing.used",
            "pairing",
            pairing.id,
            before={"state": pairing.state},
            after={"state": "used", "device": device_id},
        )
        tx.announce("device", device_id)
        return Arrival(tenant_id=tx.tenant, device=find_device(tx, device_id), token=token)


def _decided(tx: Transaction, row: Row[Any] | None, fingerprint: str) -> Pairing:
    """The request in this row, open or approved; raises RegistryRefused for all else."""
    if row is None:
        raise RegistryRefused("there is no such request", code="pairing_unknown")
    if fingerprint and row.fingerprint != fingerprint:
        message = "an operator was asked about another key: ask with the one from then"
        raise RegistryRefused(message, code="wrong_key")
    pairing = as_pairing(tx, row)
    if pairing.state not in ("open", "approved"):
        message, code = _OVER[pairing.state]
        raise RegistryRefused(message, code=code)
    return pairing


_OVER: dict[str, tuple[str, str]] = {
    "used": ("this request was answered already: ask again", "pairing_used"),
    "denied": ("an operator has refused this device", "pairing_denied"),
    "cancelled": ("this request was cancelled: ask again", "pairing_denied"),
    "burnt": ("too many wrong codes came close to this one: ask again", "pairing_burnt"),
    "expired": ("this request has expired: ask again", "pairing_expired"),
}


def _too_many_wait() -> RegistryRefused:
    return RegistryRefused(
        "too many devices wait for approval: try again in some minutes", code="too_many_requests"
    )


def _clean(about: dict[str, str]) -> dict[str, str]:
    """What a device reports about itself, cut to bounds."""
    bounds = {"name": 63, "serial": 128, "agent_version": 64}
    return {key: names.check_text(key, value, bounds[key]) for key, value in about.items()}


def _as_device(tx: Transaction, name: str, address: str) -> Transaction:
    return tx.acting(Actor(kind="device", id="", name=name, address=address))


def _check_key(tx: Transaction, row: Row[Any], serial: str) -> None:
    if row.revoked is not None:
        raise RegistryRefused("this install key was revoked: ask for another", code="key_revoked")
    if row.expires <= tx.now:
        raise RegistryRefused("this install key has expired: ask for another", code="key_expired")
    if row.uses >= row.max_uses:
        raise RegistryRefused(
            f"this install key was used {row.uses} times, as often as it may be: ask for another",
            code="key_used_up",
        )
    if row.serials and serial not in row.serials:
        raise RegistryRefused(
            "this install key is not for a device of this serial number",
            code="wrong_serial",
            field="serial",
        )
