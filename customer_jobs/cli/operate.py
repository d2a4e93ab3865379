"""The commands for whoever operates it: events, migrate."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated

import typer

from customer_jobs.cli.exits import examples, note

if TYPE_CHECKING:
    from customer_jobs.cli.stream import Entry, Stream

LATEST = 20  #: Events shown where neither a number nor a time is given.
FIRST_PAUSE_SECONDS = 0.5  #: Before Redis is asked again after an outage; doubled each time, up to …
LAST_PAUSE_SECONDS = 10.0


commands = typer.Typer()


@commands.command(
    epilog=examples(
        "customer-jobs events --follow",
        "customer-jobs events --type '*.failed' --since 1h",
        "customer-jobs events --type customer.create.succeeded --json | jq -r .data.customer_id",
    )
)
def events(
    count: Annotated[int | None, typer.Option(metavar="N", min=0, help="As many of the latest.  [default: 20]")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with those that arrive, until Ctrl-C.")] = False,
    type_: Annotated[
        list[str] | None, typer.Option("--type", metavar="TYPE", help="Only of this type, * allowed; repeatable.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="WHEN", help="Only newer than: 10m, 2h, 3d, or a time with its zone.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one CloudEvent per line, nothing else.")] = False,
) -> None:
    """Show the events of the stream, oldest first.

    An event says that a job succeeded, failed or was cancelled; it holds ids and no personal data. EVENT_STREAM names
    the stream (customer-jobs:events), REDIS_URL its Redis. Reading here takes nothing from any consumer.
    """
    from customer_jobs.cli import arguments
    from customer_jobs.cli.stream import open_stream

    start = None if since is None else arguments.moment("--since", since, past=True)
    wanted_types = type_ or ["*"]

    def wanted(entry: Entry) -> bool:
        short = entry.type.removeprefix("customer_jobs.")
        return any(fnmatchcase(entry.type, each) or fnmatchcase(short, each) for each in wanted_types)

    stream = open_stream()
    try:
        last_id = stream.last_id()
        latest = stream.latest(LATEST if count is None and since is None else count, since=start, wanted=wanted)
        _print(latest, as_json=as_json)
        if follow:
            last_id = max(last_id, *(entry.id for entry in latest), key=_order) if latest else last_id
            with suppress(KeyboardInterrupt):
                _follow(stream, last_id, wanted, as_json=as_json)
        elif not latest:
            note("no events")
    finally:
        stream.close()


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


def _follow(stream: Stream, last_id: str, wanted: Callable[[Entry], bool], *, as_json: bool) -> None:
    from customer_jobs.errors import Unavailable

    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            arrived = stream.after(last_id)
        except Unavailable as error:
            note(f"{error}; trying again in {pause:g} s")
            time.sleep(pause)
            pause = min(pause * 2, LAST_PAUSE_SECONDS)
            continue
        pause = FIRST_PAUSE_SECONDS
        if arrived:
            last_id = arrived[-1].id
            _print([entry for entry in arrived if wanted(entry)], as_json=as_json)


def _print(entries: list[Entry], *, as_json: bool) -> None:
    from customer_jobs.cli import show

    for entry in entries:
        if entry.event is None:
            note(f"entry {entry.id} of the stream is no event of ours; somebody else writes to it")
        elif as_json:
            show.json_line(entry.event)
        else:
            print(show.event_line(entry.event, datetime.now(UTC)), flush=True)


def _order(entry_id: str) -> tuple[int, ...]:
    return tuple(int(part) for part in entry_id.split("-"))
