"""A process that does not run between its claim and its call, as when the machine sleeps, sends nothing too late."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine

from customer_jobs.problems import OUTCOME_UNKNOWN
from customer_jobs.producer import CustomerJobs
from customer_jobs.request import Request
from customer_jobs.sandbox import Sandbox
from customer_jobs.vocabulary import State
from tests.builders import EMAIL, Worker, add_fetch, add_job, create, dispatched, fetch, job_row, later, ledger
from worker.answers import Answer
from worker.dispatcher import upkeep
from worker.gateway import Gateway
from worker.leases import LONGEST_SECONDS
from worker.record import LATE, Recorded
from worker.retry import CREATE_WINDOW, RetryPolicy

POLICY = RetryPolicy(window=CREATE_WINDOW)
HOUR_SECONDS = 3600.0
Call = Callable[[Gateway, Request], Answer]


class Clock:
    """A clock that a test moves."""

    def __init__(self, began: float = 0.0) -> None:
        self.seconds = began

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def steady() -> Clock:
    """The worker's clock that cannot be set back."""
    return Clock(7.0)


@pytest.fixture
def wall() -> Clock:
    """The worker's clock that people read, and Stripe's."""
    return Clock(time.time())


@pytest.fixture
def sandbox(wall: Clock) -> Iterator[Sandbox]:
    with Sandbox(clock=wall) as running:
        yield running


@pytest.fixture
def worker(engine: Engine, sandbox: Sandbox, steady: Clock, wall: Clock) -> Worker:
    return Worker(engine, sandbox, clocks=(steady, wall))


def attempt(worker: Worker, job_id: str, meanwhile: Callable[[], object], call: Call = create) -> Recorded | None:
    """Make an attempt; something else happens between its claim and its call."""

    def held_up(stripe: Gateway, request: Request) -> Answer:
        meanwhile()
        return call(stripe, request)

    return worker.runner.attempt(dispatched(worker.engine, job_id), held_up, POLICY, worker="w1")


def sends(sandbox: Sandbox) -> list[str | None]:
    """The idempotency keys of the creates."""
    return [request.idempotency_key for request in sandbox.requests if request.method == "POST"]


def test_a_create_that_another_took_over_is_not_sent(
    engine: Engine, worker: Worker, sandbox: Sandbox, steady: Clock
) -> None:
    job_id = add_job(engine)
    planned = []

    def sleep() -> None:
        steady.seconds += HOUR_SECONDS
        later(engine, HOUR_SECONDS, job_id)
        upkeep.rescue(engine, worker.holder, lambda tx, held: worker.runner.abandon(tx, held, POLICY))
        planned.append(job_row(engine, job_id))

    recorded = attempt(worker, job_id, sleep)

    (entry,) = ledger(engine, job_id)
    assert sandbox.requests == []
    assert recorded == LATE
    assert job_row(engine, job_id) == planned[0]
    assert (planned[0]["state"], planned[0]["first_sent_at"] is not None) == (State.RETRYING, True)
    assert (entry["verdict"], entry["ambiguous"], entry["error_code"]) == ("retry", False, "too_late")


def test_what_was_certainly_never_sent_may_be_taken_back(
    engine: Engine, worker: Worker, sandbox: Sandbox, steady: Clock
) -> None:
    job_id = add_job(engine)

    def sleep() -> None:
        steady.seconds += HOUR_SECONDS
        later(engine, HOUR_SECONDS, job_id)
        upkeep.rescue(engine, worker.holder, lambda tx, held: worker.runner.abandon(tx, held, POLICY))

    attempt(worker, job_id, sleep)
    sandbox.faults.add("424")
    worker.dispatch_and_attempt(job_id)

    assert job_row(engine, job_id)["first_sent_at"] is None
    assert CustomerJobs(engine).cancel(job_id)


@pytest.mark.parametrize("clock", ["steady", "wall"])
def test_either_clock_is_believed(
    engine: Engine, worker: Worker, sandbox: Sandbox, clock: str, request: pytest.FixtureRequest
) -> None:
    job_id = add_job(engine)
    moved: Clock = request.getfixturevalue(clock)

    def sleep() -> None:
        moved.seconds += LONGEST_SECONDS

    attempt(worker, job_id, sleep)

    row = job_row(engine, job_id)
    assert sandbox.requests == []
    assert (row["state"], row["first_sent_at"], row["error"]["code"]) == (State.RETRYING, None, "too_late")
    worker.dispatch_and_attempt(job_id)
    assert job_row(engine, job_id)["outcome"] == "created"


def test_a_clock_set_back_hides_no_sleep(
    engine: Engine, worker: Worker, sandbox: Sandbox, steady: Clock, wall: Clock
) -> None:
    def sleep() -> None:
        steady.seconds += HOUR_SECONDS
        wall.seconds -= HOUR_SECONDS

    attempt(worker, add_job(engine), sleep)

    assert sandbox.requests == []


def test_what_is_only_slow_is_sent(engine: Engine, worker: Worker, steady: Clock) -> None:
    job_id = add_job(engine)

    def dawdle() -> None:
        steady.seconds += LONGEST_SECONDS - 1

    attempt(worker, job_id, dawdle)

    assert job_row(engine, job_id)["outcome"] == "created"


def test_a_fetch_may_come_late(engine: Engine, worker: Worker, sandbox: Sandbox, steady: Clock) -> None:
    sandbox.add_customer("cus_1", account="acct_shop")
    job_id = add_fetch(engine, payload={"customer_id": "cus_1"}, customer_id="cus_1")

    def sleep() -> None:
        steady.seconds += HOUR_SECONDS

    attempt(worker, job_id, sleep, fetch)

    assert job_row(engine, job_id)["outcome"] == "found"


@pytest.mark.parametrize(("fault", "ends"), [("500_after", "adopted"), ("reset", OUTCOME_UNKNOWN)])
def test_a_create_claimed_shortly_before_stripe_forgets_its_key_is_not_sent_after_that(
    engine: Engine, worker: Worker, sandbox: Sandbox, steady: Clock, wall: Clock, fault: str, ends: str
) -> None:
    job_id = add_job(engine, payload={"body": {"email": EMAIL, "metadata": {"sandbox": fault}}})

    def pass_time(seconds: float) -> None:
        steady.seconds += seconds
        wall.seconds += seconds
        later(engine, seconds, job_id)

    def settle() -> None:
        upkeep.rescue(engine, worker.holder, lambda tx, held: worker.runner.abandon(tx, held, POLICY))
        for _ in range(4):
            worker.work()
            pass_time(61)

    def sleep() -> None:
        pass_time(2 * HOUR_SECONDS)
        settle()

    worker.dispatch_and_attempt(job_id)
    pass_time(23 * HOUR_SECONDS - 60)
    attempt(worker, job_id, sleep)

    row = job_row(engine, job_id)
    assert ends in (row["outcome"], (row["error"] or {}).get("code"))
    assert sends(sandbox) == [f"customer-jobs-{job_id}"]
    assert len(sandbox.customers()) == (1 if ends == "adopted" else 0)
