"""The commands for whoever operates it: stats, migrate."""

from __future__ import annotations

from typing import Annotated

import typer

from customer_jobs.cli.exits import examples

commands = typer.Typer()


@commands.command(epilog=examples("customer-jobs stats", "customer-jobs stats --json | jq .outbox_lag"))
def stats(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False) -> None:
    """Show how things stand: jobs by kind and state, what is due, events not published yet, leader and workers."""
    from customer_jobs.cli import show
    from customer_jobs.database import database_url, open_engine
    from customer_jobs.stats import stats as look

    engine = open_engine(database_url())
    try:
        found = look(engine)
    finally:
        engine.dispose()
    if as_json:
        show.document(found.to_dict())
    else:
        show.stats(found)


@commands.command(
    epilog=examples(
        "DATABASE_URL=postgresql://app@localhost/app customer-jobs migrate",
        "customer-jobs migrate --sql > migrate.sql",
    )
)
def migrate(
    sql: Annotated[
        bool, typer.Option("--sql", help="Print the SQL for a new database instead; connect to nothing.")
    ] = False,
) -> None:
    """Bring the database up to date.

    That is the one of DATABASE_URL. It is safe to run this again, and by several at once. On PostgreSQL the tables live
    in a schema of their own, `customer_jobs`; DATABASE_SCHEMA changes it.
    """
    from customer_jobs.database import database_url, open_engine
    from customer_jobs.migrate import migrate as bring_up_to_date
    from customer_jobs.migrate import migration_sql

    url = database_url()
    if sql:
        print(migration_sql(url), end="")
        return
    engine = open_engine(url)
    try:
        applied = bring_up_to_date(engine)
    finally:
        engine.dispose()
    for revision in applied:
        print(f"applied {revision}")
    print("the database is up to date" if applied else "nothing to do: the database is up to date")
