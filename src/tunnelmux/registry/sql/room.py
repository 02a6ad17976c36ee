"""Bounds how many records of a kind there are, so that one member cannot fill the database."""

from __future__ import annotations

import sqlalchemy as sa

from tunnelmux.errors import RegistryRefused
from tunnelmux.registry.sql.transaction import Transaction

__all__ = ["need_room"]


def need_room(
    tx: Transaction, table: sa.Table, *where: sa.ColumnElement[bool], most: int, what: str
) -> None:
    """Raise RegistryRefused `too_many` if `most` of this tenant's rows are like this. `what` says
    what they are: "at most 100 access tokens of a person are valid: revoke some"."""
    query = tx.select(table, sa.func.count()).where(*where)
    if tx.execute(query).scalar_one() >= most:
        raise RegistryRefused(f"at most {most} {what}", code="too_many")
