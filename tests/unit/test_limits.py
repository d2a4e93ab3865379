"""A token bucket hands out what Stripe's limit allows, and never more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.dispatcher.limits import SHARE, Bucket

rates = st.floats(0.1, 1_000)
#: What passes between two looks, and how many calls are wanted then.
looks = st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 50)), max_size=60)


@given(rate=rates, looks=looks)
def test_no_more_is_handed_out_than_the_capacity_and_the_rate_allow(
    rate: float, looks: list[tuple[float, int]]
) -> None:
    bucket = Bucket(tokens=1, rate=rate)
    handed_out, passed_seconds = 0, 0.0

    for elapsed_seconds, wanted in looks:
        bucket = bucket.refilled(elapsed_seconds)
        calls = min(wanted, bucket.calls)
        bucket = bucket.spent(calls)
        handed_out += calls
        passed_seconds += max(elapsed_seconds, 0)

        assert handed_out <= bucket.capacity + rate * SHARE * passed_seconds + 1e-3
        assert bucket.tokens >= -1e-3
        assert bucket.tokens <= bucket.capacity


@given(rate=rates, tokens=st.floats(0, 100), elapsed_seconds=st.floats(-1e9, 0))
def test_a_clock_that_goes_backwards_adds_nothing(rate: float, tokens: float, elapsed_seconds: float) -> None:
    bucket = Bucket(tokens, rate)

    assert bucket.refilled(elapsed_seconds).tokens == min(tokens, bucket.capacity)


@given(rate=rates, pieces=st.integers(1, 500))
def test_many_small_refills_are_worth_one_large(rate: float, pieces: int) -> None:
    bucket = Bucket(0, rate)

    for _ in range(pieces):
        bucket = bucket.refilled(1 / rate / SHARE / pieces)

    assert bucket.calls == 1


@given(rate=rates, tokens=st.floats(0, 3), calls=st.integers(1, 2))
def test_after_the_time_it_names_so_many_calls_may_leave(rate: float, tokens: float, calls: int) -> None:
    bucket = Bucket(tokens, rate)

    assert bucket.refilled(bucket.seconds_until(calls)).calls >= calls


def test_a_limit_of_25_a_second_lets_no_more_than_two_leave_together() -> None:
    bucket = Bucket(tokens=1, rate=25).refilled(3600)

    assert bucket.calls == 2
    assert bucket.spent(2).calls == 0
    assert bucket.spent(2).seconds_until() == pytest.approx(1 / (25 * 0.99))
