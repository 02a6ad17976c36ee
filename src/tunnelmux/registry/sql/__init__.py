"""The registry on SQLite and PostgreSQL: SQLAlchemy Core, in threads. Nothing else knows SQL."""

from __future__ import annotations

from tunnelmux.registry.sql.registry import open_sql_registry
from tunnelmux.registry.sql.upgrade import upgrade_database

__all__ = ["open_sql_registry", "upgrade_database"]
