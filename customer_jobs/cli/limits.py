"""The command `limits`: how much of Stripe's allowance is used, what waits and why; pause and resume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from customer_jobs.cli.exits import examples, note, one_line
from customer_jobs.errors import InvalidJob

if TYPE_CHECKING:
    from customer_jobs.limits import Limit

ENDPOINTS = ("customer.create", "customer.fetch", "customer.list")

Credential = Annotated[str, typer.Argument(metavar="CREDENTIAL", help="The name of a Stripe key, such as default.")]
Endpoint = Annotated[
    str | None, typer.Option(metavar="NAME", help=f"Only this endpoint: {', '.join(ENDPOINTS)}.  [default: all]")
]

commands = typer.Typer()
limits = typer.Typer(invoke_without_command=True)
commands.add_typer(limits, name="limits")


@limits.callback(
    epilog=examples(
        "customer-jobs limits",
        'customer-jobs limits pause default --reason "Stripe maintenance"',
        "customer-jobs limits resume default",
    )
)
def show_limits(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document, nothing else.")] = False,
) -> None:
    """Show Stripe's limits: the rate, how much of it is used, what waits and why; pause and resume.

    A limit is an endpoint of an account, or * for everything the account does. Its rate is your share of Stripe's
    limit (RATE_LIMIT_CREATE, RATE_LIMIT_FETCH, RATE_LIMIT_ACCOUNT), or less for a while after Stripe turned calls away.

    Columns: RATE calls per second that might leave when a job last did; USED its share in the last
    minute; 429 calls that Stripe turned away in it; WAITING jobs that are due; IN FLIGHT jobs that were handed to a
    worker and have not ended. What holds them back is below the table, with what to do about it.
    """
    if context.invoked_subcommand is not None:
        if as_json:
            raise InvalidJob("--json", f"is not for limits {context.invoked_subcommand}, which prints one line")
        return
    from customer_jobs.cli import show
    from customer_jobs.cli.jobs import open_jobs
    from customer_jobs.database import reading
    from customer_jobs.limits import limits as read

    with open_jobs() as customer_jobs, reading(customer_jobs.engine) as transaction:
        found = read(transaction)
    if as_json:
        show.document([_document(each) for each in found])
        return
    if not found:
        print("no job has met a limit yet, and none waits")
        return
    accounts = ["ACCOUNT"] if any(each.stripe_account for each in found) else []
    table = show.ledger("CREDENTIAL", *accounts, "ENDPOINT", "RATE", "USED", "429", "WAITING", "IN FLIGHT")
    for each in found:
        table.add_row(*(show.text(cell) for cell in _cells(each, with_account=bool(accounts))))
    held = [("held", line) for line in _hold_lines(found, datetime.now(UTC))]
    show.put(table, *(["", show.facts(held)] if held else []))


@limits.command(epilog=examples('customer-jobs limits pause eu --endpoint customer.create --reason "backfill"'))
def pause(
    credential: Credential,
    endpoint: Endpoint = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Shown wherever what waits is shown.")] = "by hand",
) -> None:
    """Let the jobs of a credential wait until `limits resume`.

    New jobs are taken in as before and stay queued. None leaves for Stripe from within a second on; those on their way
    there go on. A pause of an endpoint holds for connected accounts, too.
    """
    from customer_jobs.cli.jobs import open_jobs
    from customer_jobs.database import writing
    from customer_jobs.limits import pause as let_wait

    _check(endpoint)
    with open_jobs() as customer_jobs, writing(customer_jobs.engine) as transaction:
        let_wait(transaction, credential, endpoint=endpoint, reason=reason)
    only = "" if endpoint is None else f" --endpoint {endpoint}"
    print(f"paused {_what(credential, endpoint)}; to go on: customer-jobs limits resume {credential}{only}")


@limits.command(
    epilog=examples(
        "customer-jobs limits resume default", "customer-jobs limits resume default --endpoint customer.create"
    )
)
def resume(credential: Credential, endpoint: Endpoint = None) -> None:
    """Let the jobs of a credential go on.

    Without --endpoint every pause of the credential is lifted, those of its endpoints included. A pause for a refused
    key is also lifted when a worker starts with a new one.
    """
    from customer_jobs.cli.jobs import open_jobs
    from customer_jobs.database import writing
    from customer_jobs.limits import limits as read
    from customer_jobs.limits import resume as let_go_on

    _check(endpoint)
    with open_jobs() as customer_jobs, writing(customer_jobs.engine) as transaction:
        changed = let_go_on(transaction, credential, endpoint=endpoint)
        left = next((each.held_by for each in read(transaction) if _is_of(each, credential, endpoint)), None)
    print(f"resumed {_what(credential, endpoint)}" if changed else f"{_what(credential, endpoint)} was not paused")
    if left is not None:
        note(one_line(f"still held: {left}"))


def _check(endpoint: str | None) -> None:
    if endpoint is not None and endpoint not in ENDPOINTS:
        raise InvalidJob("--endpoint", f"must be one of {', '.join(ENDPOINTS)}, not {endpoint!r}")


def _is_of(limit: Limit, credential: str, endpoint: str | None) -> bool:
    from customer_jobs.lanes import WHOLE_ACCOUNT

    concerned = endpoint is None or limit.endpoint in {endpoint, WHOLE_ACCOUNT}
    return limit.credential == credential and limit.paused_at is not None and concerned


def _what(credential: str, endpoint: str | None) -> str:
    return f"credential {credential!r}" if endpoint is None else f"{endpoint} of credential {credential!r}"


def _document(limit: Limit) -> dict[str, Any]:
    document = asdict(limit)
    return document | {"paused_at": limit.paused_at.isoformat() if limit.paused_at is not None else None}


def _hold_lines(found: Sequence[Limit], present: datetime) -> list[str]:
    """What holds back the jobs of a credential, each reason in one line with what to do about it."""
    from customer_jobs.cli import show
    from customer_jobs.holds import Hold

    places: dict[tuple[str, Hold], list[str]] = {}
    for each in found:
        if each.held_by is not None:
            account = f" for {each.stripe_account}" if each.stripe_account is not None else ""
            hold = Hold(each.held_by, each.remedy, each.paused_at)
            places.setdefault((each.credential, hold), []).append(f"{each.endpoint} of {each.credential}{account}")
    return [
        f"{first}{f' and {len(others)} more' if others else ''}: {show.held_by(hold, present)}"
        for (_, hold), (first, *others) in places.items()
    ]


def _cells(limit: Limit, *, with_account: bool) -> tuple[str, ...]:
    from customer_jobs.limits import MOST_COUNTED

    return (
        limit.credential,
        *((limit.stripe_account or "",) if with_account else ()),
        limit.endpoint,
        "" if limit.rate_per_second is None else f"{limit.rate_per_second:.3g}/s",
        "" if limit.used is None else f"{limit.used:.0%}",
        str(limit.rate_limited_last_minute or ""),
        f"{limit.waiting:,}{'+' if limit.waiting == MOST_COUNTED else ''}" if limit.waiting else "",
        str(limit.in_flight or ""),
    )
