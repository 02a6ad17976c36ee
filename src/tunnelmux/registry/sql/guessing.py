"""Limits how often strangers may guess codes and ask for sign-ins of terminals. A wrong code counts
against the codes with the same first half, and against the address and tenant that it came from."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from tunnelmux.config import hash_token
from tunnelmux.config.networks import block_of, network_of
from tunnelmux.errors import RegistryRefused
from tunnelmux.registry.pairing import PairingRules
from tunnelmux.registry.sql import schema
from tunnelmux.registry.sql.secrets import half_of, normal_code
from tunnelmux.registry.sql.transaction import Transaction

__all__ = ["Guesser", "find_code", "give_way", "spend"]

_P = schema.pairings
_G = schema.guesses


class Guesser:
    """The source of a guess, with the budgets that it uses up."""

    def __init__(self, rules: PairingRules, *, address: str, tenant_id: str | None = None) -> None:
        self._rules = rules
        self._budgets = {f"address {network_of(address)}": rules.address_budget}
        if tenant_id is not None:
            self._budgets[f"tenant {tenant_id}"] = rules.tenant_budget

    def refusal(self, tx: Transaction) -> RegistryRefused | None:
        """Why no code is looked up for this source now, or None."""
        counts: dict[str, int] = {row.subject: row.guesses for row in self._rows(tx)}
        if all(counts.get(subject, 0) < most for subject, most in self._budgets.items()):
            return None
        minutes = self._rules.budget_period / 60
        return RegistryRefused(
            f"too many wrong codes came from here: wait {minutes:.0f} minutes",
            code="too_many_guesses",
        )

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


def give_way(tx: Transaction, table: sa.Table, waiting: Sequence[Row[Any]], address: str) -> bool:
    """End the oldest request of the block of addresses that has most of those that wait, if the
    block of this address has at least two fewer. False where it has not."""
    blocks: dict[str, list[str]] = {}
    for row in waiting:
        blocks.setdefault(block_of(row.address), []).append(row.id)
    largest = max(blocks.values(), key=len)
    if len(largest) < len(blocks.get(block_of(address), ())) + 2:
        return False
    tx.execute(table.update().where(table.c.id == largest[0]).values(expires=tx.now))
    return True


def _counted(tx: Transaction, subjects: list[str], period: float) -> list[Row[Any]]:
    since = tx.now - timedelta(seconds=period)
    return list(tx.execute(sa.select(_G).where(_G.c.subject.in_(subjects), _G.c.since > since)))


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
            .with_for_update()
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
