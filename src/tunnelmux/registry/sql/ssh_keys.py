"""SSH keys of people, and tickets, in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from tunnelmux.config import Secret
from tunnelmux.errors import NoSuchRecord, RegistryRefused
from tunnelmux.registry import names
from tunnelmux.registry.ids import new_id
from tunnelmux.registry.sql import schema
from tunnelmux.registry.sql.devices import find_device
from tunnelmux.registry.sql.leases import find_lease
from tunnelmux.registry.sql.secrets import digest_of, new_secret
from tunnelmux.registry.sql.ssh_rules import certified_user
from tunnelmux.registry.sql.transaction import Repository, Transaction, reads, writes
from tunnelmux.registry.ssh_keys import SshKey, SshKeys, Ticket, Tickets, parse_public_key
from tunnelmux.registry.ssh_rules import CertifiedUser

__all__ = ["SqlSshKeys", "SqlTickets", "TicketDesk"]

_K = schema.ssh_keys
_U = schema.users
_T = schema.tickets
_M = schema.memberships

_LONGEST_TICKET = 600.0
# Seconds: a ticket is for a command that a person runs at once.


class SqlSshKeys(Repository, SshKeys):
    """See `SshKeys`."""

    @writes
    def add(self, tx: Transaction, user_id: str, key: str, name: str = "") -> SshKey:
        public = parse_public_key(key)
        # Locked, so that two at once are counted as two.
        user = tx.execute(
            sa.select(_U.c.id).where(_U.c.id == user_id).with_for_update(key_share=True)
        ).first()
        if user is None:
            raise NoSuchRecord("user", user_id)
        # The same answer in all cases, so that a person cannot learn whose key it is.
        if tx.execute(sa.select(_K.c.id).where(_K.c.fingerprint == public.fingerprint)).first():
            raise RegistryRefused("this key is registered already", code="taken", field="key")
        count: int = tx.execute(
            sa.select(sa.func.count()).select_from(_K).where(_K.c.user_id == user_id)
        ).scalar_one()
        if count >= tx.limits.ssh_keys_per_person:
            raise RegistryRefused(
                f"a person has at most {tx.limits.ssh_keys_per_person} keys: remove one",
                code="too_many",
            )
        key_id = new_id()
        name = names.check_text("name", name or public.comment, 255)
        tx.execute(
            _K.insert().values(
                id=key_id,
                user_id=user_id,
                name=name,
                fingerprint=public.fingerprint,
                line=public.line,
                created=tx.now,
            )
        )
        after = {"user": user_id, "name": name, "fingerprint": public.fingerprint}
        tx.record("ssh_key.add", "ssh_key", key_id, after=after)
        tx.announce("user", user_id)
        return _key(tx.execute(sa.select(_K).where(_K.c.id == key_id)).one())

    @reads
    def of_user(self, tx: Transaction, user_id: str) -> list[SshKey]:
        query = sa.select(_K).where(_K.c.user_id == user_id).order_by(_K.c.id.desc())
        return [_key(row) for row in tx.execute(query)]

    @reads
    def find(self, tx: Transaction, fingerprint: str) -> SshKey | None:
        row = tx.execute(
            sa.select(_K)
            .join(_U, _U.c.id == _K.c.user_id)
            .where(_K.c.fingerprint == fingerprint, _U.c.enabled.is_(sa.true()))
        ).first()
        return _key(row) if row is not None else None

    @reads
    def certified(
        self, tx: Transaction, authority: str, principals: Sequence[str]
    ) -> CertifiedUser | None:
        return certified_user(tx, authority, principals)

    @writes
    def used(self, tx: Transaction, key_id: str, address: str) -> None:
        values = {"last_used": tx.now, "last_address": address[:64]}
        tx.execute(_K.update().where(_K.c.id == key_id).values(**values))

    @writes
    def remove(self, tx: Transaction, key_id: str, *, user_id: str) -> None:
        mine = sa.and_(_K.c.id == key_id, _K.c.user_id == user_id)
        row = tx.execute(sa.select(_K).where(mine)).first()
        if row is None:
            raise NoSuchRecord("SSH key", key_id)
        tx.execute(_K.delete().where(mine))
        before = {"user": user_id, "name": row.name, "fingerprint": row.fingerprint}
        tx.record("ssh_key.remove", "ssh_key", key_id, before=before)
        tx.announce("user", user_id)


class SqlTickets(Repository, Tickets):
    """See `Tickets`."""

    @writes
    def add(
        self,
        tx: Transaction,
        *,
        user_id: str,
        device_id: str,
        lease_id: str | None = None,
        lifetime: float = 300.0,
    ) -> tuple[Ticket, Secret]:
        find_device(tx, device_id)
        if not 0 < lifetime <= _LONGEST_TICKET:
            raise RegistryRefused(
                f"a ticket is valid for {_LONGEST_TICKET / 60:g} minutes at most",
                code="invalid",
                field="lifetime",
            )
        if lease_id is not None:
            lease = find_lease(tx, lease_id)
            if lease.device_id != device_id or lease.holder != user_id:
                raise NoSuchRecord("lease", lease_id)
            if lease.state(tx.now) != "running":
                raise RegistryRefused("this lease is not running", code="lease_over")
        secret, digest = new_secret("ticket")
        ticket_id = new_id()
        expires = tx.now + timedelta(seconds=lifetime)
        names_ = {"user_id": user_id, "device_id": device_id, "lease_id": lease_id}
        tx.insert(_T, id=ticket_id, digest=digest, created=tx.now, expires=expires, **names_)
        tx.record("ticket.add", "ticket", ticket_id, after=names_ | {"expires": expires})
        return _ticket(tx.one(_T, ticket_id, "ticket")), secret


class TicketDesk(Repository):
    """Redeems tickets of all tenants."""

    @writes
    def redeem(self, tx: Transaction, secret: Secret, address: str) -> Ticket | None:
        """See `Registry.redeem_ticket`."""
        fresh = sa.and_(_T.c.digest == digest_of(secret), _T.c.used.is_(None))
        asked = (
            sa.select(_T)
            .join(_U, _U.c.id == _T.c.user_id)
            .join(_M, sa.and_(_M.c.user_id == _T.c.user_id, _M.c.tenant_id == _T.c.tenant_id))
            .where(fresh, _T.c.expires > tx.now, _U.c.enabled.is_(sa.true()))
        )
        row = tx.execute(asked).first()
        if row is None:
            return None
        inner = tx.within(row.tenant_id)
        # When two use it at once, one of them finds it used; and its owner may have left meanwhile.
        if tx.execute(asked).first() is None:
            return None
        inner.update(_T, _T.c.id == row.id, used=tx.now)
        inner.record("ticket.use", "ticket", row.id, after={"address": address[:64]})
        return _ticket(row)


def _key(row: Row[Any]) -> SshKey:
    return SshKey(
        id=row.id,
        user_id=row.user_id,
        name=row.name,
        fingerprint=row.fingerprint,
        line=row.line,
        created=row.created,
        last_used=row.last_used,
        last_address=row.last_address,
    )


def _ticket(row: Row[Any]) -> Ticket:
    return Ticket(
        id=row.id,
        tenant_id=row.tenant_id,
        user_id=row.user_id,
        device_id=row.device_id,
        lease_id=row.lease_id,
        expires=row.expires,
    )
