"""`customer-jobs events`: what the stream has, what it is to have again, and what a consumer could not handle."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from customer_jobs.cli.exits import examples, note

if TYPE_CHECKING:
    from customer_jobs.cli.stream import Entry, Stream

LATEST = 20  #: Events shown where neither a number nor a time is given.
FIRST_PAUSE_SECONDS = 0.5  #: Before Redis is asked again after an outage; doubled each time, up to …
LAST_PAUSE_SECONDS = 10.0

Types = Annotated[
    list[str] | None, typer.Option("--type", metavar="TYPE", help="Only of this type, * allowed; repeatable.")
]

commands = typer.Typer()


@commands.callback(
    invoke_without_command=True,
    epilog=examples(
        "customer-jobs events --follow",
        "customer-jobs events --type '*.failed' --since 1h",
        "customer-jobs events --type customer.create.succeeded --json | jq -r .data.customer_id",
    ),
)
def events(
    context: typer.Context,
    count: Annotated[int | None, typer.Option(metavar="N", min=0, help="As many of the latest.  [default: 20]")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with those that arrive, until Ctrl-C.")] = False,
    type_: Types = None,
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
    from customer_jobs.events import is_wanted

    if context.invoked_subcommand is not None:
        if follow or as_json or count is not None or type_ or since is not None:
            raise typer.BadParameter(f"the options of {context.invoked_subcommand} go after its name", ctx=context)
        return
    start = None if since is None else arguments.moment("--since", since, past=True)

    def wanted(entry: Entry) -> bool:
        return is_wanted(entry.type, type_ or ["*"])

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
        "customer-jobs events replay --since 2h",
        "customer-jobs events replay --since 2026-12-24T18:00:00Z --type 'customer.create.*' --missing",
    )
)
def replay(
    since: Annotated[str, typer.Option(metavar="WHEN", help="From then on: 10m, 2h, 3d, or a time with its zone.")],
    type_: Types = None,
    missing: Annotated[bool, typer.Option("--missing", help="Only what the stream does not have.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Publish events of the table again, for instance after Redis has lost them.

    They keep their ids and their order. A consumer that remembers ids (`once_in`) handles none of them twice; others
    get them again. The table is found by DATABASE_URL and keeps events for RETENTION_DAYS.
    """
    from customer_jobs import republish
    from customer_jobs.cli import arguments, show
    from customer_jobs.database import database_url, open_engine

    start = arguments.moment("--since", since, past=True)
    engine = open_engine(database_url())
    try:
        published = republish.replay(engine, since=start, types=type_ or (), missing_only=missing)
    finally:
        engine.dispose()
    if as_json:
        show.document({"published": published})
    else:
        print(f"published {published} {'event' if published == 1 else 'events'} again")


@commands.command(
    epilog=examples(
        "customer-jobs events dead",
        "customer-jobs events dead --group billing --return-all",
        "customer-jobs events dead --return 1795372468061-0",
    )
)
def dead(
    group: Annotated[str | None, typer.Option(metavar="GROUP", help="Only those that this group gave up.")] = None,
    type_: Types = None,
    return_: Annotated[
        list[str] | None, typer.Option("--return", metavar="ID", help="Put this one back; repeatable.")
    ] = None,
    return_all: Annotated[bool, typer.Option("--return-all", help="Put all of them back.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document per line, nothing else.")] = False,
) -> None:
    """Show the events that consumers could not handle, oldest first, or put them back on the stream.

    One that is put back goes to the group that gave it up and to no other, with as many deliveries as a new one. What
    the exception said is in that consumer's log; here is only where it came from.
    """
    from customer_jobs.cli import show
    from customer_jobs.dead_letters import dead_letters, give_back
    from customer_jobs.errors import InvalidJob
    from customer_jobs.events import is_wanted
    from customer_jobs.stream import connect, redis_url, stream_name, translating_outages

    client, stream = connect(redis_url()), stream_name()
    try:
        with translating_outages():
            letters = [
                letter
                for letter in dead_letters(client, stream)
                if group in (None, letter.group)
                and is_wanted(letter.event.type if letter.event else "", type_ or ["*"])
                and (not return_ or letter.id in return_)
            ]
            if unknown := set(return_ or ()) - {letter.id for letter in letters}:
                raise InvalidJob("--return", f"there is no dead letter {min(unknown)!r}")
            for letter in letters if return_ or return_all else ():
                give_back(client, stream, letter)
    finally:
        client.close()
    for letter in letters:
        if as_json:
            show.json_line(letter.to_dict())
        else:
            print(show.dead_letter_line(letter, datetime.now(UTC)))
    if return_ or return_all:
        note(f"put {len(letters)} back on the stream")
    elif not letters:
        note("no dead letters")


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
