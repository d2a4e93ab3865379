"""When a job is tried again, and when no more."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.retry import CREATE_WINDOW, GiveUp, History, RetryPolicy, TryAgain, plan_rate_limited, plan_retry

ALMOST_ONE = 1 - 2**-53

draws = st.floats(0, ALMOST_ONE)
histories = st.builds(
    History,
    attempt=st.integers(1, 2_000),
    max_attempts=st.integers(1, 2_000),
    since_first_sent=st.none() | st.timedeltas(timedelta(0), timedelta(days=3)),
    abandoned=st.integers(0, 6),
    rate_limited=st.integers(1, 100_000),
    rate_limited_for=st.timedeltas(timedelta(0), timedelta(days=5)),
)
policies = st.builds(
    RetryPolicy,
    base_seconds=st.floats(0.001, 10),
    cap_seconds=st.floats(10, 86_400),
    window=st.none() | st.just(CREATE_WINDOW),
)
plans = st.sampled_from([plan_retry, plan_rate_limited])


def history(attempt: int = 1, max_attempts: int = 25, **fields: Any) -> History:
    return History(attempt=attempt, max_attempts=max_attempts, **fields)


@given(failures=st.integers(1, 100_000), draw=draws)
def test_a_delay_is_between_nothing_and_the_cap(failures: int, draw: float) -> None:
    delay_seconds = RetryPolicy().delay_seconds(failures, draw)

    assert 0 <= delay_seconds <= min(3600.0, 2.0 ** min(failures - 1, 64))


@given(failures=st.integers(1, 100_000))
def test_jitter_is_full_from_nothing_to_the_ceiling(failures: int) -> None:
    ceiling = min(3600.0, 2.0 ** min(failures - 1, 64))

    delays = [RetryPolicy().delay_seconds(failures, draw) for draw in (0.0, 0.5, ALMOST_ONE)]

    assert delays == pytest.approx([0.0, ceiling / 2, ceiling])


def test_the_ceiling_doubles_up_to_an_hour() -> None:
    ceilings = [round(RetryPolicy().delay_seconds(failures, ALMOST_ONE)) for failures in range(1, 15)]

    assert ceilings == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 3600, 3600]


def test_an_outage_of_six_hours_is_outlasted_on_average() -> None:
    rolls = random.Random(7)
    hours = [
        sum(RetryPolicy().delay_seconds(failures, rolls.random()) for failures in range(1, 25)) / 3600
        for _ in range(2_000)
    ]

    assert sum(hours) / len(hours) == pytest.approx(6.6, abs=0.1)


@given(plan=plans, history=histories, policy=policies, draw=draws)
def test_whatever_has_happened_the_next_attempt_is_in_bounds_or_there_is_none(
    plan: Any, history: History, policy: RetryPolicy, draw: float
) -> None:
    planned = plan(history, policy, draw)

    if isinstance(planned, TryAgain):
        assert 0 <= planned.delay_seconds <= policy.cap_seconds
        if policy.window is not None and history.since_first_sent is not None:
            assert history.since_first_sent + timedelta(seconds=planned.delay_seconds) <= policy.window
    else:
        assert planned.reason


def test_the_last_attempt_is_the_last() -> None:
    assert plan_retry(history(attempt=24), RetryPolicy(), 0.5) == TryAgain(1800.0)
    assert plan_retry(history(attempt=25), RetryPolicy(), 0.5) == GiveUp("all 25 attempts are used up")


def test_five_abandoned_attempts_are_poison() -> None:
    assert isinstance(plan_retry(history(attempt=4, abandoned=4), RetryPolicy(), 0.5), TryAgain)
    assert plan_retry(history(attempt=5, abandoned=5), RetryPolicy(), 0.5) == GiveUp(
        "5 attempts were abandoned by their workers"
    )


@pytest.mark.parametrize("plan", [plan_retry, plan_rate_limited])
def test_a_create_that_may_have_been_executed_is_not_sent_again_after_23_hours(plan: Any) -> None:
    policy = RetryPolicy(window=CREATE_WINDOW)
    sent = {"attempt": 20, "rate_limited": 20}

    before = plan(history(**sent, since_first_sent=timedelta(hours=22, minutes=59)), policy, ALMOST_ONE)
    after = plan(history(**sent, since_first_sent=timedelta(hours=23)), policy, ALMOST_ONE)
    never_sent = plan(history(**sent), policy, ALMOST_ONE)

    assert before == TryAgain(60.0)
    assert isinstance(after, GiveUp)
    assert never_sent.delay_seconds == pytest.approx(3600)


def test_the_window_does_not_concern_what_may_be_repeated_for_ever() -> None:
    planned = plan_retry(history(attempt=20, since_first_sent=timedelta(days=9)), RetryPolicy(), 0.5)

    assert planned == TryAgain(1800.0)


def test_being_rate_limited_uses_up_no_attempt() -> None:
    planned = plan_rate_limited(history(attempt=25, rate_limited=3), RetryPolicy(), 0.5)

    assert planned == TryAgain(2.0)


def test_being_rate_limited_for_three_days_is_the_end() -> None:
    before = history(rate_limited=99, rate_limited_for=timedelta(days=3) - timedelta(seconds=1))
    after = history(rate_limited=99, rate_limited_for=timedelta(days=3))

    assert isinstance(plan_rate_limited(before, RetryPolicy(), 0.5), TryAgain)
    assert plan_rate_limited(after, RetryPolicy(), 0.5) == GiveUp("rate-limited for 3 days")
