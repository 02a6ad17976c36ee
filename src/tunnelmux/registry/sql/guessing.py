"""Limits how often strangers may guess codes and ask for sign-ins of terminals. A wrong code counts
against the codes with the same first half, and against the address and tenant that it came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from tunnelmux.config import hash_token
from tunnelmux.config.networks import allocation_of, block_of, network_of, wider_networks
from tunnelmux.errors import RegistryRefused
from tunnelmux.registry.pairing import PairingRules
from tunnelmux.registry.sql import schema
from tunnelmux.registry.sql.secrets import half_of, normal_code
from tunnelmux.registry.sql.transaction import Transaction

__all__ = [
    "PLACES_HERE",
    "Guesser",
    "find_code",
    "look_up",
    "make_room",
    "may_ask",
    "spend",
]

_ASKING_PERIOD = 2.0
# Seconds in which an address may ask `address_budget` times.

PLACES_HERE = 5
"""Requests of one address that wait at once, in times of its budget: so one stays for 10 s at least
however fast a neighbour asks, and a page in a browser opens in less."""


_P = schema.pairings
_G = schema.guesses


class Guesser:
    """The source of a guess, with the budgets that it uses up: those of its address; of a person
    who has signed in those of the account and the tenant, which no neighbour can use up."""

    def __init__(
        self,
        rules: PairingRules,
        *,
        address: str,
        tenant_id: str | None = None,
        user_id: str | None = None,
    ) -> None:
        self._rules = rules
        self._is_known = bool(user_id)
        self._budgets = {}
        if user_id:
            self._budgets[f"user {user_id}"] = rules.address_budget
        else:
            self._budgets[f"address {network_of(address)}"] = rules.address_budget
            for network, times in wider_networks(address):
                self._budgets[f"address {network}"] = times * rules.address_budget
        if tenant_id is not None:
            self._budgets[f"tenant {tenant_id}"] = rules.tenant_budget

    @classmethod
    def acting(cls, tx: Transaction, rules: PairingRules) -> Guesser:
        """The person or program of a tenant that acts in this transaction."""
        actor = tx.actor
        return cls(rules, address=actor.address, tenant_id=tx.tenant, user_id=actor.user_id)

    def refusal(self, tx: Transaction) -> RegistryRefused | None:
        """Why no code is looked up for this source now, or None."""
        counts: dict[str, int] = {row.subject: row.guesses for row in self._rows(tx)}
        if all(counts.get(subject, 0) < most for subject, most in self._budgets.items()):
            return None
        wait = f"wait {self._rules.budget_period / 60:.0f} minutes"
        if self._is_known:
            message = f"too many wrong codes came from you or your tenant: {wait}"
        else:
            message = (
                f"too many wrong codes came from your address, by you or a neighbour: {wait}, or "
                "let the device in by an install key (tunnelmux-agent pair --install-key-file), "
                "which others' wrong codes do not shut out"
            )
        return RegistryRefused(message, code="too_many_guesses")

    def was_wrong(self, tx: Transaction) -> None:
        """Count one wrong guess."""
        known = {row.subject for row in self._rows(tx)}
        for subject in self._budgets:
            _count(tx, subject, is_known=subject in known)

    def _rows(self, tx: Transaction) -> list[Row[Any]]:
        return _counted(tx, list(self._budgets), self._rules.budget_period)


def spend(tx: Transaction, subject: str, most: int, period: float) -> bool:
    """Count one more for this subject. False when it had `most` already within `period` seconds."""
    rows = _counted(tx, [subject], period)
    if rows and rows[0].guesses >= most:
        return False
    _count(tx, subject, is_known=bool(rows))
    return True


def make_room(
    tx: Transaction,
    table: sa.Table,
    waiting: sa.ColumnElement[bool],
    address: str,
    *,
    most: int,
    most_here: int | None = None,
) -> bool:
    """Make room for one more request from this address among those that `waiting` selects, of which
    there may be `most`, and `most_here` of the address. False when there is none.

    Any stranger may ask, so what waits gives way, the oldest first: of this address when it has
    `most_here`, so that a flood pushes itself out and refuses no neighbour; else of the block of
    addresses that has most, or of the address in the own block, or of the provider that has most.
    A request that a person who has signed in has looked up gives no way.
    """
    rows = tx.execute(  # `most` at most
        sa.select(table.c.id, table.c.address)
        .where(waiting, table.c.expires > tx.now, table.c.seen.is_(sa.false()))
        .order_by(table.c.id)
    ).all()
    mine = [row.id for row in rows if network_of(row.address) == network_of(address)]
    if most_here is not None and len(mine) >= most_here:
        oldest: str | None = mine[0]
    elif len(rows) < most:
        return True
    else:
        block = [row for row in rows if block_of(row.address) == block_of(address)]
        oldest = _oldest_of_most(rows, block_of, address)
        oldest = oldest or _oldest_of_most(block, network_of, address)
        # A provider has as many blocks of IPv6 as it likes.
        oldest = oldest or _oldest_of_most(rows, allocation_of, address)
    if oldest is not None:
        # If it was looked up or decided in this moment, it stays, and there is one too many.
        gives_way = sa.and_(table.c.id == oldest, waiting, table.c.seen.is_(sa.false()))
        tx.execute(table.delete().where(gives_way))
    return oldest is not None


def _oldest_of_most(
    rows: Sequence[Row[Any]], group_of: Callable[[str], str], address: str
) -> str | None:
    """The oldest of the group that has most, if it has at least two more than this address'."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        groups.setdefault(group_of(row.address), []).append(row.id)
    largest = max(groups.values(), key=len, default=[])
    return None if len(largest) < len(groups.get(group_of(address), ())) + 2 else largest[0]


def may_ask(tx: Transaction, kind: str, address: str, rules: PairingRules) -> bool:
    """Count one more request of this kind from this address, of strangers. False when it makes
    them too fast: those that wait would give way before a person has looked one up."""
    networks = [(network_of(address), 1), *wider_networks(address)]
    return all(
        spend(tx, f"{kind} {network}", times * rules.address_budget, _ASKING_PERIOD)
        for network, times in networks
    )


def _counted(tx: Transaction, subjects: list[str], period: float) -> list[Row[Any]]:
    # Not later than the clocks of two copies of the API differ: a clock that was a day ahead for a
    # moment must not shut an address out for a day.
    age = timedelta(seconds=period)
    lately = sa.and_(_G.c.since > tx.now - age, _G.c.since <= tx.now + age)
    return list(tx.execute(sa.select(_G).where(_G.c.subject.in_(subjects), lately)))


def _count(tx: Transaction, subject: str, *, is_known: bool) -> None:
    if is_known:
        tx.execute(_G.update().where(_G.c.subject == subject).values(guesses=_G.c.guesses + 1))
    else:
        tx.execute(_G.delete().where(_G.c.subject == subject))
        # Another transaction may count the same one first in this moment.
        more = {"guesses": _G.c.guesses + 1}
        tx.insert_new(_G, more, subject=subject, since=tx.now, guesses=1)


def find_code(
    tx: Transaction, code: str, *, kind: str, guesser: Guesser, rules: PairingRules
) -> Row[Any] | RegistryRefused:
    """The open pairing of this code, or why there is none; a wrong guess is counted.

    `tx` is bound to no tenant. A refusal is returned, not raised, so that the count is committed.
    The row is not locked: its tenant has to be locked first.
    """
    refusal = guesser.refusal(tx)
    if refusal is not None:
        return refusal
    normal = normal_code(code)
    found = None
    if normal is not None:
        found = tx.execute(
            sa.select(_P)
            .where(_P.c.code_digest == hash_token(normal), _P.c.kind == kind)
            .order_by(_P.c.id.desc())
            .limit(1)
        ).first()
    if found is None:
        guesser.was_wrong(tx)
        if normal is not None:
            _burn(tx, half_of(normal), kind, rules)
        return RegistryRefused(
            "there is no such code: compare it letter by letter, or make another",
            code="code_unknown",
            field="code",
        )
    return _refusal_of(tx, found) or found


def look_up(tx: Transaction, table: sa.Table, row: Row[Any]) -> None:
    """Note that a person who has signed in looked this request up: it gives no way any more."""
    if not row.seen:
        tx.execute(table.update().where(table.c.id == row.id).values(seen=True))


def _refusal_of(tx: Transaction, pairing: Row[Any]) -> RegistryRefused | None:
    again = "make another"
    if pairing.state == "burnt":
        return RegistryRefused(
            f"too many wrong codes came close to this one, so it is no longer valid: {again}",
            code="code_burnt",
        )
    if pairing.state != "open":
        return RegistryRefused(
            f"this code was used already, and each works once: {again}", code="code_used"
        )
    if pairing.expires <= tx.now:
        return RegistryRefused(f"this code has expired: {again}", code="code_expired")
    return None


def _burn(tx: Transaction, half: str, kind: str, rules: PairingRules) -> None:
    """Count a wrong second half against all open codes with this first half."""
    near = sa.and_(_P.c.code_half == half, _P.c.kind == kind, _P.c.state == "open")
    tx.execute(_P.update().where(near).values(wrong_guesses=_P.c.wrong_guesses + 1))
    tx.execute(
        _P.update().where(near, _P.c.wrong_guesses >= rules.max_guesses).values(state="burnt")
    )
