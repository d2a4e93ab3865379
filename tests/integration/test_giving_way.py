"""Where Stripe turns calls away, what it names gives way: a rate is halved, or fewer jobs are in flight."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import chain

import pytest
from sqlalchemy import Engine, update

from customer_jobs.database import writing
from customer_jobs.sandbox import Sandbox
from customer_jobs.schema import attempts, jobs, lanes
from customer_jobs.sql import now
from customer_jobs.vocabulary import IN_FLIGHT_STATES
from tests.builders import KEY, Worker, add_fetch, add_job, add_worker, age, dispatched, lead, rows
from worker.dispatcher.dispatch import ADAPT_EVERY_SECONDS, SLOW_EVERY_SECONDS, Dispatch

AT_ONCE = 2  #: Calls that Stripe's stand-in lets be under way.
RATE = 10_000.0  #: What the settings of these tests allow.
EACH = 6  #: Jobs of each kind.
WITHIN_SECONDS = 1.5 * ADAPT_EVERY_SECONDS  #: Answers are looked at again by then, and no rate is halved again yet.


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
    turned_away = [[dispatched(engine) for _ in range(EACH)] for _ in range(3)]
    for job_id in chain(*turned_away):
        worker.attempt(job_id)

    def rate_after(answers: list[str], *, passed_seconds: float) -> float:
        """The rate when these answers have just come in, so long after the look before."""
        let_pass(worker.dispatch, passed_seconds)
        with writing(engine) as transaction:
            transaction.change(update(attempts).values(finished_at=now(-10)))
            calls = update(attempts).where(attempts.c.job_id.in_(answers))
            transaction.change(calls.values(started_at=now(), finished_at=now(5)))
        add_fetch(engine)  # Where nothing waits, no limit is looked after.
        look_now(worker)
        return rates(engine)[slowed]

    found = [
        rate_after(answers, passed_seconds=seconds)
        for answers, seconds in zip(turned_away, (0, WITHIN_SECONDS, SLOW_EVERY_SECONDS), strict=True)
    ]

    # Meanwhile it is felt for: a rate that gives way comes back by some thousandths.
    assert found == [RATE / 2, pytest.approx(RATE / 2, rel=0.05), pytest.approx(RATE / 4, rel=0.05)]


def let_pass(dispatch: Dispatch, seconds: float) -> None:
    """Let time pass for what a dispatcher remembers of its last looks."""
    passed = timedelta(seconds=seconds)
    dispatch._slowed_at = {key: at - passed for key, at in dispatch._slowed_at.items()}
    if dispatch._adapted_at is not None:
        dispatch._adapted_at -= passed


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


def test_a_clock_that_was_set_back_makes_no_ceiling_sink(
    engine: Engine, sandbox: Sandbox, threads: ThreadPoolExecutor
) -> None:
    sandbox.set_limits(concurrency=AT_ONCE)
    worker = Worker(engine, sandbox)
    call(worker, sandbox, threads)
    look(worker)
    dispatch = worker.dispatch
    let_pass(dispatch, -3600)
    (ahead,) = dispatch._slowed_at.values()

    look(worker)

    assert min(dispatch._ceilings._ceilings.values()) >= 1
    (slowed_at,) = dispatch._slowed_at.values()
    assert ahead - slowed_at > timedelta(minutes=59), "what Stripe says counts again"


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
