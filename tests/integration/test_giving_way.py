"""Where Stripe turns calls away, what it names gives way: a rate is halved, or fewer jobs are in flight."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, update

from customer_jobs.database import writing
from customer_jobs.sandbox import Sandbox
from customer_jobs.schema import attempts, jobs, lanes
from customer_jobs.sql import now
from customer_jobs.vocabulary import IN_FLIGHT_STATES
from tests.builders import KEY, Worker, add_fetch, add_job, add_worker, age, dispatched, lead, rows
from worker.dispatcher.dispatch import SLOW_EVERY_SECONDS

AT_ONCE = 2  #: Calls that Stripe's stand-in lets be under way.
RATE = 10_000.0  #: What the settings of these tests allow.
EACH = 6  #: Jobs of each kind.
PATIENCE_SECONDS = 10.0  #: With a rate that is to be halved again after one.


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as running:
        running.hold()
        yield running


@pytest.fixture
def threads(sandbox: Sandbox) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(AT_ONCE) as threads:
        yield threads
        sandbox.release()


def look_now(worker: Worker) -> None:
    add_worker(worker.engine, slots=200)
    lead(worker.engine, worker.holder)
    worker.dispatch.run_once()


def look(worker: Worker, looks: int = 2) -> set[str]:
    """What leaves when buckets have had time to fill; that of a new lane begins with one token."""
    add_worker(worker.engine, slots=200)
    lead(worker.engine, worker.holder)
    worker.published.clear()
    with writing(worker.engine) as transaction:
        # As if the answers had come at this moment, however slow the machine is.
        answered = update(attempts).where(attempts.c.http_status.is_not(None))
        transaction.change(answered.values(finished_at=now(5)))
    for _ in range(looks):
        age(worker.engine, 60, lanes)
        worker.dispatch.run_once()
    return {job_id for _, job_id in worker.published}


def call(worker: Worker, sandbox: Sandbox, threads: ThreadPoolExecutor) -> None:
    """Make attempts at some creates: the first two are under way when this returns, the others were turned away."""
    ids = [dispatched(worker.engine) for _ in range(EACH)]
    for job_id in ids[:AT_ONCE]:
        threads.submit(worker.attempt, job_id)
    sandbox.wait_until_held(AT_ONCE)
    for job_id in ids[AT_ONCE:]:
        worker.attempt(job_id)


def in_flight(engine: Engine, kind: str) -> int:
    of_kind = rows(engine, jobs, kind=kind, credential="default")
    return sum(row["state"] in IN_FLIGHT_STATES for row in of_kind)


def rates(engine: Engine) -> dict[str, float]:
    """The rate of every endpoint that jobs have left for."""
    return {row["kind"]: row["rate"] for row in rows(engine, lanes, credential="default")}


def reasons(engine: Engine) -> set[str]:
    return {row["rate_limited_reason"] for row in rows(engine, attempts) if row["rate_limited_reason"]}


@pytest.mark.parametrize(
    ("limit", "reason", "halved"),
    [("rate", "endpoint-rate", "customer.create"), ("account_rate", "global-rate", "*")],
)
def test_the_rate_that_stripe_names_is_halved(
    engine: Engine, sandbox: Sandbox, limit: str, reason: str, halved: str
) -> None:
    sandbox.release()
    sandbox.set_limits(**{limit: 0.001})
    worker = Worker(engine, sandbox)
    for _ in range(EACH):
        worker.attempt(dispatched(engine))
    add_fetch(engine)

    look(worker, looks=1)

    assert reasons(engine) == {reason}
    assert rates(engine) == {"customer.create": RATE, "customer.fetch": RATE, "*": RATE} | {halved: RATE / 2}


@pytest.mark.parametrize(("limit", "slowed"), [("rate", "customer.create"), ("account_rate", "*")])
def test_a_rate_is_halved_once_a_second_at_most(engine: Engine, sandbox: Sandbox, limit: str, slowed: str) -> None:
    sandbox.release()
    sandbox.set_limits(**{limit: 0.001})
    worker = Worker(engine, sandbox)

    def turn_away_and_look() -> tuple[float, float]:
        """The rate after some new answers 429, and when that was."""
        for _ in range(EACH):
            worker.attempt(dispatched(engine))
        look_now(worker)
        return rates(engine)[slowed], time.monotonic()

    began = time.monotonic()
    halved, halved_at = turn_away_and_look()
    seen = [turn_away_and_look()]
    while seen[-1][0] > RATE * 0.45:
        assert seen[-1][1] < halved_at + PATIENCE_SECONDS
        seen.append(turn_away_and_look())

    # Meanwhile it is felt for: a rate that gives way comes back by some thousandths.
    assert halved == RATE / 2
    assert [rate for rate, _ in seen[:-1]] == [pytest.approx(halved, rel=0.05)] * (len(seen) - 1)
    assert seen[-1][0] == pytest.approx(halved / 2, rel=0.05)
    assert seen[-1][1] > began + SLOW_EVERY_SECONDS
    assert len(seen) > 1


def test_too_many_at_an_endpoint_lowers_what_is_in_flight_there_and_nowhere_else(
    engine: Engine, sandbox: Sandbox, threads: ThreadPoolExecutor
) -> None:
    sandbox.set_limits(concurrency=AT_ONCE)
    worker = Worker(engine, sandbox)
    call(worker, sandbox, threads)
    fetches = {add_fetch(engine) for _ in range(EACH)}

    left = look(worker)

    assert reasons(engine) == {"endpoint-concurrency"}
    assert left == fetches
    assert in_flight(engine, "customer.create") == AT_ONCE
    assert rates(engine) == {"customer.create": RATE, "customer.fetch": RATE, "*": RATE}


def test_too_many_in_an_account_lowers_what_is_in_flight_in_all_its_lanes(
    engine: Engine, sandbox: Sandbox, threads: ThreadPoolExecutor
) -> None:
    sandbox.set_limits(account_concurrency=AT_ONCE)
    worker = Worker(engine, sandbox, stripe_api_keys={"default": KEY, "eu": f"{KEY}_eu"})
    call(worker, sandbox, threads)
    for _ in range(EACH):
        add_fetch(engine)
    of_another = {add_job(engine, credential="eu") for _ in range(EACH)}

    left = look(worker)

    assert reasons(engine) == {"global-concurrency"}
    assert left == of_another
    assert (in_flight(engine, "customer.create"), in_flight(engine, "customer.fetch")) == (AT_ONCE, 0)
    assert rates(engine) == {"customer.create": RATE, "customer.fetch": RATE, "*": RATE}


def test_what_had_to_wait_leaves_when_others_have_ended(
    engine: Engine, sandbox: Sandbox, threads: ThreadPoolExecutor
) -> None:
    sandbox.set_limits(concurrency=AT_ONCE)
    worker = Worker(engine, sandbox)
    call(worker, sandbox, threads)
    assert look(worker) == set()

    sandbox.release()
    threads.shutdown()

    assert len(look(worker)) == 1  # Half of the two that were under way.
