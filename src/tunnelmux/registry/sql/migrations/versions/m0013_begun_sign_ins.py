"""Begun sign-ins are kept by browsers only: each session has a person."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """To this version. Sign-ins that are under way at this moment have to be begun again."""
    op.execute("DELETE FROM browser_sessions WHERE user_id IS NULL")
    with op.batch_alter_table("browser_sessions") as table:
        table.drop_column("pending")
        table.alter_column("user_id", existing_type=sa.String(length=36), nullable=False)
