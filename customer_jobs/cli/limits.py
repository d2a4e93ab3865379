"""The command `limits`: how much of Stripe's allowance is used, what waits and why; pause and resume."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from customer_jobs.cli.exits import examples

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
    """Show Stripe's limits: the rate, how much of it is used, what waits and why.

    A limit is an endpoint of an account, or * for everything the account does. Its rate is your share of Stripe's
    limit (RATE_LIMIT_CREATE, RATE_LIMIT_FETCH, RATE_LIMIT_ACCOUNT), or less for a while after Stripe turned calls away.
    """
    if context.invoked_subcommand is not None:
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
    table = show.ledger("CREDENTIAL", "ACCOUNT", "ENDPOINT", "RATE", "USED", "429", "WAITING", "IN FLIGHT", "HELD BY")
    for each in found:
        table.add_row(*(show.text(cell) for cell in _cells(each)))
    show.put(table)


@limits.command(epilog=examples('customer-jobs limits pause eu --endpoint customer.create --reason "backfill"'))
def pause(
    credential: Credential,
    endpoint: Endpoint = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Shown wherever what waits is shown.")] = "by hand",
) -> None:
    """Let the jobs of a credential wait until `limits resume`; those on their way to Stripe go on."""
    from customer_jobs.cli.jobs import open_jobs
    from customer_jobs.database import writing
    from customer_jobs.limits import pause as let_wait

    _check(endpoint)
    with open_jobs() as customer_jobs, writing(customer_jobs.engine) as transaction:
        let_wait(transaction, credential, endpoint=endpoint, reason=reason)
    print(f"paused {_what(credential, endpoint)}; to go on: customer-jobs limits resume {credential}")


@limits.command(epilog=examples("customer-jobs limits resume default"))
def resume(credential: Credential, endpoint: Endpoint = None) -> None:
    """Let the jobs of a credential go on, whether paused by hand or because Stripe refused its key."""
    from customer_jobs.cli.jobs import open_jobs
    from customer_jobs.database import writing
    from customer_jobs.limits import resume as let_go_on

    _check(endpoint)
    with open_jobs() as customer_jobs, writing(customer_jobs.engine) as transaction:
        changed = let_go_on(transaction, credential, endpoint=endpoint)
    print(f"resumed {_what(credential, endpoint)}" if changed else f"{_what(credential, endpoint)} was not paused")


def _check(endpoint: str | None) -> None:
    from customer_jobs.errors import InvalidJob

    if endpoint is not None and endpoint not in ENDPOINTS:
        raise InvalidJob("--endpoint", f"must be one of {', '.join(ENDPOINTS)}, not {endpoint!r}")


def _what(credential: str, endpoint: str | None) -> str:
    return f"credential {credential!r}" if endpoint is None else f"{endpoint} of credential {credential!r}"


def _document(limit: Limit) -> dict[str, Any]:
    document = asdict(limit)
    return document | {"paused_at": limit.paused_at.isoformat() if limit.paused_at is not None else None}


def _cells(limit: Limit) -> tuple[str, ...]:
    from customer_jobs.cli import show
    from customer_jobs.limits import MOST_COUNTED

    held = limit.held_by or ""
    if limit.paused_at is not None:
        held = f"{held}, {show.ago(limit.paused_at, datetime.now(UTC))}"
    return (
        limit.credential,
        limit.stripe_account or "",
        limit.endpoint,
        "" if limit.rate_per_second is None else f"{limit.rate_per_second:g}/s",
        "" if limit.used is None else f"{limit.used:.0%}",
        str(limit.rate_limited_last_minute or ""),
        f"{limit.waiting:,}{'+' if limit.waiting == MOST_COUNTED else ''}" if limit.waiting else "",
        str(limit.in_flight or ""),
        held,
    )
