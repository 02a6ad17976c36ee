"""Recordings of people's sessions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_ID = sa.String(length=36)
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """To this version."""
    op.create_table(
        "recordings",
        sa.Column("id", _ID, nullable=False),
        sa.Column("tenant_id", _ID, nullable=False),
        sa.Column("device_id", _ID, nullable=False),
        sa.Column("device_label", sa.Text(), server_default="", nullable=False),
        sa.Column("user_id", _ID, server_default="", nullable=False),
        sa.Column("user_name", sa.Text(), server_default="", nullable=False),
        sa.Column("account", sa.Text(), server_default="", nullable=False),
        sa.Column("address", sa.Text(), server_default="", nullable=False),
        sa.Column("lease_id", _ID, server_default="", nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("command", sa.Text(), server_default="", nullable=False),
        sa.Column("gateway", sa.Text(), server_default="", nullable=False),
        sa.Column("began", _TIME, nullable=False),
        sa.Column("expires", _TIME, nullable=False),
        sa.Column("ended", _TIME, nullable=True),
        sa.Column("size", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("sha256", sa.Text(), server_default="", nullable=False),
        sa.Column("problem", sa.Text(), server_default="", nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_recordings_tenant_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_recordings")),
    )
    for columns in (("tenant_id", "id"), ("tenant_id", "device_id"), ("tenant_id", "user_id")):
        op.create_index(op.f(f"ix_recordings_{'_'.join(columns)}"), "recordings", [*columns])
    op.create_index(op.f("ix_recordings_expires"), "recordings", ["expires"])
