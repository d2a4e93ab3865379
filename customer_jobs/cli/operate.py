"""The commands for whoever operates it: stats, health, doctor, migrate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from customer_jobs.cli.exits import Exit, examples

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from customer_jobs.checks import Check

PING_SECONDS = 2.0  #: A worker answers in milliseconds, on a busy machine within this.

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document, nothing else.")]

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
        "customer-jobs health",
        "customer-jobs health --json | jq '.checks[] | select(.level != \"ok\")'",
        'customer-jobs health --worker "celery@$(hostname)"',
    )
)
def health(
    worker: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only whether this worker does its part, as a probe asks.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether jobs are consumed; exit 1 if not, 4 if the database or Redis is out of reach.

    Looked at is what was done lately, not which processes live: that the leader looks for due jobs, that none waits
    without a reason, that messages are taken and events are published. The answer is there within five seconds.

    With --worker it is asked whether starting that worker anew would help. An outage of the database or of Redis is
    none of its faults, and exits with 0.
    """
    from customer_jobs import health as looks
    from customer_jobs.stream import connect, redis_url

    with _database() as engine:
        if worker is not None:
            from customer_jobs.cli import checkout

            checkout.root()
            connect(redis_url()).close()
            found = looks.health_of_worker(engine, worker, lambda: checkout.ping(worker, seconds=PING_SECONDS))
        else:
            client = connect(redis_url())
            found = looks.health(engine, client)
            client.close()
    _tell(found, "healthy", as_json=as_json)
    _exit_unless_good(found, out_of_reach=Exit.OUT_OF_REACH)


@commands.command(
    epilog=examples("customer-jobs doctor", "customer-jobs doctor --json | jq '.checks[] | .remedy // empty'")
)
def doctor(as_json: AsJson = False) -> None:
    """Look at everything before production: settings, database, Redis, Stripe keys, limits, versions.

    Run it with the settings of a worker, where the worker runs. It exits with 1 if something fails; a warning is
    something that works and should be otherwise. Stripe is asked two questions for each key, and nothing is written
    there. No value of a setting is shown.
    """
    from customer_jobs.cli import checkout

    found = checkout.examine()
    _tell(found, "ready", as_json=as_json)
    _exit_unless_good(found, out_of_reach=Exit.JOB_FAILED)


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


@contextmanager
def _database() -> Iterator[Engine]:
    """The database of DATABASE_URL."""
    from customer_jobs.database import database_url, open_engine

    engine = open_engine(database_url())
    try:
        yield engine
    finally:
        engine.dispose()


def _tell(found: list[Check], name: str, *, as_json: bool) -> None:
    """Print checks, and whether all of them are good."""
    from customer_jobs.checks import is_good
    from customer_jobs.cli import show

    if as_json:
        show.document({name: is_good(found), "checks": [check.to_dict() for check in found]})
    else:
        show.checks(found)


def _exit_unless_good(found: list[Check], *, out_of_reach: Exit) -> None:
    from customer_jobs.checks import Level

    if any(check.level is Level.OUT_OF_REACH for check in found):
        raise typer.Exit(out_of_reach)
    if any(check.bad for check in found):
        raise typer.Exit(Exit.JOB_FAILED)
