"""Leases for remote assistance, SSH keys of people, tickets."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"

_JSON = sa.JSON().with_variant(JSONB(), "postgresql")
_ID = sa.String(36)
_TIME = sa.DateTime(timezone=True)


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False, server_default="")


def upgrade() -> None:
    """To this version."""
    _serial_keys()
    op.add_column("device_states", sa.Column("assist", _JSON, nullable=True))
    for column in (
        sa.Column("kind", sa.String(16), nullable=False, server_default="person"),
        sa.Column("rights", _JSON, nullable=False, server_default="[]"),
        sa.Column("sealed", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("addresses", _JSON, nullable=False, server_default="[]"),
        sa.Column("approval", sa.String(16), nullable=False, server_default="not_needed"),
        sa.Column("decided_by", _ID, nullable=False, server_default=""),
        sa.Column("decided", _TIME, nullable=True),
        _text("created_by_name"),
        _text("ended_by_name"),
    ):
        op.add_column("leases", column)
    op.create_index(op.f("ix_leases_ended_ends"), "leases", ["ended", "ends"])
    _ssh_keys()
    _tickets()


def _serial_keys() -> None:
    op.add_column(
        "devices", sa.Column("serial_key", sa.String(255), nullable=False, server_default="")
    )
    op.create_index(op.f("ix_devices_tenant_id_serial_key"), "devices", ["tenant_id", "serial_key"])
    devices = sa.table(
        "devices",
        sa.column("id", sa.String),
        sa.column("serial", sa.String),
        sa.column("serial_key", sa.String),
    )
    connection = op.get_bind()
    for row in connection.execute(sa.select(devices).where(devices.c.serial != "")).all():
        key = row.serial.strip().casefold()[:255]
        connection.execute(devices.update().where(devices.c.id == row.id).values(serial_key=key))


def _ssh_keys() -> None:
    op.create_table(
        "ssh_keys",
        sa.Column("id", _ID, nullable=False),
        sa.Column("user_id", _ID, nullable=False),
        _text("name"),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("line", sa.Text, nullable=False),
        sa.Column("created", _TIME, nullable=False),
        sa.Column("last_used", _TIME, nullable=True),
        _text("last_address"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ssh_keys")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_ssh_keys_user_id_users")),
        sa.UniqueConstraint("fingerprint", name=op.f("uq_ssh_keys_fingerprint")),
    )
    op.create_index(op.f("ix_ssh_keys_user_id"), "ssh_keys", ["user_id"])


def _tickets() -> None:
    op.create_table(
        "tickets",
        sa.Column("id", _ID, nullable=False),
        sa.Column("tenant_id", _ID, nullable=False),
        sa.Column("device_id", _ID, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("user_id", _ID, nullable=False),
        sa.Column("lease_id", _ID, nullable=True),
        sa.Column("created", _TIME, nullable=False),
        sa.Column("expires", _TIME, nullable=False),
        sa.Column("used", _TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tickets")),
        sa.ForeignKeyConstraint(
            ["tenant_id", "device_id"],
            ["devices.tenant_id", "devices.id"],
            name=op.f("fk_tickets_tenant_id_device_id_devices"),
            ondelete="CASCADE",
        ),
        sa.UniqueConstraint("digest", name=op.f("uq_tickets_digest")),
    )
    op.create_index(op.f("ix_tickets_expires"), "tickets", ["expires"])
