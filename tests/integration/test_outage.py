"""Stripe is away for hours: every job ends as if nothing had been, one customer each; time passes by ageing rows."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, func, select

from customer_jobs.database import reading
from customer_jobs.sandbox import Sandbox
from customer_jobs.schema import jobs
from customer_jobs.sql import now
from tests.builders import Worker, add_fetch, add_job, job_row, later, ledger, rows

pytestmark = pytest.mark.slow

TWO_HOURS = timedelta(hours=2)
#: What the world says of an outage, one after the other.
WAYS_TO_BE_AWAY = ["500", "reset", "503", "html_502", "no_error", "close", "lock_timeout", "rate_limit"]


class Clock:
    """The sandbox's clock; rows grow older, and so does what it keeps."""

    def __init__(self) -> None:
        self.ahead_seconds = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sandbox(clock: Clock) -> Iterator[Sandbox]:
    with Sandbox(clock=clock) as running:
        yield running


def seconds_until_next(engine: Engine) -> float | None:
    """How long until the next job is due; None if none is left."""
    with reading(engine) as transaction:
        row = transaction.row(
            select(func.min(jobs.c.due_at).label("due"), now().label("present")).where(jobs.c.finished_at.is_(None))
        )
    assert row is not None
    if row["due"] is None:
        return None
    return max(float((row["due"] - row["present"]).total_seconds()), 0.0)


class World:
    """A worker, and time that passes as far as to the next job that is due; `draw` is the jitter."""

    def __init__(self, engine: Engine, sandbox: Sandbox, draw: Callable[[], float]) -> None:
        self.engine = engine
        self.worker = Worker(engine, sandbox)
        self.worker.runner._draw = draw
        self.passed = timedelta(0)

    def go_on_for(self, period: timedelta) -> None:
        """Work through so much time, or until nothing is left."""
        end = self.passed + period
        while (wait := seconds_until_next(self.engine)) is not None and self.passed < end:
            step = min(wait + 0.05, (end - self.passed).total_seconds() + 0.05)
            later(self.engine, step)
            self.passed += timedelta(seconds=step)
            self.worker.work()


def test_after_two_hours_without_stripe_every_job_ends_well(engine: Engine, sandbox: Sandbox) -> None:
    world = World(engine, sandbox, random.Random(4).random)
    creates = [add_job(engine, payload={"body": {"email": f"{number}@example.com"}}) for number in range(6)]
    ids = [f"cus_sandbox_ok__id{number}" for number in range(2)]
    fetches = [add_fetch(engine, payload={"customer_id": each, "expand": []}, customer_id=each) for each in ids]
    for number, fault in enumerate(WAYS_TO_BE_AWAY):
        sandbox.faults.add(fault, path="/v1/customers", probability=1 / (len(WAYS_TO_BE_AWAY) - number))
    for each in ids:
        sandbox._store.ensure("acct_shop", "test", each)

    world.go_on_for(TWO_HOURS)
    during = [job_row(engine, each)["state"] for each in creates]
    sandbox.faults.clear()
    world.go_on_for(timedelta(hours=6))

    ended = [job_row(engine, each) for each in creates + fetches]
    assert set(during) == {"retrying"}
    assert [row["state"] for row in ended] == ["succeeded"] * len(ended)
    assert {row["outcome"] for row in ended} <= {"created", "found"}
    by_job = [customer["metadata"].get("customer_jobs_id") for customer in sandbox.customers()]
    assert sorted(each for each in by_job if each) == sorted(creates)
    assert_each_key_is_one(engine, sandbox, creates)
    # No storm: about one attempt an hour and job, after the first dozen.
    assert all(row["attempt"] <= 22 for row in ended)
    assert len(sandbox.requests) == sum(len(ledger(engine, each)) for each in creates + fetches)


def assert_each_key_is_one(engine: Engine, sandbox: Sandbox, creates: list[str]) -> None:
    """Every create was sent under one key with one set of parameters."""
    sent: dict[str | None, list[Any]] = {}
    for request in sandbox.requests:
        if request.endpoint == "create":
            sent.setdefault(request.idempotency_key, []).append(request.params)
    assert sent.keys() == {f"customer-jobs-{each}" for each in creates}
    assert all(params == each[0] for each in sent.values() for params in each)
    assert {row["first_sent_at"] is None for row in rows(engine, jobs, kind="customer.create")} == {False}


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_day_without_an_answer_ends_in_a_look_and_not_in_a_second_customer(
    engine: Engine, sandbox: Sandbox, clock: Clock
) -> None:
    world = World(engine, sandbox, lambda: 0.9)
    clock.ahead_seconds = -25 * 3600  # What is made now is a day old when it is looked for.
    job_id = add_job(engine, max_attempts=200)
    sandbox.faults.add("reset_after", method="POST")
    sandbox.faults.add("503", method="GET")

    world.go_on_for(timedelta(hours=25))
    waiting = job_row(engine, job_id)
    sandbox.faults.clear()
    clock.ahead_seconds = 0
    world.go_on_for(timedelta(minutes=10))

    row = job_row(engine, job_id)
    posts = [request for request in sandbox.requests if request.method == "POST"]
    assert (waiting["state"], waiting["reconciling"]) == ("retrying", True)
    assert (row["state"], row["outcome"], len(sandbox.customers())) == ("succeeded", "adopted", 1)
    assert len({request.idempotency_key for request in posts}) == 1
    sent = [each["started_at"] for each in ledger(engine, job_id) if each["idempotency_key"]]
    assert sent[-1] - sent[0] <= timedelta(hours=23)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_limit_that_lasts_costs_no_attempt_and_ends_after_three_days(engine: Engine, sandbox: Sandbox) -> None:
    world = World(engine, sandbox, lambda: 0.9)
    patient, impatient = add_job(engine, external_id="user-1"), add_job(engine)
    sandbox.faults.add("rate_limit")

    world.go_on_for(timedelta(hours=30))
    between = [job_row(engine, each) for each in (patient, impatient)]
    sandbox.faults.clear()
    later(engine, 3600, patient)
    world.worker.dispatch_and_attempt(patient)
    sandbox.faults.add("rate_limit")
    world.go_on_for(timedelta(hours=44))

    assert [(row["state"], row["attempt"]) for row in between] == [("retrying", 0)] * 2
    assert (job_row(engine, patient)["state"], job_row(engine, patient)["attempt"]) == ("succeeded", 1)
    failed = job_row(engine, impatient)
    assert (failed["state"], failed["error"]["code"]) == ("failed", "rate_limited_too_long")
    assert "RATE_LIMIT_CREATE" in failed["error"]["remedy"]
    assert failed["first_sent_at"] is None
    assert len(sandbox.customers()) == 1
