"""The command for low-code components: run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from customer_jobs.cli.exits import Exit, examples, note
from customer_jobs.cli.jobs import open_jobs

if TYPE_CHECKING:
    from customer_jobs.job import Job


commands = typer.Typer()


@commands.command(
    epilog=examples(
        "customer-jobs run create-customer.json",
        "customer-jobs run customers.jsonl --timeout 300",
        'echo \'{"component": "stripe.getStripeCustomer", "customer_id": "cus_NffrFeUfNV2Hib"}\' | customer-jobs run -',
    )
)
def run(
    file: Annotated[
        str, typer.Argument(metavar="FILE|-", help="The documents; - is standard input.", show_default=False)
    ],
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="Wait so long; exit 3 if it is not over.")] = 60.0,
) -> None:
    """Run the documents of low-code components and print their outputs.

    A document is that of stripe.createCustomer, stripe.getStripeCustomer or the logic node getOneCustomer. A file with
    a list of them prints a list, one with a document on each line prints the outputs on a line each. They run at the
    same time, the outputs come in order, and nothing is enqueued if one of the documents is malformed.
    """
    from customer_jobs import components
    from customer_jobs.cli import arguments, show

    seconds = arguments.seconds("--timeout", timeout) or 0.0
    read, in_lines = arguments.documents("FILE", file)
    documents = read if isinstance(read, list) else [read]
    with open_jobs() as customer_jobs:
        started = components.start_all(documents, jobs=customer_jobs)
        with _naming(started):
            ended = components.finish(documents, started, jobs=customer_jobs, timeout_seconds=seconds)
    outputs = [each for _, each in ended]
    if in_lines:
        for each in outputs:
            show.json_line(each)
    else:
        show.document(outputs if isinstance(read, list) else outputs[0])
    _exit_as([job for job, _ in ended], seconds)


def _exit_as(jobs: list[Job], seconds: float) -> None:
    """Say which jobs did not succeed, and exit accordingly: first of all with what is not over."""
    for job in jobs:
        if not job.final:
            hint = "; is a worker running?" if job.started_at is None else ""
            note(f"job {job.id} is still {job.state} after {seconds:g} s{hint}")
        elif job.state != "succeeded":
            note(f"job {job.id} {job.state}; see every call: customer-jobs show {job.id}")
    if not all(job.final for job in jobs):
        raise typer.Exit(Exit.STILL_RUNNING)
    if any(job.state != "succeeded" for job in jobs):
        raise typer.Exit(Exit.JOB_FAILED)


@contextmanager
def _naming(jobs: list[Job]) -> Iterator[None]:
    """Whatever ends the wait, the jobs go on, and can be found."""
    from customer_jobs.errors import Unavailable

    ids = ", ".join(job.id for job in jobs)
    try:
        yield
    except Unavailable as error:
        raise Unavailable(f"{error}; enqueued all the same: {ids}") from error.__cause__
    except KeyboardInterrupt:
        note(f"going on without you; look again with customer-jobs show: {ids}")
        raise
