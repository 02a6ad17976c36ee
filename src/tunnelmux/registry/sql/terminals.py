"""Signing terminals in, in SQL."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from tunnelmux.config import Secret, hash_token
from tunnelmux.errors import RegistryRefused
from tunnelmux.registry import names
from tunnelmux.registry.actor import Actor
from tunnelmux.registry.ids import Clock, new_id
from tunnelmux.registry.pairing import PairingRules
from tunnelmux.registry.people import Role
from tunnelmux.registry.sql import schema
from tunnelmux.registry.sql.database import Database
from tunnelmux.registry.sql.guessing import (
    PLACES_HERE,
    Guesser,
    look_up,
    make_room,
    may_ask,
    spend,
)
from tunnelmux.registry.sql.secrets import digest_of, new_code, new_secret, normal_code
from tunnelmux.registry.sql.tokens import add_token
from tunnelmux.registry.sql.transaction import (
    Repository,
    RuledRepository,
    Transaction,
    reads,
    writes,
)
from tunnelmux.registry.terminals import TerminalApprovals, TerminalRequest, TerminalRequests
from tunnelmux.registry.tokens import AccessToken

__all__ = ["SqlTerminalApprovals", "SqlTerminalRequests"]

_R = schema.terminal_requests

_AGAIN = "run `tunnelmux login` again"


class SqlTerminalRequests(Repository, TerminalRequests):
    """See `TerminalRequests`."""

    def __init__(self, database: Database, clock: Clock, *, rules: PairingRules) -> None:
        super().__init__(database, clock, tenant_id=None, actor=Actor.program("terminal"))
        self._rules = rules

    @writes
    def ask(
        self, tx: Transaction, *, client: str, address: str, earlier: Secret | None = None
    ) -> tuple[TerminalRequest, Secret, Secret]:
        client = names.check_text("client", client, 100, least=1)
        rules = self._rules
        user_id = _user_of(tx, earlier) if earlier is not None else None
        waiting = _R.c.state == "open"
        if user_id is not None:
            subject = f"terminal of {user_id}"
            may = spend(tx, subject, rules.address_budget, rules.budget_period)
        else:
            may = may_ask(tx, "terminal", address, rules)
        if not may:
            raise RegistryRefused(
                "too many sign-ins were begun at your address, by you or a neighbour: try again in "
                "some seconds, or sign in to the console, make an access token there, and set "
                "TUNNELMUX_TOKEN to it and TUNNELMUX_SERVER to the URL",
                code="too_many_requests",
            )
        here = PLACES_HERE * rules.address_budget
        # That of a known person takes a place beside those that strangers share.
        if user_id is None and not make_room(
            tx, _R, waiting, address, most=rules.max_waiting, most_here=here
        ):
            raise RegistryRefused(
                "too many sign-ins wait to be confirmed: try again in some minutes",
                code="too_many_requests",
            )
        code = new_code()
        while tx.execute(  # one in 2^34
            sa.select(_R.c.id).where(_R.c.code_digest == hash_token(code), _R.c.state == "open")
        ).first():
            code = new_code()
        secret, digest = new_secret("tma")
        request_id = new_id()
        tx.execute(
            _R.insert().values(
                id=request_id,
                state="open",
                code_digest=hash_token(code),
                digest=digest,
                client=client,
                address=address[:64],
                seen=user_id is not None,
                created=tx.now,
                expires=tx.now + timedelta(seconds=self._rules.lifetime),
            )
        )
        row = tx.execute(sa.select(_R).where(_R.c.id == request_id)).one()
        return _request(row), code, secret

    @reads
    def poll(self, tx: Transaction, secret: Secret) -> TerminalRequest:
        row = tx.execute(sa.select(_R).where(_R.c.digest == digest_of(secret))).first()
        if row is None:
            raise RegistryRefused(f"there is no such request: {_AGAIN}", code="request_unknown")
        if row.state == "denied":
            raise RegistryRefused("the sign-in was denied in the browser", code="access_denied")
        if row.state == "open" and row.expires <= tx.now:
            raise RegistryRefused(f"the code has expired: {_AGAIN}", code="expired_token")
        return _request(row)


class SqlTerminalApprovals(RuledRepository, TerminalApprovals):
    """See `TerminalApprovals`."""

    async def find(self, code: str) -> TerminalRequest:
        found = await self._find(code)
        if isinstance(found, RegistryRefused):
            raise found
        return found

    @writes
    def _find(self, tx: Transaction, code: str) -> TerminalRequest | RegistryRefused:
        found = self._waiting(tx, code)
        if isinstance(found, RegistryRefused):
            return found
        look_up(tx.above(), _R, found)
        return _request(found)

    async def approve(
        self, code: str, *, user_id: str, role: Role, scopes: tuple[str, ...], lifetime: float
    ) -> AccessToken:
        made = await self._approve(code, user_id, role, scopes, lifetime)
        if isinstance(made, RegistryRefused):
            raise made
        return made

    @writes
    def _approve(
        self,
        tx: Transaction,
        code: str,
        user_id: str,
        role: Role,
        scopes: tuple[str, ...],
        lifetime: float,
    ) -> AccessToken | RegistryRefused:
        row = self._waiting(tx, code)
        if isinstance(row, RegistryRefused):
            return row
        _decide(tx, row, "approved")
        return add_token(
            tx,
            row.digest,
            f"tunnelmux of {row.client}",
            user_id=user_id,
            role=role,
            scopes=scopes,
            lifetime=lifetime,
        )

    async def deny(self, code: str) -> None:
        refusal = await self._deny(code)
        if refusal is not None:
            raise refusal

    @writes
    def _deny(self, tx: Transaction, code: str) -> RegistryRefused | None:
        row = self._waiting(tx, code)
        if isinstance(row, RegistryRefused):
            return row
        _decide(tx, row, "denied")
        about = {"client": row.client, "address": row.address}
        tx.record("terminal.deny", "terminal", row.id, before=about)
        return None

    def _waiting(self, tx: Transaction, code: str) -> Row[Any] | RegistryRefused:
        """The row, or why there is none: returned, not raised, so that the guess is counted."""
        above = tx.above()
        guesser = Guesser.acting(tx, self._rules)
        refusal = guesser.refusal(above)
        if refusal is not None:
            return refusal
        normal = normal_code(code)
        row = None
        if normal is not None:
            row = above.execute(
                sa.select(_R)
                .where(_R.c.code_digest == hash_token(normal))
                .order_by(_R.c.id.desc())
                .limit(1)
                .with_for_update()
            ).first()
        if row is None:
            guesser.was_wrong(above)
            message = "no terminal shows this code: compare it letter by letter"
            return RegistryRefused(message, code="code_unknown", field="code")
        if row.state != "open":
            return RegistryRefused(f"this code was used already: {_AGAIN}", code="code_used")
        if row.expires <= tx.now:
            return RegistryRefused(f"this code has expired: {_AGAIN}", code="code_expired")
        return row


def _user_of(tx: Transaction, earlier: Secret) -> str | None:
    """The person whose terminal once had this token: it may have expired, not be revoked."""
    tokens = schema.access_tokens
    mine = sa.and_(tokens.c.digest == digest_of(earlier), tokens.c.revoked.is_(None))
    user_id: str | None = tx.execute(sa.select(tokens.c.user_id).where(mine)).scalar()
    return user_id


def _decide(tx: Transaction, row: Row[Any], state: str) -> None:
    tx.above().execute(_R.update().where(_R.c.id == row.id).values(state=state))


def _request(row: Row[Any]) -> TerminalRequest:
    return TerminalRequest(
        id=row.id,
        state=row.state,
        client=row.client,
        address=row.address,
        created=row.created,
        expires=row.expires,
    )
