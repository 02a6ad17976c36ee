"""Run by Alembic: migrate on the connection that `upgrade` has opened, in its transaction."""

from __future__ import annotations

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=context.config.attributes["metadata"],
    render_as_batch=True,
    compare_type=True,
)
context.run_migrations()
