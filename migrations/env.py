"""Alembic's entry: migrate the connection that kasmina/infra/migrate.py hands over."""

from alembic import context

from kasmina.infra import schema

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=schema.metadata,
    version_table=schema.VERSION_TABLE,
)
# The caller holds the database's write lock, and its transaction is the only one.
context.run_migrations()
