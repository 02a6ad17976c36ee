"""The host keys of devices' SSH servers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """To this version."""
    op.add_column("devices", sa.Column("host_key", sa.Text(), server_default="", nullable=False))
