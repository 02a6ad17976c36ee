"""Users, members and invitations in SQL."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from tunnelmux.config import Secret
from tunnelmux.errors import NoSuchRecord, RegistryRefused
from tunnelmux.observability import get_logger
from tunnelmux.registry import names
from tunnelmux.registry.ids import Page, new_id
from tunnelmux.registry.people import (
    ROLES,
    Invitation,
    Invitations,
    Member,
    Members,
    Membership,
    Role,
    User,
    Users,
)
from tunnelmux.registry.sql import paging, schema
from tunnelmux.registry.sql.membership import set_member
from tunnelmux.registry.sql.room import need_room
from tunnelmux.registry.sql.secrets import digest_of, new_secret
from tunnelmux.registry.sql.tenants import find_tenant
from tunnelmux.registry.sql.transaction import Repository, Transaction, reads, writes

__all__ = ["SqlInvitations", "SqlMembers", "SqlUsers", "hold_enabled", "role_in"]

_log = get_logger("registry")

_U = schema.users
_M = schema.memberships
_I = schema.invitations
_T = schema.tenants

_MAX_IDENTITY = 255
# Characters: OpenID Connect Core 1.0 section 2 allows so many in a subject.

_GRANT_LIFETIME = timedelta(days=7)
# How long a role given by e-mail waits for the person to sign in.


class SqlUsers(Repository, Users):
    """See `Users`."""

    async def sign_in(
        self,
        *,
        issuer: str,
        subject: str,
        email: str = "",
        name: str = "",
        claims: dict[str, Role] | None = None,
    ) -> User:
        user, without_owner = await self._sign_in(issuer, subject, email, name, claims)
        for tenant_id, tenant in without_owner.items():
            _log.warning(
                "tenant without owner",
                tenant=tenant,
                cause="the provider's claim no longer makes its last owner one",
                user=user.id,
                fix=f"tunnelmux-api admin grant --tenant {tenant} names another",
                tenant_id=tenant_id,
            )
        return user

    @writes
    def _sign_in(
        self,
        tx: Transaction,
        issuer: str,
        subject: str,
        email: str,
        name: str,
        claims: dict[str, Role] | None,
    ) -> tuple[User, dict[str, str]]:
        """The user, and the tenants that this sign-in has left without an owner, by id."""
        _check_identity(issuer, subject)
        email, name = email.strip()[:255], name.strip()[:255]
        row = tx.execute(
            sa.select(_U).where(_U.c.issuer == issuer, _U.c.subject == subject)
        ).first()
        if row is None:
            user_id = self._add(tx, issuer, subject, email, name)
        elif not row.enabled:
            raise _is_disabled()
        else:
            user_id = row.id
        without_owner = self._take_claims(tx, user_id, claims) if claims is not None else {}
        if email:
            self._redeem_by_email(tx, user_id, issuer, email)
        # Last, since this locks the user, and who locks a tenant as well locks that first.
        tx.execute(
            _U.update()
            .where(_U.c.id == user_id)
            .values(email=email, name=name, last_sign_in=tx.now)
        )
        return _find_user(tx, user_id), without_owner

    def _add(self, tx: Transaction, issuer: str, subject: str, email: str, name: str) -> str:
        user_id = new_id()
        tx.execute(
            _U.insert().values(
                id=user_id,
                issuer=issuer,
                subject=subject,
                email=email,
                name=name,
                created=tx.now,
                last_sign_in=None,
            )
        )
        after = {"issuer": issuer, "subject": subject, "email": email}
        tx.record("user.add", "user", user_id, after=after)
        return user_id

    def _take_claims(
        self, tx: Transaction, user_id: str, claims: dict[str, Role]
    ) -> dict[str, str]:
        """Make these the only memberships that come from claims. The names of the tenants that
        have lost their last owner by that: the provider decides, and it is written down."""
        wanted = {
            row.id: claims[row.name]
            for row in tx.execute(
                sa.select(_T.c.id, _T.c.name)
                .where(_T.c.name.in_(list(claims)), _T.c.id != schema.SYSTEM_TENANT)
                .order_by(_T.c.id)
            )
        }
        held = {
            row.tenant_id: row for row in tx.execute(sa.select(_M).where(_M.c.user_id == user_id))
        }
        without_owner = {}
        for tenant_id in sorted(wanted.keys() | held.keys()):
            role = wanted.get(tenant_id)
            if not _differs(held.get(tenant_id), role):
                continue
            inner = tx.within(tenant_id)
            mine = _member_row(inner, user_id)
            if not _differs(mine, role):
                continue  # it was changed before this transaction's turn came
            if role is None:
                _remove_member(inner, user_id, mine)
            else:
                set_member(inner, user_id, role, "claim", mine)
            if mine is not None and mine.role == "owner" and not _owners(inner):
                inner.record("tenant.without_owner", "tenant", tenant_id, before={"owner": user_id})
                without_owner[tenant_id] = find_tenant(tx, tenant_id).name
        return without_owner

    def _redeem_by_email(self, tx: Transaction, user_id: str, issuer: str, email: str) -> None:
        waiting = tx.execute(
            sa.select(_I)
            .where(
                _I.c.issuer == issuer,
                sa.func.lower(_I.c.email) == email.lower(),
                _is_good(tx),
            )
            .order_by(_I.c.tenant_id, _I.c.id)
        ).all()
        for invitation in waiting:
            inner = tx.within(invitation.tenant_id)
            # It may have been used or revoked before this transaction's turn came.
            still = inner.select(_I).where(_I.c.id == invitation.id, _is_good(tx))
            if inner.execute(still).first() is not None:
                _redeem(inner, user_id, invitation)

    @reads
    def find(self, tx: Transaction, user_id: str) -> User:
        return _find_user(tx, user_id)

    @reads
    def memberships(self, tx: Transaction, user_id: str) -> list[Membership]:
        rows = tx.execute(
            sa.select(_M.c.tenant_id, _M.c.role, _M.c.source, _T.c.name, _T.c.enabled)
            .join(_T, _T.c.id == _M.c.tenant_id)
            .where(_M.c.user_id == user_id)
            .order_by(_T.c.name)
        )
        return [_membership(row) for row in rows]

    @writes
    def set_enabled(self, tx: Transaction, user_id: str, enabled: bool) -> User:
        user = _find_user(tx, user_id)
        if user.enabled == enabled:
            return user
        tx.execute(_U.update().where(_U.c.id == user_id).values(enabled=enabled))
        if not enabled:
            sessions, tokens = schema.browser_sessions, schema.access_tokens
            tx.execute(sessions.delete().where(sessions.c.user_id == user_id))
            tx.execute(
                tokens.update()
                .where(tokens.c.user_id == user_id, tokens.c.revoked.is_(None))
                .values(revoked=tx.now)
            )
        action = "user.enable" if enabled else "user.disable"
        was = {"enabled": user.enabled}
        tx.record(action, "user", user_id, before=was, after={"enabled": enabled})
        tx.announce("user", user_id)
        return _find_user(tx, user_id)

    @writes
    def grant(
        self,
        tx: Transaction,
        tenant_id: str,
        role: Role,
        *,
        issuer: str,
        subject: str | None = None,
        email: str | None = None,
        force: bool = False,
    ) -> User | Invitation:
        _check_identity(issuer, subject or "")
        find_tenant(tx, tenant_id)
        tx.lock_installation()  # a new person is entered there
        inner = tx.within(tenant_id)
        if not force and _owners(inner):
            raise RegistryRefused(
                "this tenant has an owner, who can give roles: sign in as the owner, or force it",
                code="has_owner",
            )
        if subject is None:
            if not email:
                raise RegistryRefused(
                    "name the person by subject or by email", code="invalid", field="subject"
                )
            invitation, _ = _invite(inner, email, role, issuer=issuer, lifetime=_GRANT_LIFETIME)
            return invitation
        row = tx.execute(
            sa.select(_U.c.id).where(_U.c.issuer == issuer, _U.c.subject == subject)
        ).first()
        user_id = row.id if row is not None else self._add(tx, issuer, subject, email or "", "")
        set_member(inner, user_id, role, "grant", _member_row(inner, user_id))
        return _find_user(tx, user_id)

    @writes
    def accept_invitation(self, tx: Transaction, user_id: str, secret: Secret) -> Membership:
        asked = sa.select(_I).where(_I.c.digest == digest_of(secret))
        row = _acceptable(tx, tx.execute(asked).first())
        _find_user(tx, user_id)
        inner = tx.within(row.tenant_id)
        # It may have been used or revoked before this transaction's turn came.
        _redeem(inner, user_id, _acceptable(tx, tx.execute(asked).first()))
        found = tx.execute(
            sa.select(_M.c.tenant_id, _M.c.role, _M.c.source, _T.c.name, _T.c.enabled)
            .join(_T, _T.c.id == _M.c.tenant_id)
            .where(_M.c.user_id == user_id, _M.c.tenant_id == row.tenant_id)
        ).one()
        return _membership(found)


class SqlMembers(Repository, Members):
    """See `Members`."""

    @reads
    def page(self, tx: Transaction, *, limit: int = 50, after: str | None = None) -> Page[Member]:
        # User ids grow with time, so they sort in the order in which people came.
        query = _members(tx)
        return paging.ascending(tx, query, _M.c.user_id, _member, limit=limit, after=after)

    @reads
    def role_of(self, tx: Transaction, user_id: str) -> Role | None:
        return role_in(tx, user_id)

    @writes
    def set_role(self, tx: Transaction, user_id: str, role: Role) -> Member:
        mine = _member_row(tx, user_id)
        if mine is None:
            raise NoSuchRecord("member", user_id)
        if mine.role == "owner" and role != "owner":
            _keep_an_owner(tx, user_id)
        set_member(tx, user_id, role, "grant", mine)
        return _member(tx.execute(_members(tx).where(_M.c.user_id == user_id)).one())

    @writes
    def remove(self, tx: Transaction, user_id: str) -> None:
        mine = _member_row(tx, user_id)
        if mine is None:
            raise NoSuchRecord("member", user_id)
        if mine.role == "owner":
            _keep_an_owner(tx, user_id)
        _remove_member(tx, user_id, mine)


class SqlInvitations(Repository, Invitations):
    """See `Invitations`."""

    @writes
    def add(
        self,
        tx: Transaction,
        email: str,
        role: Role,
        *,
        lifetime: float,
        issuer: str | None = None,
    ) -> tuple[Invitation, Secret]:
        return _invite(tx, email, role, issuer=issuer, lifetime=timedelta(seconds=lifetime))

    @reads
    def page(
        self, tx: Transaction, *, limit: int = 50, after: str | None = None
    ) -> Page[Invitation]:
        query = tx.select(_I)
        return paging.descending(tx, query, _I.c.id, _invitation, limit=limit, after=after)

    @writes
    def revoke(self, tx: Transaction, invitation_id: str) -> None:
        row = tx.one(_I, invitation_id, "invitation")
        if row.used_by is None and not row.revoked:
            tx.update(_I, _I.c.id == invitation_id, revoked=True)
            tx.record("invitation.revoke", "invitation", invitation_id)


def hold_enabled(tx: Transaction, user_id: str) -> None:
    """Keep this user from being disabled until the end of the transaction, which makes a credential
    of theirs: disabling ends all that there are. Raises RegistryRefused `user_disabled`. A tenant
    that is locked as well is locked before."""
    held = sa.select(_U.c.id).where(_U.c.id == user_id, _U.c.enabled.is_(sa.true()))
    if tx.above().execute(held.with_for_update(read=True)).first() is None:
        raise _is_disabled()


def _is_disabled() -> RegistryRefused:
    return RegistryRefused(
        "this user is disabled: ask the administrator of this installation", code="user_disabled"
    )


def role_in(tx: Transaction, user_id: str) -> Role | None:
    """This user's role in the transaction's tenant; None when it has none, or is disabled."""
    role: Role | None = tx.execute(
        tx.select(_M, _M.c.role)
        .join(_U, _U.c.id == _M.c.user_id)
        .where(_M.c.user_id == user_id, _U.c.enabled.is_(sa.true()))
    ).scalar()
    return role


def _check_identity(issuer: str, subject: str) -> None:
    """Raise RegistryRefused for an invalid identity. Cut short, it could be another person's."""
    for field, text in (("issuer", issuer), ("subject", subject)):
        if len(text) > _MAX_IDENTITY:
            raise RegistryRefused(
                f"the {field} is longer than {_MAX_IDENTITY} characters",
                code="invalid",
                field=field,
            )


def _find_user(tx: Transaction, user_id: str) -> User:
    row = tx.execute(sa.select(_U).where(_U.c.id == user_id)).first()
    if row is None:
        raise NoSuchRecord("user", user_id)
    return _user(row)


def _member_row(tx: Transaction, user_id: str) -> Row[Any] | None:
    return tx.execute(tx.select(_M).where(_M.c.user_id == user_id)).first()


def _members(tx: Transaction) -> sa.Select[Any]:
    return tx.select(_M, _M.c.user_id, _M.c.role, _M.c.source, _M.c.since, _U).join(
        _U, _U.c.id == _M.c.user_id
    )


def _owners(tx: Transaction) -> set[str]:
    return set(
        tx.execute(
            tx.select(_M, _M.c.user_id)
            .join(_U, _U.c.id == _M.c.user_id)
            .where(_M.c.role == "owner", _U.c.enabled.is_(sa.true()))
        ).scalars()
    )


def _keep_an_owner(tx: Transaction, user_id: str) -> None:
    if not _owners(tx) - {user_id}:
        raise RegistryRefused(
            "this is the last owner, and a tenant needs one: make another member owner first",
            code="last_owner",
        )


def _remove_member(tx: Transaction, user_id: str, before: Row[Any] | None) -> None:
    assert before is not None
    tx.delete(_M, _M.c.user_id == user_id)
    tokens = schema.access_tokens
    tx.update(tokens, tokens.c.user_id == user_id, tokens.c.revoked.is_(None), revoked=tx.now)
    was = {"role": before.role, "source": before.source}
    tx.record("member.remove", "user", user_id, before=was)
    tx.announce("user", user_id)


def _invite(
    tx: Transaction, email: str, role: Role, *, issuer: str | None, lifetime: timedelta
) -> tuple[Invitation, Secret]:
    email = names.check_text("email", email, 255, least=3)
    if "@" not in email:
        raise RegistryRefused(f'"{email}" is no e-mail address', code="invalid", field="email")
    what = "invitations of a tenant are good at once: revoke some"
    need_room(tx, _I, _is_good(tx), most=tx.limits.invitations_per_tenant, what=what)
    secret, digest = new_secret("tmi")
    invitation_id = new_id()
    tx.insert(
        _I,
        id=invitation_id,
        digest=digest,
        email=email,
        issuer=issuer,
        role=role,
        created=tx.now,
        expires=tx.now + lifetime,
    )
    after = {"email": email, "role": role, "expires": tx.now + lifetime}
    tx.record("invitation.add", "invitation", invitation_id, after=after)
    return _invitation(tx.one(_I, invitation_id, "invitation")), secret


def _is_good(tx: Transaction) -> sa.ColumnElement[bool]:
    """Whether an invitation can be used."""
    return sa.and_(_I.c.used_by.is_(None), _I.c.revoked.is_(sa.false()), _I.c.expires > tx.now)


def _acceptable(tx: Transaction, row: Row[Any] | None) -> Row[Any]:
    """This invitation; raises RegistryRefused when it cannot be used."""
    if row is None or row.revoked:
        raise RegistryRefused(
            "there is no such invitation, or it was revoked: ask for another",
            code="invitation_unknown",
        )
    if row.used_by is not None:
        raise RegistryRefused(
            "this invitation was used already, and each works once: ask for another",
            code="invitation_used",
        )
    if row.expires <= tx.now:
        raise RegistryRefused(
            "this invitation has expired: ask for another", code="invitation_expired"
        )
    return row


def _differs(mine: Row[Any] | None, role: Role | None) -> bool:
    """Whether a membership is to become what the provider claims. A role that a person gave here
    stays as it is."""
    if mine is None:
        return role is not None
    return bool(mine.source != "grant" and mine.role != role)


def _redeem(tx: Transaction, user_id: str, invitation: Row[Any]) -> None:
    """Make the user a member by an invitation that was seen to be good in the locked tenant."""
    tx.update(_I, _I.c.id == invitation.id, used_by=user_id)
    mine = _member_row(tx, user_id)
    if mine is None or ROLES.index(mine.role) < ROLES.index(invitation.role):
        set_member(tx, user_id, invitation.role, "grant", mine)


def _user(row: Row[Any]) -> User:
    return User(
        id=row.id,
        issuer=row.issuer,
        subject=row.subject,
        email=row.email,
        name=row.name,
        enabled=row.enabled,
        created=row.created,
        last_sign_in=row.last_sign_in,
    )


def _membership(row: Row[Any]) -> Membership:
    return Membership(
        tenant_id=row.tenant_id,
        tenant_name=row.name,
        tenant_enabled=row.enabled,
        role=row.role,
        source=row.source,
    )


def _member(row: Row[Any]) -> Member:
    return Member(user=_user(row), role=row.role, source=row.source, since=row.since)


def _invitation(row: Row[Any]) -> Invitation:
    return Invitation(
        id=row.id,
        email=row.email,
        role=row.role,
        issuer=row.issuer,
        created=row.created,
        expires=row.expires,
        used_by=row.used_by,
        revoked=row.revoked,
    )
