"""Host keys that devices report, until a person accepts them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """To this version."""
    column = sa.Column("reported_host_keys", sa.Text(), server_default="", nullable=False)
    op.add_column("devices", column)
