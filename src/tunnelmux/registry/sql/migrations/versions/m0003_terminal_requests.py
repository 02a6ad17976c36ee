"""Terminals that people sign in."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """To this version."""
    op.create_table(
        "terminal_requests",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("code_digest", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("client", sa.Text(), server_default="", nullable=False),
        sa.Column("address", sa.Text(), server_default="", nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_terminal_requests")),
        sa.UniqueConstraint("digest", name=op.f("uq_terminal_requests_digest")),
    )
    op.create_index(
        op.f("ix_terminal_requests_code_digest"),
        "terminal_requests",
        ["code_digest"],
        unique=False,
    )
    op.create_index(
        op.f("ix_terminal_requests_expires"), "terminal_requests", ["expires"], unique=False
    )
