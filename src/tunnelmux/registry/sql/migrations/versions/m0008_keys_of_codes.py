"""The fingerprint of the key by which the holder of a device's code is known."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """To this version."""
    op.add_column(
        "leases",
        sa.Column("key_fingerprint", sa.String(length=64), server_default="", nullable=False),
    )
    op.create_index(op.f("ix_leases_key_fingerprint"), "leases", ["key_fingerprint"])
