"""Memberships in SQL: making a person a member of a tenant."""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import Row

from tunnelmux.registry.people import Role
from tunnelmux.registry.sql import schema
from tunnelmux.registry.sql.transaction import Transaction

__all__ = ["set_member"]

_M = schema.memberships


def set_member(
    tx: Transaction, user_id: str, role: Role, source: str, before: Row[Any] | None
) -> None:
    """Give a user a role in the transaction's tenant; `before` is the current membership."""
    if before is None:
        tx.insert(_M, user_id=user_id, role=role, source=source, since=tx.now)
    else:
        tx.update(_M, _M.c.user_id == user_id, role=role, source=source)
    tx.record(
        "member.add" if before is None else "member.change",
        "user",
        user_id,
        before=None if before is None else {"role": before.role, "source": before.source},
        after={"role": role, "source": source},
    )
    tx.announce("user", user_id)
