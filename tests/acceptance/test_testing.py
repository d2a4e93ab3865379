"""A job ended by `customer_jobs.testing` looks like one that a worker has ended."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from customer_jobs import Job, testing
from customer_jobs.database import reading
from customer_jobs.schema import attempts, customers, events, jobs
from tests.acceptance.stack import Stack, email, unique

#: What differs between any two jobs, or tells who did it.
ITS_OWN = {
    *("id", "job_id", "seq", "subject", "external_id", "customer_id", "request_id", "idempotency_key", "worker"),
    *("due_at", "created_at", "started_at", "finished_at", "fetched_at", "first_sent_at", "duration_ms", "sent_to"),
    *("payload", "params", "result", "error", "data", "email", "metadata"),
}
LATER = datetime.now(UTC) + timedelta(hours=1)  #: No worker takes the job away from the test.


def written(stack: Stack, job: Job) -> dict[str, Any]:
    """All rows about a job: what is the same in every such job, and which columns hold something."""
    about = [
        (jobs, jobs.c.id == job.id),
        (attempts, attempts.c.job_id == job.id),
        (events, events.c.subject == job.id),
        (customers, customers.c.id == job.customer_id),
    ]
    found: dict[str, Any] = {}
    with reading(stack.engine) as transaction:
        for table, of_job in about:
            for row in transaction.rows(select(*table.c).where(of_job)):
                row.pop("published_at", None)
                found[table.name] = {
                    name: type(value).__name__ if name in ITS_OWN else value for name, value in row.items()
                }
                found[f"{table.name}, inside"] = {
                    name: sorted(value) for name, value in row.items() if isinstance(value, dict) and name in ITS_OWN
                }
    return found


def waiting(stack: Stack, job: Job, **options: Any) -> Job:
    """A job that asks for the same and that no worker takes."""
    if job.kind == "customer.fetch":
        return stack.jobs.fetch_customer(str(job.customer_id), due_at=LATER, **options)
    return stack.jobs.create_customer({"email": email()}, due_at=LATER, **options)


def headers_of(job: Job) -> dict[str, str]:
    assert job.result is not None
    headers: dict[str, str] = job.result["headers"]
    return headers


def test_a_success_is_written_as_by_a_worker(stack: Stack) -> None:
    by_worker = stack.wait_for_end(stack.jobs.create_customer({"email": email()}, external_id=unique("user")))
    assert by_worker.result is not None

    mine = waiting(stack, by_worker, external_id=unique("user"))
    their_answer = {k: v for k, v in by_worker.result["response"].items() if k not in {"id", "email", "metadata"}}
    by_test = testing.succeed(mine, their_answer, headers=headers_of(by_worker), jobs=stack.jobs)

    assert written(stack, by_test) == written(stack, by_worker)
    assert by_test.customer_id is not None
    event = stack.consumer.event_about(by_test.id)
    assert event["data"]["customer_id"] == by_test.customer_id


def test_a_fetch_is_written_as_by_a_worker(stack: Stack) -> None:
    made = stack.wait_for_end(stack.jobs.create_customer({"email": email()}))
    by_worker = stack.wait_for_end(stack.jobs.fetch_customer(str(made.customer_id), context=1))
    assert by_worker.result is not None
    as_by_worker = written(stack, by_worker)

    mine = waiting(stack, by_worker, context=1)
    by_test = testing.succeed(mine, by_worker.result["response"], headers=headers_of(by_worker), jobs=stack.jobs)

    assert written(stack, by_test) == as_by_worker


@pytest.mark.parametrize("stack", ["sqlite"], indirect=True)
def test_a_failure_is_written_as_by_a_worker(stack: Stack) -> None:
    by_worker = stack.wait_for_end(stack.jobs.create_customer({"email": "jenny at home"}, external_id=unique("user")))
    assert by_worker.error is not None

    mine = waiting(stack, by_worker, external_id=unique("user"))
    error = {name: by_worker.error[name] for name in ("type", "code", "param", "message", "doc_url")}
    by_test = testing.fail(mine, error, http_status=400, jobs=stack.jobs)

    assert written(stack, by_test) == written(stack, by_worker)
    assert stack.consumer.event_about(by_test.id)["data"]["error"]["code"] == by_worker.error["code"]
