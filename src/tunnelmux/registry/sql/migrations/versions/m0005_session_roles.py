"""The role that a browser session's secret was made for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """To this version. Earlier sessions have no role yet: the next request renews their secret."""
    op.add_column("browser_sessions", sa.Column("role", sa.String(length=16), nullable=True))
