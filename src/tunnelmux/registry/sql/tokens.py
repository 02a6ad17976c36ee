"""Access tokens in SQL."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from tunnelmux.config import Secret
from tunnelmux.errors import NoSuchRecord, RegistryError, RegistryRefused
from tunnelmux.observability import get_logger
from tunnelmux.registry import names
from tunnelmux.registry.ids import Page, new_id
from tunnelmux.registry.people import ROLES, Role
from tunnelmux.registry.sql import paging, schema
from tunnelmux.registry.sql.people import hold_enabled, role_in
from tunnelmux.registry.sql.room import need_room
from tunnelmux.registry.sql.secrets import digest_of, new_secret
from tunnelmux.registry.sql.transaction import Repository, Transaction, reads, writes
from tunnelmux.registry.tokens import AccessToken, AccessTokens, ProvenToken

__all__ = ["SqlAccessTokens", "TokenProofs", "add_token"]

_A = schema.access_tokens
_M = schema.memberships
_U = schema.users
_T = schema.tenants

_log = get_logger("registry")

_USE_WRITTEN = timedelta(minutes=1)
# How old last_used may be: a program that calls every second must not cause a write every second.


class SqlAccessTokens(Repository, AccessTokens):
    """See `AccessTokens`."""

    @writes
    def add(
        self,
        tx: Transaction,
        name: str,
        *,
        user_id: str,
        role: Role,
        scopes: tuple[str, ...] = (),
        lifetime: float | None = None,
    ) -> tuple[AccessToken, Secret]:
        secret, digest = new_secret("tma")
        token = add_token(
            tx, digest, name, user_id=user_id, role=role, scopes=scopes, lifetime=lifetime
        )
        return token, secret

    @reads
    def page(
        self,
        tx: Transaction,
        *,
        user_id: str | None = None,
        limit: int = 50,
        after: str | None = None,
    ) -> Page[AccessToken]:
        query = tx.select(_A)
        if user_id is not None:
            query = query.where(_A.c.user_id == user_id)
        return paging.descending(tx, query, _A.c.id, _token, limit=limit, after=after)

    @reads
    def find(self, tx: Transaction, token_id: str) -> AccessToken:
        return _token(tx.one(_A, token_id, "access token"))

    @writes
    def revoke(self, tx: Transaction, token_id: str) -> AccessToken:
        row = tx.one(_A, token_id, "access token")
        if row.revoked is None:
            tx.update(_A, _A.c.id == token_id, revoked=tx.now)
            tx.record("token.revoke", "token", token_id, before={"name": row.name})
            tx.announce("token", token_id)
        return _token(tx.one(_A, token_id, "access token"))


class TokenProofs(Repository):
    """Finds the owner of a token, in all tenants."""

    async def prove(self, secret: Secret, address: str) -> ProvenToken | None:
        """See `Registry.prove_token`."""
        found = await self._find(digest_of(secret))
        if found is None:
            return None
        proven, is_stale = found
        if is_stale:
            try:
                await self._touch(proven.token.id, address[:64])
            except RegistryError as error:
                # The token is valid; a full database must not lock programs out.
                _log.warning("use of a token not written down", cause=str(error))
        return proven

    @reads
    def _find(self, tx: Transaction, digest: str) -> tuple[ProvenToken, bool] | None:
        row = tx.execute(
            sa.select(_A, _M.c.role.label("user_role"))
            .join(_M, sa.and_(_M.c.user_id == _A.c.user_id, _M.c.tenant_id == _A.c.tenant_id))
            .join(_U, _U.c.id == _A.c.user_id)
            .join(_T, _T.c.id == _A.c.tenant_id)
            .where(
                _A.c.digest == digest,
                _A.c.revoked.is_(None),
                sa.or_(_A.c.expires.is_(None), _A.c.expires > tx.now),
                _U.c.enabled.is_(sa.true()),
                _T.c.enabled.is_(sa.true()),
            )
        ).first()
        if row is None:
            return None
        is_stale = row.last_used is None or row.last_used < tx.now - _USE_WRITTEN
        proven = ProvenToken(tenant_id=row.tenant_id, token=_token(row), user_role=row.user_role)
        return proven, is_stale

    @writes
    def _touch(self, tx: Transaction, token_id: str, address: str) -> None:
        tx.execute(
            _A.update().where(_A.c.id == token_id).values(last_used=tx.now, last_address=address)
        )


def add_token(
    tx: Transaction,
    digest: str,
    name: str,
    *,
    user_id: str,
    role: Role,
    scopes: tuple[str, ...],
    lifetime: float | None,
) -> AccessToken:
    """Make the secret with this digest an access token; raises like `AccessTokens.add`."""
    name = names.check_text("name", name, 255, least=1)
    held = role_in(tx, user_id)
    if held is None:
        raise NoSuchRecord("member", user_id)
    hold_enabled(tx, user_id)
    if ROLES.index(role) > ROLES.index(held):
        raise RegistryRefused(
            f"a token cannot have the role {role}: its maker has the role {held}",
            code="too_much",
            field="role",
        )
    valid = sa.and_(_A.c.revoked.is_(None), sa.or_(_A.c.expires.is_(None), _A.c.expires > tx.now))
    what = "access tokens of a person are valid at once: revoke some"
    most = tx.limits.access_tokens_per_person
    need_room(tx, _A, _A.c.user_id == user_id, valid, most=most, what=what)
    token_id = new_id()
    expires = None if lifetime is None else tx.now + timedelta(seconds=lifetime)
    tx.insert(
        _A,
        id=token_id,
        user_id=user_id,
        digest=digest,
        name=name,
        scopes=list(scopes),
        role=role,
        created=tx.now,
        expires=expires,
    )
    after = {"name": name, "user": user_id, "role": role, "scopes": list(scopes)}
    tx.record("token.add", "token", token_id, after=after)
    return _token(tx.one(_A, token_id, "access token"))


def _token(row: Row[Any]) -> AccessToken:
    return AccessToken(
        id=row.id,
        name=row.name,
        user_id=row.user_id,
        scopes=tuple(row.scopes),
        role=row.role,
        created=row.created,
        expires=row.expires,
        last_used=row.last_used,
        last_address=row.last_address,
        revoked=row.revoked,
    )
