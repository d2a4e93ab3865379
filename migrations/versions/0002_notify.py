"""Wake the dispatcher and the relay at once when jobs or events are inserted (PostgreSQL only).

A trigger for each statement notifies the channel that is named like the schema; the payload is `jobs` or `events`.
Both also poll, so nothing is lost without it. Transactions that notify commit one at a time, which may be too dear
where very many insert at once (https://www.postgresql.org/docs/current/sql-notify.html). To switch it off:

    ALTER TABLE customer_jobs.jobs DISABLE TRIGGER jobs_notify;
    ALTER TABLE customer_jobs.events DISABLE TRIGGER events_notify;

SQLite has no notifications; there this migration changes nothing.
"""

from alembic import op

revision = "0002_notify"
down_revision = "0001_tables"
branch_labels = None
depends_on = None

TABLES = ("jobs", "events")


def upgrade() -> None:
    if op.get_context().dialect.name != "postgresql":
        return
    schema = quoted_schema()
    op.execute(f"""
        CREATE FUNCTION {schema}.notify_inserted() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_catalog.pg_notify(TG_TABLE_SCHEMA, TG_TABLE_NAME);
            RETURN NULL;
        END
        $$
    """)
    for table in TABLES:
        op.execute(f"""
            CREATE TRIGGER {table}_notify AFTER INSERT ON {schema}.{table}
            FOR EACH STATEMENT EXECUTE FUNCTION {schema}.notify_inserted()
        """)


def downgrade() -> None:
    if op.get_context().dialect.name != "postgresql":
        return
    schema = quoted_schema()
    for table in TABLES:
        op.execute(f"DROP TRIGGER {table}_notify ON {schema}.{table}")
    op.execute(f"DROP FUNCTION {schema}.notify_inserted()")


def quoted_schema() -> str:
    context = op.get_context()
    return context.dialect.identifier_preparer.quote_identifier(str(context.version_table_schema))
