"""Browser sessions in SQL."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from tunnelmux.config import Secret, hash_token
from tunnelmux.errors import RegistryError, RegistryRefused
from tunnelmux.observability import get_logger
from tunnelmux.registry.actor import Actor
from tunnelmux.registry.browser_sessions import (
    BrowserSession,
    BrowserSessions,
    NewBrowserSession,
    SignedIn,
)
from tunnelmux.registry.ids import new_id
from tunnelmux.registry.people import Role
from tunnelmux.registry.sql import schema
from tunnelmux.registry.sql.people import hold_enabled
from tunnelmux.registry.sql.secrets import digest_of, new_secret
from tunnelmux.registry.sql.transaction import Repository, Transaction, reads, writes

__all__ = ["SqlBrowserSessions"]

_B = schema.browser_sessions
_U = schema.users
_O = schema.used_once

_log = get_logger("registry")

_USE_WRITTEN = timedelta(minutes=1)

_SIGN_IN = timedelta(minutes=10)
# How long a sign-in may be under way: for that long it is known that the provider has ended it.

_LONGEST_NAME = 255
# Characters of a session's name at the provider, which has no limit of its own.


class SqlBrowserSessions(Repository, BrowserSessions):
    """See `BrowserSessions`."""

    @writes
    def begin(
        self,
        tx: Transaction,
        signed_in: SignedIn,
        *,
        idle: float,
        lifetime: float,
        address: str,
        user_agent: str,
        earlier: BrowserSession | None = None,
    ) -> NewBrowserSession:
        hold_enabled(tx, signed_in.user_id)
        if signed_in.provider_session:
            _hold_living(tx, signed_in.issuer, signed_in.provider_session)
        is_replaced = False
        if earlier is not None:
            # Before the audit is written, in the order of `_end`.
            is_replaced = tx.execute(_B.delete().where(_B.c.id == earlier.id)).rowcount > 0
        new = _insert(
            tx, signed_in, idle, lifetime, address=address[:64], user_agent=user_agent[:255]
        )
        after = {
            "user": signed_in.user_id,
            "address": new.session.address,
            "user_agent": new.session.user_agent,
        }
        by = Actor(kind="user", id=signed_in.user_id, name=new.session.user_name, address=address)
        mine = tx.acting(by)  # a browser that signs in again and again uses up its person's share
        mine.record("browser_session.begin", "browser_session", new.session.id, after=after)
        if earlier is not None and is_replaced:
            tx.announce("browser_session", earlier.id)
        return new

    async def find(self, secret: Secret) -> BrowserSession | None:
        found = await self._find(digest_of(secret))
        if found is None:
            return None
        session, is_stale = found
        if is_stale:
            try:
                await self._touch(session.id)
            except RegistryError as error:
                _log.warning("use of a browser session not written down", cause=str(error))
        return session

    @reads
    def _find(self, tx: Transaction, digest: str) -> tuple[BrowserSession, bool] | None:
        row = tx.execute(_living(tx).where(_B.c.digest == digest)).first()
        if row is None:
            return None
        # An idle time of minutes must be extended more often than once a minute.
        due = min(_USE_WRITTEN, timedelta(seconds=row.idle / 4))
        return _session(row), row.last_seen < tx.now - due

    @writes
    def _touch(self, tx: Transaction, session_id: str) -> None:
        idle = tx.execute(sa.select(_B.c.idle).where(_B.c.id == session_id)).scalar()
        if idle is not None:
            tx.execute(
                _B.update()
                .where(_B.c.id == session_id)
                .values(last_seen=tx.now, idle_ends=tx.now + timedelta(seconds=idle))
            )

    @writes
    def save(
        self, tx: Transaction, session: BrowserSession, *, tokens: bytes
    ) -> BrowserSession | None:
        values = {"tokens": tokens, "refresh_until": None, "version": session.version + 1}
        return _save(tx, session, values)

    @writes
    def set_place(
        self,
        tx: Transaction,
        session: BrowserSession,
        *,
        tenant_id: str | None,
        role: Role | None,
    ) -> BrowserSession | None:
        values = {"works_in": tenant_id, "role": role, "version": session.version + 1}
        return _save(tx, session, values)

    @writes
    def change_secret(
        self, tx: Transaction, session: BrowserSession, *, tenant_id: str | None, role: Role
    ) -> NewBrowserSession | None:
        secret, digest = new_secret("tms")
        changed = tx.execute(
            _B.update()
            .where(
                _B.c.id == session.id,
                _B.c.works_in.is_not_distinct_from(session.tenant_id),
                _B.c.role.is_not_distinct_from(session.role),
            )
            .values(digest=digest, works_in=tenant_id, role=role, version=_B.c.version + 1)
        ).rowcount
        row = tx.execute(_living(tx).where(_B.c.id == session.id)).first()
        if not changed or row is None:
            return None
        return NewBrowserSession(session=_session(row), secret=secret)

    @writes
    def claim_refresh(self, tx: Transaction, session: BrowserSession, seconds: float) -> bool:
        claimed = tx.execute(
            _B.update()
            .where(
                _B.c.id == session.id,
                _B.c.version == session.version,
                sa.or_(_B.c.refresh_until.is_(None), _B.c.refresh_until <= tx.now),
            )
            .values(refresh_until=tx.now + timedelta(seconds=seconds))
        ).rowcount
        return claimed == 1

    @reads
    def of_user(self, tx: Transaction, user_id: str) -> list[BrowserSession]:
        rows = tx.execute(_living(tx).where(_B.c.user_id == user_id).order_by(_B.c.id.desc()))
        return [_session(row) for row in rows]

    @writes
    def end(self, tx: Transaction, session_id: str, *, user_id: str | None = None) -> bool:
        mine = [_B.c.id == session_id]
        if user_id is not None:
            mine.append(_B.c.user_id == user_id)
        return _end(tx, sa.and_(*mine), "ended") > 0

    @writes
    def end_for_provider(
        self, tx: Transaction, *, issuer: str, subject: str | None, provider_session: str | None
    ) -> int:
        named = [_B.c.issuer == issuer]
        if provider_session:
            # First: a sign-in that is under way waits here, or has to be over before the look.
            until = tx.now + _SIGN_IN
            key = _ended_key(issuer, provider_session)
            tx.insert_new(_O, {"until": until}, key=key, until=until)
            named.append(_B.c.provider_session == _kept(provider_session))
        if subject:
            users = sa.select(_U.c.id).where(_U.c.issuer == issuer, _U.c.subject == subject)
            named.append(_B.c.user_id.in_(users))
        if len(named) == 1:
            return 0  # a logout that names no person ends nothing
        return _end(tx, sa.and_(*named), "ended by the provider")

    @writes
    def use_once(self, tx: Transaction, key: str, until: datetime) -> bool:
        tx.execute(_O.delete().where(_O.c.until <= tx.now))
        return tx.insert_new(_O, key=hash_token(key), until=until)


def _kept(provider_session: str) -> str:
    """The provider's name of a session, as it is kept: of a long one the digest. Cut short, it
    could be that of another session."""
    if len(provider_session) <= _LONGEST_NAME:
        return provider_session
    return f"sha256:{hash_token(provider_session)}"


def _ended_key(issuer: str, provider_session: str) -> str:
    return hash_token(f"ended {issuer} {provider_session}")


def _hold_living(tx: Transaction, issuer: str, provider_session: str) -> None:
    """Keep the provider from ending its session until the end of this transaction. Raises
    RegistryRefused `session_ended` where it has done so while the person came back from it: its
    logout token may be faster than the browser."""
    key = _ended_key(issuer, provider_session)
    tx.insert_new(_O, {"until": _O.c.until}, key=key, until=tx.now)
    until = tx.execute(sa.select(_O.c.until).where(_O.c.key == key)).scalar_one()
    if until > tx.now:
        raise RegistryRefused(
            "the provider has ended this session meanwhile: sign in again", code="session_ended"
        )


def _living(tx: Transaction) -> sa.Select[Any]:
    return (
        sa.select(
            _B,
            _U.c.name.label("user_name"),
            _U.c.email.label("user_email"),
            _U.c.subject.label("user_subject"),
        )
        .join(_U, _U.c.id == _B.c.user_id)
        .where(_B.c.idle_ends > tx.now, _B.c.ends > tx.now, _U.c.enabled.is_(sa.true()))
    )


def _save(
    tx: Transaction, session: BrowserSession, values: dict[str, Any]
) -> BrowserSession | None:
    written = tx.execute(
        _B.update().where(_B.c.id == session.id, _B.c.version == session.version).values(**values)
    ).rowcount
    row = tx.execute(_living(tx).where(_B.c.id == session.id)).first()
    return _session(row) if written and row is not None else None


def _insert(
    tx: Transaction, signed_in: SignedIn, idle: float, lifetime: float, **values: object
) -> NewBrowserSession:
    secret, digest = new_secret("tms")
    session_id = new_id()
    tx.execute(
        _B.insert().values(
            id=session_id,
            digest=digest,
            user_id=signed_in.user_id,
            works_in=signed_in.tenant_id,
            role=signed_in.role,
            issuer=signed_in.issuer,
            provider_session=_kept(signed_in.provider_session),
            tokens=signed_in.tokens,
            created=tx.now,
            last_seen=tx.now,
            idle=idle,
            idle_ends=tx.now + timedelta(seconds=idle),
            ends=tx.now + timedelta(seconds=lifetime),
            **values,
        )
    )
    row = tx.execute(_living(tx).where(_B.c.id == session_id)).one()
    return NewBrowserSession(session=_session(row), secret=secret)


def _end(tx: Transaction, which: sa.ColumnElement[bool], reason: str) -> int:
    rows = tx.execute(sa.select(_B.c.id, _B.c.user_id).where(which)).all()
    ended = tx.execute(_B.delete().where(_B.c.id.in_([row.id for row in rows]))).rowcount
    for row in rows:
        after = {"user": row.user_id, "reason": reason}
        tx.record("browser_session.end", "browser_session", row.id, after=after)
    for row in rows:
        tx.announce("browser_session", row.id)
    return ended


def _session(row: Row[Any]) -> BrowserSession:
    return BrowserSession(
        id=row.id,
        user_id=row.user_id,
        user_name=row.user_name or row.user_email or row.user_subject,
        tenant_id=row.works_in,
        role=row.role,
        issuer=row.issuer,
        provider_session=row.provider_session,
        tokens=row.tokens,
        version=row.version,
        address=row.address,
        user_agent=row.user_agent,
        created=row.created,
        last_seen=row.last_seen,
        idle_ends=row.idle_ends,
        ends=row.ends,
    )
