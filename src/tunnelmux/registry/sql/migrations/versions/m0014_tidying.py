"""Where each audit begins, once its oldest entries were deleted; which requests were looked up."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """To this version."""
    op.add_column(
        "tenants", sa.Column("audit_cut", sa.BigInteger(), server_default="0", nullable=False)
    )
    op.add_column(
        "tenants",
        sa.Column("audit_cut_hash", sa.String(length=64), server_default="0" * 64, nullable=False),
    )
    for table in ("pairings", "terminal_requests"):
        seen = sa.Column[bool]("seen", sa.Boolean(), server_default=sa.false(), nullable=False)
        op.add_column(table, seen)
