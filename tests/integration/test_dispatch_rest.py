"""The dispatcher rests when nothing may leave: it neither spins nor writes."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine

from customer_jobs.embedded import wait_until
from customer_jobs.schema import lanes
from tests.builders import Clock, add_fetch, add_job, add_worker, age, lead, rows, settings_for
from worker.dispatcher import Dispatcher
from worker.dispatcher.dispatch import PUBLISH_PAUSE_SECONDS, Dispatch
from worker.dispatcher.limits import CAPACITY_TOKENS
from worker.settings import Settings

TOMORROW = datetime.now(UTC) + timedelta(days=1)
SETTINGS = {
    "database_url": "sqlite:///unused.sqlite3",
    "redis_url": "redis://unused",
    "stripe_api_keys": {"default": "sk_test_shop"},
    "rate_limit_account": 50,
}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def dispatch(engine: Engine, clock: Clock) -> Dispatch:
    """A dispatcher that leads, with sixteen free threads."""
    add_worker(engine, slots=16)
    settings = Settings.model_validate(SETTINGS)
    return Dispatch(engine, settings, lambda _: None, holder=lead(engine), clock=clock)


def test_a_job_that_is_due_later_lets_the_dispatcher_rest(engine: Engine, dispatch: Dispatch) -> None:
    add_job(engine, due_at=TOMORROW)
    dispatch.run_once()
    age(engine, 60, lanes)  # The buckets are full by now.
    before = rows(engine, lanes)

    look = dispatch.run_once()

    assert (look.dispatched, look.again_in_seconds) == (0, None)
    assert rows(engine, lanes) == before


def test_a_job_beyond_the_limit_is_looked_at_when_the_limit_lets_it(engine: Engine, dispatch: Dispatch) -> None:
    for _ in range(3):
        add_job(engine)

    look = dispatch.run_once()

    assert look.dispatched == 1  # A new bucket holds one call.
    assert look.again_in_seconds == pytest.approx(1 / 25, rel=0.1)


def test_what_a_look_takes_is_no_part_of_the_pause_behind_it(engine: Engine, dispatch: Dispatch, clock: Clock) -> None:
    for _ in range(3):
        add_job(engine)
    clock.step_seconds = 0.005
    began = clock.seconds

    look = dispatch.run_once()

    assert look.again_in_seconds == pytest.approx(1 / 25 + 0.005 - (clock.seconds - began), rel=0.1)


@pytest.mark.parametrize("looks_before", [1, 2])
def test_a_look_that_takes_longer_than_a_call_is_followed_by_another_that_makes_up_for_it(
    engine: Engine, dispatch: Dispatch, clock: Clock, looks_before: int
) -> None:
    for _ in range(12):
        add_job(engine)
    clock.step_seconds = 0.2

    looks = [dispatch.run_once() for _ in range(looks_before)]
    age(engine, 0.2, lanes)
    last = dispatch.run_once()

    assert (looks[0].dispatched, looks[-1].again_in_seconds) == (1, 0)
    assert last.dispatched > CAPACITY_TOKENS


def test_after_a_rest_no_more_leave_together_than_ever(engine: Engine, dispatch: Dispatch, clock: Clock) -> None:
    clock.step_seconds = 0.2
    add_job(engine)
    dispatch.run_once()
    nothing = dispatch.run_once()
    for _ in range(12):
        add_job(engine)
    age(engine, 60, lanes)

    look = dispatch.run_once()

    assert (nothing.dispatched, nothing.again_in_seconds) == (0, None)
    assert look.dispatched == CAPACITY_TOKENS


def test_a_job_that_another_lane_took_the_accounts_call_from_is_looked_at_in_time(
    engine: Engine, dispatch: Dispatch
) -> None:
    add_job(engine)
    add_fetch(engine)

    look = dispatch.run_once()

    assert look.dispatched == 1  # They share the account's one call.
    assert look.again_in_seconds is not None
    assert 0 < look.again_in_seconds < 0.1


def test_the_last_due_job_lets_the_dispatcher_rest(engine: Engine, dispatch: Dispatch) -> None:
    add_job(engine, due_at=TOMORROW)
    dispatch.run_once()
    age(engine, 60, lanes)
    add_job(engine)

    assert dispatch.run_once().dispatched == 1
    assert dispatch.run_once().again_in_seconds is None


def test_only_a_dispatcher_without_room_waits_for_jobs_to_end(engine: Engine) -> None:
    add_worker(engine, slots=1, name="w2")
    settings = Settings.model_validate(SETTINGS | {"max_in_flight": 1})
    dispatch = Dispatch(engine, settings, lambda _: None, holder=lead(engine))

    assert not dispatch.run_once().full
    add_job(engine)
    assert dispatch.run_once().full  # It gave the last thread away, …
    assert dispatch.run_once().full  # … and has none since.


def test_a_broker_that_is_away_is_tried_once_a_second(engine: Engine) -> None:
    for _ in range(4):
        add_job(engine)
    tried: list[float] = []

    def publish(_: object) -> None:
        tried.append(time.monotonic())
        raise ConnectionError

    dispatcher = Dispatcher(
        engine, settings_for(), publish, worker="w1", slots=16, abandon=lambda _transaction, _held: None
    )
    dispatcher.start()
    try:
        wait_until(lambda: len(tried) >= 3, 20, "it has been tried three times")
    finally:
        dispatcher.stop()

    # Putting the jobs back is itself a change that rings the bell.
    assert tried[2] - tried[0] >= 2 * PUBLISH_PAUSE_SECONDS
