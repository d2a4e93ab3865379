"""The command `import`: a file of customers as jobs, which may be broken off and run again."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from customer_jobs.cli.exits import Exit, complain, examples, note
from customer_jobs.cli.jobs import Credential, StripeAccount, open_jobs

if TYPE_CHECKING:
    from customer_jobs.producer import CustomerJobs
    from customer_jobs.rows import BadLine, Line
    from customer_jobs.vocabulary import Kind

BATCH_SIZE = 1000  #: Rows in one transaction: what is enqueued stays so when the rest is broken off.
SHOWN_AT_MOST = 20  #: Bad rows that are named; a file with one wrong column has as many as it has rows.

commands = typer.Typer()


@dataclass
class Imported:
    """What came of it."""

    rows: int
    enqueued: int = 0
    known: int = 0  #: Enqueued before, by an earlier run or another line.
    conflicts: list[dict[str, Any]] = field(default_factory=list)


@commands.command(
    "import",
    epilog=examples(
        "customer-jobs import customers.csv --dry-run",
        "customer-jobs import customers.csv",
        "customer-jobs import links.csv --kind customer.fetch",
        "psql --csv -c 'SELECT email, name, id AS external_id FROM users' | customer-jobs import -",
    ),
)
def import_rows(
    file: Annotated[
        str, typer.Argument(metavar="FILE|-", help="CSV, or JSON lines; - is standard input.", show_default=False)
    ],
    kind: Annotated[
        str, typer.Option(metavar="KIND", help="customer.create, or customer.fetch to link customers.")
    ] = "customer.create",
    credential: Credential = "default",
    stripe_account: StripeAccount = None,
    priority: Annotated[str, typer.Option(metavar="NAME|1..4", help="urgent, default, low or bulk.")] = "bulk",
    no_external_ids: Annotated[
        bool, typer.Option("--no-external-ids", help="Take rows without external_id; a second run doubles them.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every row, enqueue nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document, nothing else.")] = False,
) -> None:
    """Enqueue a job for each row of a file.

    The columns of CSV, or the members of each line's JSON object, are Stripe's parameters (email, name, phone,
    description, address.city, metadata.plan) and external_id, your own id for the customer. With it a second run goes
    on where the first broke off and makes nothing twice. For customer.fetch the columns are customer_id and
    external_id: these customers get linked to your ids.

    Every row is checked before the first is enqueued; a bad one is named by its line, and nothing is written. Bulk jobs
    let all others go first.
    """
    from customer_jobs.cli import arguments, show
    from customer_jobs.errors import InvalidJob
    from customer_jobs.payload import check_priority, check_stripe_account
    from customer_jobs.rows import read
    from customer_jobs.vocabulary import Kind

    if kind not in set(Kind):
        raise InvalidJob("kind", f"unknown kind {kind[:60]!r}; known are {', '.join(Kind)}")
    shared = {
        "credential": arguments.credential(credential),
        "stripe_account": check_stripe_account(stripe_account),
        "priority": check_priority(arguments.priority(priority)),
    }
    with _opened(file) as opened:
        lines, bad = read(opened, Kind(kind), needs_external_id=not no_external_ids)
    _refuse(bad)
    if not lines:
        raise InvalidJob("FILE", "has no rows")
    done = Imported(len(lines))
    if not dry_run:
        with open_jobs() as customer_jobs, _progress(len(lines)) as tell:
            _enqueue(customer_jobs, Kind(kind), lines, shared, done, tell)
    if as_json:
        show.document({**vars(done), "dry_run": dry_run})
    elif dry_run:
        print(f"{done.rows:,} rows are good; nothing was enqueued")
    else:
        before = f", {done.known:,} were there before" if done.known else ""
        print(f"enqueued {done.enqueued:,} {'job' if done.enqueued == 1 else 'jobs'}{before}")
        note("see how they get on: customer-jobs stats")
    _name_conflicts(done)


def _enqueue(
    customer_jobs: CustomerJobs, kind: Kind, lines: list[Line], shared: dict[str, Any], done: Imported, tell: Any
) -> None:
    from customer_jobs.errors import ConflictError
    from customer_jobs.rows import batches

    for batch in batches(lines, BATCH_SIZE):
        try:
            _enqueue_batch(customer_jobs, kind, batch, shared, done)
        except ConflictError:
            # Another file's, or an app's: all rows but that one are taken.
            for line in batch:
                try:
                    _enqueue_batch(customer_jobs, kind, [line], shared, done)
                except ConflictError as error:
                    held = {"external_id": error.job.external_id, "job_id": error.job.id}
                    done.conflicts.append({"line": line.number, **held})
        tell(len(batch))


def _enqueue_batch(
    customer_jobs: CustomerJobs, kind: Kind, batch: list[Line], shared: dict[str, Any], done: Imported
) -> None:
    from sqlalchemy import select

    from customer_jobs.database import Transaction, translating_outages
    from customer_jobs.sql import now
    from customer_jobs.vocabulary import Kind

    with translating_outages(), customer_jobs.engine.begin() as connection:
        began = Transaction(connection).value(select(now()))
        if kind is Kind.CUSTOMER_CREATE:
            rows = [line.options | shared for line in batch]
            made = customer_jobs.create_customers(rows, session=connection)
        else:
            made = [customer_jobs.fetch_customer(**line.options, **shared, session=connection) for line in batch]
    new = len({job.id for job in made if job.created_at >= began})
    done.enqueued += new
    done.known += len(batch) - new


def _refuse(bad: list[BadLine]) -> None:
    if not bad:
        return
    for line in bad[:SHOWN_AT_MOST]:
        note(str(line))
    if len(bad) > SHOWN_AT_MOST:
        note(f"… and {len(bad) - SHOWN_AT_MOST:,} more")
    without = any(line.field == "external_id" and "missing" in line.problem for line in bad)
    hint = "; to take rows without one all the same: --no-external-ids" if without else ""
    complain(f"{len(bad):,} {'row is' if len(bad) == 1 else 'rows are'} bad; nothing was enqueued{hint}")
    raise typer.Exit(Exit.BAD_INPUT)


def _name_conflicts(done: Imported) -> None:
    if not done.conflicts:
        return
    for each in done.conflicts[:SHOWN_AT_MOST]:
        held = f"external_id {each['external_id']!r} is that of job {each['job_id']}, with other values"
        note(f"line {each['line']}: {held}")
    if len(done.conflicts) > SHOWN_AT_MOST:
        note(f"… and {len(done.conflicts) - SHOWN_AT_MOST:,} more")
    complain(f"{len(done.conflicts):,} rows were not enqueued: their external_id was used before, with other values")
    raise typer.Exit(Exit.JOB_FAILED)


@contextmanager
def _opened(file: str) -> Iterator[TextIO]:
    from customer_jobs.errors import InvalidJob

    try:
        if file == "-":
            yield io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig", newline="")
        else:
            with Path(file).open(encoding="utf-8-sig", newline="") as opened:
                yield opened
    except UnicodeDecodeError:
        raise InvalidJob("FILE", f"{file!r} is not UTF-8 text") from None
    except OSError as error:
        raise InvalidJob("FILE", f"cannot read {file!r}: {error.strerror}") from error


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A bar on standard error where somebody watches."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        yield lambda count: progress.advance(task, count)
