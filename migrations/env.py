"""How Alembic meets a database: where our tables are, who goes first, and what `alembic check` looks at."""

import warnings
from typing import Any

from alembic import context
from sqlalchemy import BLANK_SCHEMA, Connection, MetaData, text
from sqlalchemy.exc import SAWarning

from customer_jobs import schema as tables
from customer_jobs.database import database_url, open_engine, schema_name
from customer_jobs.errors import CustomerJobsError
from customer_jobs.migrate import version_table
from customer_jobs.patience import for_as_long_as_it_takes

LOCK_KEY = int.from_bytes(b"custjobs", "big")  # Of the advisory lock; nobody else's, as far as eight letters go.
TURN_SECONDS = 60  # For whoever migrates at the same time to finish.
LOCK_TIMEOUT_SECONDS = 5  # A migration that waits longer for a table holds up every query that queues behind it.
# Constraints that only one of the databases has need of.
ONLY_ON = dict.fromkeys(
    ("jobs_due_at_format", "jobs_created_at_format", "jobs_id_format", "jobs_numbers", "jobs_ascii"), "sqlite"
) | dict.fromkeys(("jobs_due_at_range", "jobs_created_at_range"), "postgresql")


def main() -> None:
    attributes = context.config.attributes
    schema: str = attributes.get("schema") or schema_name()
    if context.is_offline_mode():
        write_script(attributes.get("url") or database_url(), schema)
    elif connection := attributes.get("connection"):
        migrate(connection, schema)
    else:
        engine = open_engine(database_url())
        with engine.connect() as connection:
            # Alembic calls the default schema None; ours keeps its name even if the search_path leads there.
            connection.dialect.default_schema_name = "pg_catalog"
            migrate(connection, schema)
        engine.dispose()


def migrate(connection: Connection, schema: str) -> None:
    # The migrations name the schema themselves; an engine that translates it must not do so once more.
    connection = connection.execution_options(schema_translate_map=None)
    if connection.dialect.name == "postgresql":
        # Under any other level the one who waited would not see what the other has done.
        connection = connection.execution_options(isolation_level="READ COMMITTED")
    context.configure(connection=connection, **options(connection.dialect.name, schema))
    # An index on millions of rows takes minutes.
    with (
        for_as_long_as_it_takes(connection.connection.driver_connection),
        context.begin_transaction(),
        warnings.catch_warnings(),
    ):
        # SQLite's indexes on expressions cannot be read back; tests/integration/test_migrations.py compares them.
        warnings.filterwarnings("ignore", "Skipped unsupported reflection of expression-based index", SAWarning)
        warnings.filterwarnings("ignore", "autogenerate skipping", UserWarning)
        if connection.dialect.name == "postgresql":
            take_turn()
            if not connection.scalar(text("SELECT to_regnamespace(:name)"), {"name": quoted(schema)}):
                # Only then, since IF NOT EXISTS still asks for the right to create one.
                context.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(schema)}")
            context.execute("SET LOCAL search_path = pg_catalog")  # Whoever forgets to name the schema finds nothing.
            allow_little_waiting()
        elif not connection.connection.driver_connection.in_transaction:  # type: ignore[union-attr]
            # An engine other than ours leaves it to the driver, which begins none for DDL.
            context.execute("BEGIN IMMEDIATE")
        refuse_clash(connection, schema)
        context.run_migrations()


def write_script(url: Any, schema: str) -> None:
    dialect = url.get_backend_name()
    context.configure(url=url, literal_binds=True, dialect_opts={"paramstyle": "named"}, **options(dialect, schema))
    with context.begin_transaction():
        if dialect == "postgresql":
            context.execute("SET LOCAL client_encoding = 'UTF8'")
            take_turn()
            context.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(schema)}")
            allow_little_waiting()
        context.run_migrations()


def options(dialect: str, schema: str) -> dict[str, Any]:
    target = tables_in(schema if dialect == "postgresql" else None)
    names = {table.name for table in target.tables.values()}
    applied: list[str] = context.config.attributes.get("applied", [])

    def include_name(name: str | None, type_: str, parents: Any) -> bool:
        if type_ == "schema":
            return name == target.schema
        return type_ != "table" or (name in names and parents["schema_name"] == target.schema)

    def include_object(_: Any, name: str | None, type_: str, *__: Any) -> bool:
        return type_ != "check_constraint" or ONLY_ON.get(name or "", dialect) == dialect

    return {
        "target_metadata": target,
        "transactional_ddl": True,  # Of SQLite, too, now that no driver commits by itself.
        "include_schemas": dialect == "postgresql",
        "include_name": include_name,
        "include_object": include_object,
        # SQLite tells '' from nothing and a numbered row from another in no way that Alembic reads.
        "compare_server_default": dialect == "postgresql",
        "autogenerate_plugins": ["alembic.autogenerate.*", "alembic.ext.checkconstraint_byname"],
        "on_version_apply": lambda step, **_: applied.append(step.up_revision_id),
        **version_table(dialect, schema),
    }


def tables_in(schema: str | None) -> MetaData:
    """Our tables as they are called in that schema, for Alembic does not translate schemas."""
    target = MetaData(schema=schema, naming_convention=tables.metadata.naming_convention)
    for table in tables.metadata.sorted_tables:
        table.to_metadata(target, schema=schema, referred_schema_fn=lambda *_: schema or BLANK_SCHEMA)  # type: ignore[arg-type]
    return target


def quoted(schema: str) -> str:
    return context.get_context().dialect.identifier_preparer.quote_identifier(schema)


def take_turn() -> None:
    context.execute(f"SET LOCAL lock_timeout = '{TURN_SECONDS}s'")
    context.execute(f"SELECT pg_advisory_xact_lock({LOCK_KEY})")


def allow_little_waiting() -> None:
    context.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'")


def refuse_clash(connection: Connection, schema: str) -> None:
    """Raise if a database that we have never migrated already has something with one of our names."""
    if context.get_context().get_current_heads():
        return
    ours = {table.name for table in tables.metadata.tables.values()}
    ours |= {str(index.name) for table in tables.metadata.tables.values() for index in table.indexes}
    if connection.dialect.name == "postgresql":
        place = f"schema {schema!r}"
        remedy = "choose another schema with DATABASE_SCHEMA"
        present = connection.scalars(
            text("SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(:name)"), {"name": quoted(schema)}
        )
    else:
        place = "this SQLite database"
        remedy = "give customer-jobs a file of its own with CUSTOMER_JOBS_DATABASE_URL"
        present = connection.scalars(text("SELECT lower(name) FROM sqlite_master"))
    if clash := sorted(ours & set(present)):
        raise CustomerJobsError(
            f"{place} already has {', '.join(map(repr, clash))}, not made by customer-jobs; nothing was written; "
            f"{remedy}"
        )


main()
