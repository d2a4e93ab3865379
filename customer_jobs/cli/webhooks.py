"""The command for Stripe's events, webhooks: serves the endpoint; with a word more it catches up on what was missed."""

from __future__ import annotations

import importlib.util
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from customer_jobs.cli.exits import examples, note
from customer_jobs.errors import CustomerJobsError

KEPT = timedelta(days=30)  #: By Stripe. Source: https://docs.stripe.com/api/events

commands = typer.Typer()
webhooks = typer.Typer()
commands.add_typer(webhooks, name="webhooks")


@webhooks.callback(
    invoke_without_command=True,
    subcommand_metavar="[COMMAND]",
    epilog=examples(
        "customer-jobs webhooks --port 8000",
        "STRIPE_WEBHOOK_SECRET=whsec_… customer-jobs webhooks --host 0.0.0.0 --workers 2",
        "customer-jobs webhooks catch-up --since 2d",
    ),
)
def serve(
    context: typer.Context,
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0 takes a free one.")] = 8000,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen; 0.0.0.0 is everywhere.")] = "127.0.0.1",
    workers: Annotated[int, typer.Option(metavar="N", min=1, max=64, help="Processes.")] = 1,
) -> None:
    """Receive Stripe's events, until Ctrl-C.

    POST /webhooks/stripe takes what STRIPE_WEBHOOK_SECRET has signed, POST /webhooks/stripe/eu what
    STRIPE_WEBHOOK_SECRET_EU has; GET /health says whether an event could be stored now. Each event is stored once,
    with the fetch of its customer, before it is acknowledged. SIGTERM lets requests under way end.
    """
    if context.invoked_subcommand is not None:
        return
    _require_extra()
    from customer_jobs.webhooks.serve import serve as run

    run(host, port, workers)


@webhooks.command(
    "catch-up",
    epilog=examples(
        "customer-jobs webhooks catch-up --since 2d",
        "customer-jobs webhooks catch-up --since 2026-12-24T18:00:00Z --stripe-account acct_1032D82eZvKYlo2C",
    ),
)
def catch_up(
    since: Annotated[str, typer.Option(metavar="WHEN", help="From then on: 2h, 3d, or a time with its zone.")],
    credential: Annotated[
        str, typer.Option(metavar="NAME", help="Whose events: the name of a Stripe key.")
    ] = "default",
    stripe_account: Annotated[
        str | None, typer.Option(metavar="acct_…", help="Those of a connected account instead.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """Take in the events that never arrived.

    Lists Stripe's events since a time, with STRIPE_API_KEY or the key of the credential, and enqueues the fetches that
    are missing. Events that did arrive are left alone, so it may be run again. Stripe keeps events for 30 days.
    """
    _require_extra()
    from customer_jobs.cli import arguments, show
    from customer_jobs.errors import InvalidJob
    from customer_jobs.producer import CustomerJobs
    from customer_jobs.webhooks.catch_up import catch_up as run

    moment, now = arguments.moment("--since", since, past=True), datetime.now(UTC)
    if moment > now:
        raise InvalidJob("--since", "is in the future")
    if now - moment > KEPT:
        note(f"Stripe keeps events for {KEPT.days} days: earlier ones cannot be listed any more")
    jobs = CustomerJobs()
    try:
        result = run(jobs, moment, credential=credential, stripe_account=stripe_account)
    finally:
        jobs.engine.dispose()
    if as_json:
        show.document(vars(result))
        return
    print(f"{result.listed:,} events listed; about customers: {result.known:,} known, {result.missed:,} missed")
    print(f"{result.jobs:,} fetches wait for them" if result.jobs else "nothing to fetch")


def _require_extra() -> None:
    missing = [name for name in ("stripe", "starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise CustomerJobsError(
            f"this command needs {', '.join(missing)}, not installed here: pip install 'customer-jobs[webhooks]'"
        )
