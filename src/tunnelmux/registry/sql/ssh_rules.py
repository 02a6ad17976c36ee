"""A tenant's rules for SSH in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import sqlalchemy as sa

from tunnelmux.errors import RegistryRefused
from tunnelmux.registry import names
from tunnelmux.registry.sql import schema
from tunnelmux.registry.sql.transaction import Repository, Transaction, reads, writes
from tunnelmux.registry.ssh_keys import parse_public_key
from tunnelmux.registry.ssh_rules import CertifiedUser, RecordingFailure, SshRules, TenantSsh

__all__ = ["SqlTenantSsh", "certified_user"]

_R = schema.ssh_rules
_A = schema.ssh_authorities
_U = schema.users
_M = schema.memberships
_T = schema.tenants

_MOST_AUTHORITIES = 10
# Authorities of one tenant: one in use and its successor, for a few issuers.


class SqlTenantSsh(Repository, TenantSsh):
    """See `TenantSsh`."""

    @reads
    def find(self, tx: Transaction) -> SshRules:
        return _rules(tx)

    @writes
    def change(
        self,
        tx: Transaction,
        *,
        record_input: bool | None = None,
        on_recording_failure: RecordingFailure | None = None,
        user_authorities: list[str] | None = None,
        addresses: list[str] | None = None,
    ) -> SshRules:
        before = _rules(tx)
        after = before
        keys: dict[str, str] = {}
        if record_input is not None:
            after = replace(after, record_input=record_input)
        if on_recording_failure is not None:
            after = replace(after, on_recording_failure=on_recording_failure)
        if addresses is not None:
            after = replace(after, addresses=tuple(names.check_networks("addresses", addresses)))
        if user_authorities is not None:
            keys = {key.fingerprint: key.line for key in map(parse_public_key, user_authorities)}
            if len(keys) > _MOST_AUTHORITIES:
                raise RegistryRefused(
                    f"a tenant trusts at most {_MOST_AUTHORITIES} authorities: remove one",
                    code="too_many",
                    field="user_authorities",
                )
            after = replace(after, user_authorities=tuple(sorted(keys.values())))
        if after == before:
            return before
        if user_authorities is not None:
            tx.delete(_A)
            for fingerprint, line in keys.items():
                tx.insert(_A, fingerprint=fingerprint, line=line)
        values = {
            "record_input": after.record_input,
            "on_recording_failure": after.on_recording_failure,
            "addresses": list(after.addresses),
        }
        if not tx.update(_R, **values):
            tx.insert(_R, **values)
        tx.record(
            "tenant.change_ssh", "tenant", tx.tenant, before=_told(before), after=_told(after)
        )
        tx.announce("tenant", tx.tenant)
        return after

    @reads
    def trusts(self, tx: Transaction, fingerprint: str) -> bool:
        query = tx.select(_A).where(_A.c.fingerprint == fingerprint)
        return tx.execute(query).first() is not None


def certified_user(
    tx: Transaction, fingerprint: str, principals: Sequence[str]
) -> CertifiedUser | None:
    """See `SshKeys.certified`."""
    # Without the empty one, which is the address of all whose provider has verified none.
    addresses = {principal.lower() for principal in principals if principal}
    rows = tx.execute(
        sa.select(_A.c.tenant_id, _M.c.user_id)
        .join(_M, _M.c.tenant_id == _A.c.tenant_id)
        .join(_U, _U.c.id == _M.c.user_id)
        .join(_T, _T.c.id == _A.c.tenant_id)
        .where(
            _A.c.fingerprint == fingerprint,
            sa.func.lower(_U.c.email).in_(addresses),
            _U.c.enabled.is_(sa.true()),
            _T.c.enabled.is_(sa.true()),
        )
        .limit(2)
    ).all()
    # With two members of that address, it is neither: the order of rows must not decide.
    if len(rows) != 1:
        return None
    return CertifiedUser(tenant_id=rows[0].tenant_id, user_id=rows[0].user_id)


def _rules(tx: Transaction) -> SshRules:
    row = tx.execute(tx.select(_R)).first()
    lines = tx.execute(tx.select(_A, _A.c.line).order_by(_A.c.line)).scalars()
    if row is None:
        return SshRules(user_authorities=tuple(lines))
    return SshRules(
        record_input=row.record_input,
        on_recording_failure=cast("RecordingFailure", row.on_recording_failure),
        addresses=tuple(row.addresses),
        user_authorities=tuple(lines),
    )


def _told(rules: SshRules) -> dict[str, Any]:
    return {
        "record_input": rules.record_input,
        "on_recording_failure": rules.on_recording_failure,
        "user_authorities": list(rules.user_authorities),
        "addresses": list(rules.addresses),
    }
