"""Tenants' rules for SSH sessions, and the authorities they trust."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """To this version."""
    op.create_table(
        "ssh_rules",
        sa.Column("tenant_id", sa.String(length=36), nullable=False),
        sa.Column("record_input", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("on_recording_failure", sa.String(length=16), server_default="", nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_ssh_rules_tenant_id_tenants")
        ),
        sa.PrimaryKeyConstraint("tenant_id", name=op.f("pk_ssh_rules")),
    )
    op.create_table(
        "ssh_authorities",
        sa.Column("tenant_id", sa.String(length=36), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("line", sa.Text(), server_default="", nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_ssh_authorities_tenant_id_tenants")
        ),
        sa.PrimaryKeyConstraint("tenant_id", "fingerprint", name=op.f("pk_ssh_authorities")),
    )
    op.create_index(
        op.f("ix_ssh_authorities_fingerprint"), "ssh_authorities", ["fingerprint"], unique=False
    )
