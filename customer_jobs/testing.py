"""For the tests of apps: a migrated table, our local Stripe, and the end of a job without a worker.

In `conftest.py`: `pytest_plugins = ["customer_jobs.testing"]`. Needs neither Celery nor Redis.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete

from customer_jobs import lifecycle
from customer_jobs import schema as tables
from customer_jobs.database import Transaction, open_engine
from customer_jobs.errors import CustomerJobsError, UnknownJob
from customer_jobs.job import Job
from customer_jobs.lifecycle import Claim, Entry, Sending, entry_of, refusal, success_of
from customer_jobs.migrate import migrate
from customer_jobs.problems import problem_of
from customer_jobs.producer import CustomerJobs
from customer_jobs.request import request_of
from customer_jobs.sandbox import Sandbox
from customer_jobs.vocabulary import Kind, State, Verdict

__all__ = ["clear", "fail", "jobs", "stripe_sandbox", "succeed"]

WORKER = "testing"  #: Stands in the ledger where the name of a worker would.
DURATION_MS = 0.0  #: Nobody was asked.
LEASE_SECONDS = 60  #: More than the moment between handing out and claiming.

_current: list[CustomerJobs] = []  #: That of the `jobs` fixture, while a test runs.


@pytest.fixture(scope="session")
def _migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("customer_jobs") / "template.sqlite3"
    engine = open_engine(f"sqlite:///{path}")
    migrate(engine)
    engine.dispose()
    return path


@pytest.fixture
def jobs(_migrated_sqlite: Path, tmp_path: Path) -> Iterator[CustomerJobs]:
    """CustomerJobs on a table of its own, a SQLite file."""
    path = shutil.copy(_migrated_sqlite, tmp_path / "customer_jobs.sqlite3")
    made = CustomerJobs(f"sqlite:///{path}")
    _current.append(made)
    yield made
    _current.remove(made)
    made.engine.dispose()


@pytest.fixture
def stripe_sandbox() -> Iterator[Sandbox]:
    """Our local Stripe on a free port: `url` for the app's client, `requests` for what arrived."""
    with Sandbox() as sandbox:
        yield sandbox


def succeed(
    job: Job,
    customer: Mapping[str, Any] | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    replayed: bool = False,
    jobs: CustomerJobs | None = None,
) -> Job:
    """The job ended well: row, attempt, event and local copy as a worker writes them, by the same code.

    `customer` is Stripe's object, or the part of it that the test cares about; what it leaves out comes from the job.
    """
    table = jobs or _of_fixture()
    with table._transaction(None) as transaction:  # noqa: SLF001 - this module is the other half of CustomerJobs
        held = _claim(transaction, job)
        body = _stripe_object(held.job, customer or {})
        success = success_of(job.kind, body, headers=headers or {}, replayed=replayed, key_is_live=False)
        request_id = f"req_{uuid.uuid4().hex[:14]}"
        entry = Entry(
            Verdict.SUCCEEDED, http_status=200, request_id=request_id, replayed=replayed, duration_ms=DURATION_MS
        )
        lifecycle.succeed(transaction, held, success, entry)
    return _read(table, job)


def fail(
    job: Job,
    error: Mapping[str, Any] | None = None,
    *,
    http_status: int = 400,
    headers: Mapping[str, str] | None = None,
    ambiguous: bool = False,
    jobs: CustomerJobs | None = None,
) -> Job:
    """The job failed for good: `error` is Stripe's error object, such as `{"code": "email_invalid", "param": "email"}`.

    With `ambiguous` Stripe may have created the customer all the same, and the external_id stays taken; the job then
    has no answer of Stripe's to show.
    """
    table = jobs or _of_fixture()
    request_id = f"req_{uuid.uuid4().hex[:14]}"
    given = {"type": "invalid_request_error", "message": "refused by the test", **(error or {})}
    problem = problem_of(given, http_status=http_status, request_id=request_id)
    with table._transaction(None) as transaction:  # noqa: SLF001 - as above
        held = _claim(transaction, job)
        entry = replace(entry_of(Verdict.FAILED, problem), ambiguous=ambiguous, duration_ms=DURATION_MS)
        envelope = problem.envelope(credential=job.credential, transient=ambiguous)
        answered = None if ambiguous else refusal({"error": given}, headers or {"Request-Id": request_id})
        lifecycle.fail(transaction, held, entry, error=envelope, result=answered)
    return _read(table, job)


def clear(jobs: CustomerJobs | None = None) -> None:
    """Delete every job and all that came of it; for tests whose changes nobody rolls back."""
    with (jobs or _of_fixture())._transaction(None) as transaction:  # noqa: SLF001 - as above
        for table in (tables.events, tables.attempts, tables.jobs, tables.customers):
            transaction.change(delete(table))


def _claim(transaction: Transaction, job: Job) -> Claim:
    row = lifecycle.read(transaction, job.id)
    if row is None:
        raise UnknownJob(job.id)
    if row["state"] not in {State.QUEUED, State.RETRYING}:
        raise CustomerJobsError(f"job {job.id} is {row['state']}; only a waiting job can be ended by a test")
    request = request_of(row)
    creates = job.kind == Kind.CUSTOMER_CREATE
    sending = Sending(request.frozen(), WORKER, request.idempotency_key if creates else None, may_create=creates)
    token = str(uuid.uuid4())
    lifecycle.mark_dispatched(transaction, [job.id], token=token, lease_seconds=LEASE_SECONDS)
    held = lifecycle.claim(transaction, row | {"lease_token": token}, worker=WORKER, sending=sending)
    assert held is not None  # noqa: S101 - dispatched in this very transaction
    return held


def _stripe_object(row: Mapping[str, Any], customer: Mapping[str, Any]) -> dict[str, Any]:
    request = request_of(row)
    known = {"id": f"cus_{uuid.uuid4().hex[:14]}", "object": "customer", "livemode": False}
    if row["kind"] == Kind.CUSTOMER_CREATE:
        return {**known, "email": None, "name": None, **request.params, **customer}
    return {**known, "id": request.params["customer_id"], **customer}


def _read(table: CustomerJobs, job: Job) -> Job:
    read = table.get(job.id)
    assert read is not None  # noqa: S101 - written a moment ago
    return read


def _of_fixture() -> CustomerJobs:
    if not _current:
        raise CustomerJobsError("no `jobs` fixture is in use; pass jobs=… to say whose job it is")
    return _current[-1]
