"""Networks from which a tenant's people may use the SSH gateway."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0012"
down_revision = "0011"

_JSON = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    """To this version."""
    op.add_column("ssh_rules", sa.Column("addresses", _JSON, server_default="[]", nullable=False))
