"""The command `forget`: what the tables hold of a person, shown and then erased."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from customer_jobs.cli.exits import Exit, complain, examples, note

if TYPE_CHECKING:
    from customer_jobs.forget import Found

commands = typer.Typer()

NOT_TOUCHED = "not touched: Stripe itself, entries in the event stream (they hold ids and your context), backups"


@commands.command(
    epilog=examples(
        "customer-jobs forget --customer cus_NffrFeUfNV2Hib",
        "customer-jobs forget --email jenny.rosen@example.com --yes",
    )
)
def forget(
    customer: Annotated[str | None, typer.Option(metavar="cus_…", help="Whoever is this customer.")] = None,
    external_id: Annotated[str | None, typer.Option(metavar="ID", help="Whoever has this id of yours.")] = None,
    email: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Whoever has this e-mail address.")] = None,
    job: Annotated[str | None, typer.Option(metavar="JOB", help="Whomever this job is about.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document, nothing else.")] = False,
) -> None:
    """Erase a person's data from the tables; for good.

    Erased is what was sent to Stripe and what came back, of all their jobs, and the local copy of the customer. Ids
    and digests stay, so that no second customer can come of it: keep personal data out of external ids. Refused while
    a job about them is not over. Nothing is deleted at Stripe; do that first, or its events bring the data back.
    """
    from customer_jobs.cli.jobs import open_jobs
    from customer_jobs.database import writing
    from customer_jobs.errors import InvalidJob, UnknownJob
    from customer_jobs.forget import find
    from customer_jobs.forget import forget as erase
    from customer_jobs.producer import as_uuid

    if job is not None and as_uuid(job) is None:
        raise UnknownJob(repr(job))
    wanted = {"customer_id": customer, "external_id": external_id, "email": email, "job_id": job}
    if sum(value is not None for value in wanted.values()) != 1:
        raise InvalidJob("forget", "give one of --customer, --external-id, --email and --job")
    with open_jobs() as customer_jobs:
        if not yes:
            with writing(customer_jobs.engine) as transaction:
                found = find(transaction, **wanted)
            _confirm(found)
        # Looked for once more: nothing is locked while somebody thinks.
        with writing(customer_jobs.engine) as transaction:
            found = find(transaction, **wanted)
            erase(transaction, found)
    if as_json:
        from customer_jobs.cli import show

        show.document(_document(found))
        return
    print(f"erased {_what(found)}" if found.jobs or found.copies else "there is nothing about them in the tables")
    note(NOT_TOUCHED)


def _confirm(found: Found) -> None:
    if not found.jobs and not found.copies:
        return
    note(f"found {_what(found)}")
    if not sys.stdin.isatty():
        complain("nothing was erased: nobody is there to confirm; give --yes")
        raise typer.Exit(Exit.BAD_INPUT)
    if not typer.confirm("Erase it for good?", err=True):
        note("nothing was erased")
        raise typer.Exit(Exit.JOB_FAILED)


def _what(found: Found) -> str:
    jobs = f"{len(found.jobs)} {'job' if len(found.jobs) == 1 else 'jobs'}"
    copies = f"{len(found.copies)} local {'copy' if len(found.copies) == 1 else 'copies'}"
    at_stripe = f"; at Stripe: {', '.join(found.customer_ids)}" if found.customer_ids else ""
    return f"{jobs} and {copies}{at_stripe}"


def _document(found: Found) -> dict[str, Any]:
    return {"jobs": found.job_ids, "copies": len(found.copies), "customer_ids": found.customer_ids}
