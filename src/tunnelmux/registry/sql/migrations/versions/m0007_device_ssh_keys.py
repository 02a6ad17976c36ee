"""SSH keys of devices."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_ID = sa.String(length=36)
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """To this version."""
    op.create_table(
        "device_ssh_keys",
        sa.Column("id", _ID, nullable=False),
        sa.Column("tenant_id", _ID, nullable=False),
        sa.Column("device_id", _ID, nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("line", sa.Text(), nullable=False),
        sa.Column("created", _TIME, nullable=False),
        sa.Column("expires", _TIME, nullable=False),
        sa.Column("last_used", _TIME, nullable=True),
        sa.Column("last_address", sa.Text(), server_default="", nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "device_id"],
            ["devices.tenant_id", "devices.id"],
            name=op.f("fk_device_ssh_keys_tenant_id_device_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_device_ssh_keys")),
        sa.UniqueConstraint("fingerprint", name=op.f("uq_device_ssh_keys_fingerprint")),
    )
    for columns in (("tenant_id", "device_id"), ("expires",)):
        name = op.f(f"ix_device_ssh_keys_{'_'.join(columns)}")
        op.create_index(name, "device_ssh_keys", [*columns])
    op.add_column("credentials", sa.Column("ssh_key_id", _ID, nullable=True))
