"""The migrations, run by Alembic; each file is one version of the database."""
