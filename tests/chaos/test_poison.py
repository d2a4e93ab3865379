"""Jobs that kill whoever attempts them: after five dead workers they are not tried again, and the others go on."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from customer_jobs import Job
from customer_jobs.database import writing
from customer_jobs.embedded import wait_until
from customer_jobs.lifecycle import LEASE_SECONDS
from customer_jobs.problems import OUTCOME_UNKNOWN, WORKER_DIED
from customer_jobs.schema import events, jobs, leases
from customer_jobs.sql import now
from customer_jobs.vocabulary import Outcome, State, Verdict
from tests import servers
from tests.acceptance.stack import READY_SECONDS, Stack, email, running
from tests.builders import age, job_row, later, ledger, rows
from tests.chaos.invariants import broken_at_the_end, look
from worker.dispatcher.leader import LEASE_SECONDS as LEAD_SECONDS
from worker.reconcile import LOOKS
from worker.retry import MOST_ABANDONED


@pytest.fixture
def stack(_sqlite_template: Path, tmp_path: Path) -> Iterator[Stack]:
    url = f"sqlite:///{shutil.copy(_sqlite_template, tmp_path / 'customer_jobs.sqlite3')}"
    with servers.start_redis(tmp_path) as redis, running(tmp_path, url, redis.url) as stack:
        yield stack


def create(stack: Stack, script: str = "") -> Job:
    return stack.jobs.create_customer({"email": email(), "metadata": {"sandbox": script} if script else {}})


def let_retries_be_due(stack: Stack) -> None:
    """Their backoff and the minutes between looks are another subject."""
    with writing(stack.engine) as transaction:
        transaction.change(update(jobs).where(jobs.c.state == State.RETRYING).values(due_at=now()))


def await_calls(stack: Stack, poison: list[Job], count: int) -> None:
    def are_there() -> bool:
        let_retries_be_due(stack)
        return all(len(stack.requests_of(job)) == count for job in poison)

    wait_until(are_there, READY_SECONDS, f"every poisonous job has called {count} times")


@pytest.mark.slow
def test_a_job_that_kills_its_worker_each_time_ends_and_the_others_go_on(stack: Stack) -> None:
    # While Stripe keeps them waiting the worker dies. Of the creates only the second is executed.
    reading = stack.jobs.fetch_customer("cus_sandbox_hangx9")
    undone, done = create(stack, "hang*9"), create(stack, "hang_after*9")
    poison, others = [reading, undone, done], []

    for number in range(1, MOST_ABANDONED + 1):
        worker = stack.start_worker(f"victim{number}")
        await_calls(stack, poison, number)
        others.append(stack.wait_for_end(create(stack)))
        assert worker.kill() == -signal.SIGKILL
        # The leases of the dead run out; waiting for that is another test's.
        for job in poison:
            later(stack.engine, LEASE_SECONDS + 1, job.id)
        age(stack.engine, LEAD_SECONDS + 1, leases)
    stack.start_worker("last")

    def is_over() -> bool:
        let_retries_be_due(stack)
        left = [row for row in rows(stack.engine, jobs) if row["finished_at"] is None]
        return not left and all(row["published_at"] for row in rows(stack.engine, events))

    wait_until(is_over, READY_SECONDS, "every job is final")
    abandoned = [Verdict.ABANDONED] * MOST_ABANDONED
    assert {job.state for job in others} == {State.SUCCEEDED}
    assert ended(stack, reading) == (State.FAILED, None, WORKER_DIED, abandoned)
    looks = [*[Verdict.RETRY] * (LOOKS - 1), Verdict.FAILED]
    assert ended(stack, undone) == (State.FAILED, None, OUTCOME_UNKNOWN, [*abandoned, *looks])
    assert ended(stack, done) == (State.SUCCEEDED, Outcome.ADOPTED, None, [*abandoned, Verdict.SUCCEEDED])
    assert [len(stack.customers_of(job)) for job in (undone, done)] == [0, 1]
    assert broken_at_the_end(look(stack.engine, stack.sandbox)) == []


def ended(stack: Stack, job: Job) -> tuple[str, str | None, str | None, list[str]]:
    """State, outcome, the error's code, and the verdicts on all attempts."""
    row = job_row(stack.engine, job.id)
    verdicts = [attempt["verdict"] for attempt in ledger(stack.engine, job.id)]
    return row["state"], row["outcome"], (row["error"] or {}).get("code"), verdicts
