"""Who may visit: rules of services, links, and the keys that check visitors' signed tickets."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0004"
down_revision = "0003"

_JSON = sa.JSON().with_variant(JSONB(), "postgresql")
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """To this version."""
    _access_rules()
    _service_links()
    _signing_keys()


def _access_rules() -> None:
    op.create_table(
        "access_rules",
        sa.Column("tenant_id", sa.String(length=36), nullable=False),
        sa.Column("device_id", sa.String(length=36), nullable=False),
        sa.Column("service", sa.String(length=63), nullable=False),
        sa.Column("rule", _JSON, nullable=False),
        sa.Column("changed", _TIME, nullable=False),
        sa.Column("changed_by", sa.String(length=36), server_default="", nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "device_id"],
            ["devices.tenant_id", "devices.id"],
            name=op.f("fk_access_rules_tenant_id_device_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("device_id", "service", name=op.f("pk_access_rules")),
    )


def _service_links() -> None:
    op.create_table(
        "service_links",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("tenant_id", sa.String(length=36), nullable=False),
        sa.Column("device_id", sa.String(length=36), nullable=False),
        sa.Column("service", sa.String(length=63), nullable=False),
        sa.Column("note", sa.Text(), server_default="", nullable=False),
        sa.Column("once", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("uses", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("last_used", _TIME, nullable=True),
        sa.Column("created", _TIME, nullable=False),
        sa.Column("created_by", sa.String(length=36), server_default="", nullable=False),
        sa.Column("ends", _TIME, nullable=False),
        sa.Column("revoked", _TIME, nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id", "device_id"],
            ["devices.tenant_id", "devices.id"],
            name=op.f("fk_service_links_tenant_id_device_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_service_links")),
    )
    op.create_index(op.f("ix_service_links_ends"), "service_links", ["ends"], unique=False)
    op.create_index(
        op.f("ix_service_links_tenant_id_device_id_id"),
        "service_links",
        ["tenant_id", "device_id", "id"],
        unique=False,
    )


def _signing_keys() -> None:
    op.create_table(
        "signing_keys",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("maker", sa.String(length=16), nullable=False),
        sa.Column("public", sa.LargeBinary(), nullable=False),
        sa.Column("url", sa.Text(), server_default="", nullable=False),
        sa.Column("created", _TIME, nullable=False),
        sa.Column("ends", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_signing_keys")),
    )
