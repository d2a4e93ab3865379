"""The commands about jobs: create, fetch, show, list, retry, cancel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from customer_jobs.cli.exits import Exit, complain, examples, note, one_line

if TYPE_CHECKING:
    from customer_jobs.holds import Hold
    from customer_jobs.job import Job
    from customer_jobs.producer import CustomerJobs

JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.", show_default=False)]
Credential = Annotated[str, typer.Option(metavar="NAME", help="Name of a Stripe key in the worker's settings.")]
StripeAccount = Annotated[str | None, typer.Option(metavar="acct_…", help="Connected account to act for.")]
ExternalId = Annotated[str | None, typer.Option(metavar="ID", help="Your own id for the customer.")]
PriorityName = Annotated[str, typer.Option("--priority", metavar="NAME|1..4", help="urgent, default, low or bulk.")]
DueAt = Annotated[
    str | None, typer.Option(metavar="WHEN", help="Not before then: 10m, 2h, 3d, or a time with its zone.")
]
Context = Annotated[str | None, typer.Option(metavar="JSON|@FILE|-", help="Your own JSON; it comes back in the event.")]
Wait = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="Wait for the end; exit 1 if it failed, 3 if it is not over.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


commands = typer.Typer()


@commands.command(
    epilog=examples(
        'customer-jobs create --email jenny.rosen@example.com --name "Jenny Rosen"',
        "customer-jobs create --email jenny.rosen@example.com --metadata plan=pro --wait 30",
        "customer-jobs create --body @customer.json --external-id user-42 --priority urgent",
        'echo \'{"name": "Jenny", "address": {"city": "Paris"}}\' | customer-jobs create --body - --json',
    )
)
def create(
    email: Annotated[str | None, typer.Option(metavar="ADDRESS", help="E-mail of the customer.")] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Full name, or name of the company.")] = None,
    description: Annotated[str | None, typer.Option(metavar="TEXT", help="Shown in Stripe's dashboard.")] = None,
    phone: Annotated[str | None, typer.Option(metavar="NUMBER", help="Telephone number.")] = None,
    metadata: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Metadata; repeatable.")] = None,
    body: Annotated[
        str | None,
        typer.Option(metavar="JSON|@FILE|-", help="All of Stripe's parameters; the flags above go over them."),
    ] = None,
    external_id: ExternalId = None,
    credential: Credential = "default",
    stripe_account: StripeAccount = None,
    priority: PriorityName = "default",
    due_at: DueAt = None,
    context: Context = None,
    wait: Wait = None,
    as_json: AsJson = False,
) -> None:
    """Enqueue the creation of a customer.

    With --external-id a customer is made once: the same id with the same parameters is the same job, with other
    parameters it is refused and the job that holds the id is named.
    """
    from customer_jobs.cli import arguments

    wait = arguments.seconds("--wait", wait)
    fields = {"email": email, "name": name, "description": description, "phone": phone}
    parameters = arguments.body(body, fields, metadata or ())
    own = None if context is None else arguments.json_value("--context", context)
    due = None if due_at is None else arguments.moment("--due-at", due_at, past=False)
    with open_jobs() as customer_jobs:
        job = customer_jobs.create_customer(
            parameters,
            external_id=external_id,
            credential=arguments.credential(credential),
            stripe_account=stripe_account,
            priority=arguments.priority(priority),
            due_at=due,
            context=own,
        )
        _tell(customer_jobs, job, wait, as_json=as_json)


@commands.command(
    epilog=examples(
        "customer-jobs fetch cus_NffrFeUfNV2Hib --wait 30",
        "customer-jobs fetch cus_NffrFeUfNV2Hib --expand default_source --json",
        "customer-jobs fetch cus_NffrFeUfNV2Hib --external-id user-42",
    )
)
def fetch(
    customer_id: Annotated[str, typer.Argument(metavar="CUSTOMER", help="Id of the customer, cus_….")],
    expand: Annotated[list[str] | None, typer.Option(metavar="FIELD", help="Field to expand; repeatable.")] = None,
    max_age: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="A local copy that young is answer enough.")
    ] = None,
    external_id: ExternalId = None,
    credential: Credential = "default",
    stripe_account: StripeAccount = None,
    priority: PriorityName = "default",
    due_at: DueAt = None,
    context: Context = None,
    wait: Wait = None,
    as_json: AsJson = False,
) -> None:
    """Enqueue the fetching of a customer.

    An equal fetch that is still waiting is the same job. With --external-id the customer is linked: a later create
    with that id makes no second one.
    """
    from customer_jobs.cli import arguments

    wait = arguments.seconds("--wait", wait)
    own = None if context is None else arguments.json_value("--context", context)
    due = None if due_at is None else arguments.moment("--due-at", due_at, past=False)
    with open_jobs() as customer_jobs:
        job = customer_jobs.fetch_customer(
            customer_id,
            expand=expand or (),
            max_age_seconds=arguments.seconds("--max-age", max_age),
            external_id=external_id,
            credential=arguments.credential(credential),
            stripe_account=stripe_account,
            priority=arguments.priority(priority),
            due_at=due,
            context=own,
        )
        _tell(customer_jobs, job, wait, as_json=as_json)


@commands.command(
    epilog=examples(
        "customer-jobs show 0b1c9f1e-5b0c-4b55-9d2f-0c8b1b0f6a1d",
        "customer-jobs show 0b1c9f1e-5b0c-4b55-9d2f-0c8b1b0f6a1d --json | jq .result.response",
    )
)
def show(job_id: JobId, as_json: AsJson = False) -> None:
    """Show a job with every call to Stripe.

    You see where it stands, what came of it, and what to do if it failed. This is where personal data is shown: the
    customer's name and e-mail and, with --json, all that Stripe answered.
    """
    from customer_jobs.cli import show as page
    from customer_jobs.errors import CustomerJobsError, UnknownJob

    with open_jobs() as customer_jobs:
        job = customer_jobs.get(job_id)
        held = _held(customer_jobs, [job] if job is not None else [])
    if job is None and job_id.startswith(("cus_", "req_")):
        flag = "--customer" if job_id.startswith("cus_") else "--request"
        raise CustomerJobsError(f"{job_id!r} is not the id of a job; its jobs: customer-jobs list {flag} {job_id}")
    if job is None:
        raise UnknownJob(repr(job_id))
    if as_json:
        page.document(job.document())
    else:
        page.job(job, datetime.now(UTC), personal=True, hold=held.get(job.id))


@commands.command(
    "list",
    epilog=examples(
        "customer-jobs list",
        "customer-jobs list --state failed --state retrying --limit 100",
        "customer-jobs list --customer cus_NffrFeUfNV2Hib",
        "customer-jobs list --json | jq -r 'select(.error) | [.id, .error.code] | @tsv'",
    ),
)
def list_jobs(
    state: Annotated[list[str] | None, typer.Option(metavar="STATE", help="Only in this state; repeatable.")] = None,
    kind: Annotated[str | None, typer.Option(metavar="KIND", help="customer.create or customer.fetch.")] = None,
    customer: Annotated[str | None, typer.Option(metavar="cus_…", help="Only about this customer.")] = None,
    external_id: Annotated[str | None, typer.Option(metavar="ID", help="Only with this id of yours.")] = None,
    request: Annotated[str | None, typer.Option(metavar="req_…", help="The job behind this call to Stripe.")] = None,
    credential: Annotated[str | None, typer.Option(metavar="NAME", help="Only with this credential.")] = None,
    stripe_account: Annotated[str | None, typer.Option(metavar="acct_…", help="Only for this account.")] = None,
    before: Annotated[str | None, typer.Option(metavar="JOB", help="Only older than this job: the next page.")] = None,
    limit: Annotated[int, typer.Option(metavar="N", help="As many at most.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document per line, nothing else.")] = False,
) -> None:
    """List the latest jobs, newest first.

    No personal data is shown. States: queued, dispatched, running, retrying, succeeded, failed, cancelled.
    """
    from customer_jobs.cli import show as page
    from customer_jobs.errors import InvalidJob, UnknownJob
    from customer_jobs.vocabulary import Kind

    if kind is not None and kind not in set(Kind):
        raise InvalidJob("kind", f"unknown kind {kind[:60]!r}; known are {', '.join(Kind)}")
    with open_jobs() as customer_jobs:
        last = None if before is None else customer_jobs.get(before)
        if before is not None and last is None:
            raise UnknownJob(repr(before))
        found = customer_jobs.list(
            state=state,
            kind=kind,
            credential=credential,
            stripe_account=stripe_account,
            external_id=external_id,
            customer_id=customer,
            request_id=request,
            limit=limit,
            before=last,
        )
        held = _held(customer_jobs, [] if as_json else found)
    if as_json:
        for job in found:
            page.json_line(job.document())
    elif found:
        page.jobs(found, datetime.now(UTC), held)
        for line in page.hold_lines(held.values(), datetime.now(UTC)):
            note(line)
        if len(found) == limit:
            note(f"older ones: --before {found[-1].id}")
    else:
        note("no jobs")


@commands.command(
    epilog=examples(
        "customer-jobs retry 0b1c9f1e-5b0c-4b55-9d2f-0c8b1b0f6a1d",
        "customer-jobs retry 0b1c9f1e-5b0c-4b55-9d2f-0c8b1b0f6a1d --wait 30",
    )
)
def retry(job_id: JobId, wait: Wait = None, as_json: AsJson = False) -> None:
    """Try a failed job again, as a new job.

    The new job takes over what the old one was given. If Stripe may have made the customer already, it first looks for
    that one. Asked twice, it is the same new job.
    """
    from customer_jobs.cli import arguments

    wait = arguments.seconds("--wait", wait)
    with open_jobs() as customer_jobs:
        _tell(customer_jobs, customer_jobs.retry(job_id), wait, as_json=as_json)


@commands.command(
    epilog=examples(
        "customer-jobs cancel 0b1c9f1e-5b0c-4b55-9d2f-0c8b1b0f6a1d",
    )
)
def cancel(job_id: JobId, as_json: AsJson = False) -> None:
    """Take back a job that waits.

    Refused once Stripe may have heard of it.
    """
    from customer_jobs.cli import show as page
    from customer_jobs.errors import UnknownJob

    with open_jobs() as customer_jobs:
        cancelled = customer_jobs.cancel(job_id)
        job = customer_jobs.get(job_id)
    if job is None:
        raise UnknownJob(repr(job_id))
    if not cancelled:
        complain(_why_not_cancelled(job))
        raise typer.Exit(Exit.BAD_INPUT)
    if as_json:
        page.document(job.document())
    else:
        print(f"job {job.id} is cancelled; Stripe has not heard of it")


@contextmanager
def open_jobs() -> Iterator[CustomerJobs]:
    """The table of DATABASE_URL, closed at the end."""
    # SQLAlchemy takes most of the time of a command; `--help` does without.
    from customer_jobs.producer import CustomerJobs

    customer_jobs = CustomerJobs()
    try:
        yield customer_jobs
    finally:
        customer_jobs.engine.dispose()


def _tell(customer_jobs: CustomerJobs, job: Job, wait_seconds: float | None, *, as_json: bool) -> None:
    """Print the job, after waiting for its end if that was asked for, and exit accordingly."""
    from customer_jobs.cli import show as page

    if wait_seconds is not None:
        job = _await(customer_jobs, job, wait_seconds)
    held = _held(customer_jobs, [job]) if wait_seconds is not None else {}
    if as_json:
        page.document(job.document())
    elif wait_seconds is not None:
        page.job(job, datetime.now(UTC), personal=False, hold=held.get(job.id))
    else:
        print(f"job {job.id}  {job.kind}  {job.state}")
        note(f"see what becomes of it: customer-jobs show {job.id}")
    if wait_seconds is None or job.state == "succeeded":
        return
    if job.final:
        raise typer.Exit(Exit.JOB_FAILED)
    hold = held.get(job.id)
    hint = f", held by: {hold.reason}" if hold is not None else ""
    note(one_line(f"still {job.state} after {wait_seconds:g} s{hint}; look again: customer-jobs show {job.id}"))
    raise typer.Exit(Exit.STILL_RUNNING)


def _held(customer_jobs: CustomerJobs, found: Sequence[Job]) -> dict[str, Hold]:
    """Why those of the jobs wait that could leave by now."""
    from customer_jobs.database import reading
    from customer_jobs.holds import held_jobs
    from customer_jobs.vocabulary import WAITING_STATES

    waiting = [job.id for job in found if job.state in WAITING_STATES]
    if not waiting:
        return {}
    with reading(customer_jobs.engine) as transaction:
        return held_jobs(transaction, waiting)


def _await(customer_jobs: CustomerJobs, job: Job, wait_seconds: float) -> Job:
    from customer_jobs.errors import Unavailable

    try:
        return customer_jobs.wait(job.id, wait_seconds)
    except Unavailable as error:
        raise Unavailable(f"{error}; job {job.id} is enqueued all the same") from error.__cause__
    except KeyboardInterrupt:
        note(f"job {job.id} goes on without you; look again: customer-jobs show {job.id}")
        raise


def _why_not_cancelled(job: Job) -> str:
    if job.final:
        return f"job {job.id} is {job.state} already; nothing is left to cancel"
    if job.state in {"queued", "retrying"}:
        return f"job {job.id} cannot be cancelled: Stripe may have made the customer; wait until it has been found out"
    return f"job {job.id} is {job.state}: Stripe may hear of it at this moment; try again if it fails or retries"
