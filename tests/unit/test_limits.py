"""A token bucket hands out what Stripe's limit allows, gives way where Stripe turns calls away, and recovers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.dispatcher.limits import (
    CATCH_UP_SECONDS,
    FLOOR_PER_SECOND,
    HALF,
    RECOVERY_SECONDS,
    SHARE,
    Bucket,
    slowing,
)
from worker.pace import Spacing

limits = st.floats(0.1, 1_000)
#: What passes between two looks, how many calls are wanted then, and whether Stripe has turned calls away.
looks = st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 50), st.booleans()), max_size=60)


def bucket(limit: float = 25, **fields: Any) -> Bucket:
    """A new bucket, but for what the test names."""
    return Bucket(**{"tokens": 1.0, "limit": limit, "rate": limit} | fields)


@given(limit=limits, looks=looks)
def test_no_more_is_handed_out_than_the_capacity_and_the_limit_allow(
    limit: float, looks: list[tuple[float, int, bool]]
) -> None:
    now = Bucket.new(limit)
    handed_out, passed_seconds = 0, 0.0

    for elapsed_seconds, wanted, turned_away in looks:
        now = now.refilled(elapsed_seconds)
        if turned_away:
            now = now.slowed()
        calls = min(wanted, now.calls)
        now = now.spent(calls)
        handed_out += calls
        passed_seconds += max(elapsed_seconds, 0)

        assert handed_out <= now.capacity + limit * SHARE * passed_seconds + 1e-3
        assert -1e-3 <= now.tokens <= now.capacity
        assert min(FLOOR_PER_SECOND, limit) <= now.rate <= limit


@given(limit=limits, looks=looks)
def test_in_no_window_is_more_handed_out_than_the_capacity_and_the_limit_allow(
    limit: float, looks: list[tuple[float, int, bool]]
) -> None:
    now, at_seconds = Bucket.new(limit), 0.0
    handed_out: list[tuple[float, int]] = []

    for elapsed_seconds, wanted, turned_away in looks:
        now, at_seconds = now.refilled(elapsed_seconds), at_seconds + max(elapsed_seconds, 0)
        now = now.slowed() if turned_away else now
        calls = min(wanted, now.calls)
        now = now.spent(calls)
        handed_out.append((at_seconds, calls))

    for first, (began, _) in enumerate(handed_out):
        total = 0
        for ended, calls in handed_out[first:]:
            total += calls
            assert total <= now.capacity + limit * SHARE * (ended - began) + 1e-3


@given(limit=limits, rate_share=st.floats(0.05, 1), tokens=st.floats(0, 2), away_seconds=st.floats(0, 1e6))
def test_a_new_leader_begins_with_the_row_as_it_stood_and_the_time_since(
    limit: float, rate_share: float, tokens: float, away_seconds: float
) -> None:
    row = bucket(limit, tokens=tokens, rate=limit * rate_share)

    taken_over = Bucket(row.tokens, limit, row.rate).refilled(away_seconds)

    assert row.tokens <= taken_over.tokens <= row.capacity
    assert taken_over.tokens <= row.tokens + away_seconds * limit * SHARE + 1e-6
    assert row.rate <= taken_over.rate <= limit


@given(limit=limits, tokens=st.floats(0, 100), elapsed_seconds=st.floats(-1e9, 0))
def test_a_clock_that_goes_backwards_adds_nothing(limit: float, tokens: float, elapsed_seconds: float) -> None:
    before = bucket(limit, tokens=tokens, rate=limit / 2)

    after = before.refilled(elapsed_seconds)

    assert (after.tokens, after.rate) == (min(tokens, before.capacity), before.rate)


@given(limit=limits, pieces=st.integers(1, 500))
def test_many_small_refills_are_worth_one_large(limit: float, pieces: int) -> None:
    now = bucket(limit, tokens=0)

    for _ in range(pieces):
        now = now.refilled(1 / limit / SHARE / pieces)

    assert now.calls == 1


@given(limit=limits, tokens=st.floats(0, 3), calls=st.integers(1, 2), slowed=st.booleans())
def test_after_the_time_it_names_so_many_calls_may_leave(limit: float, tokens: float, calls: int, slowed: bool) -> None:
    now = bucket(limit, tokens=tokens)
    if slowed:
        now = now.slowed()

    assert now.refilled(now.seconds_until(calls)).calls >= calls


def test_a_limit_of_25_a_second_lets_no_more_than_two_leave_together() -> None:
    full = bucket(25).refilled(3600)

    assert full.calls == 2
    assert full.spent(2).calls == 0
    assert full.spent(2).seconds_until() == pytest.approx(1 / (25 * 0.99))


@given(limit=limits, late_seconds=st.floats(0, 10), elapsed_seconds=st.floats(0, 10))
def test_what_a_look_kept_waiting_is_made_up_for_and_no_more(
    limit: float, late_seconds: float, elapsed_seconds: float
) -> None:
    empty = bucket(limit, tokens=0)

    now = empty.refilled(elapsed_seconds, late_seconds=late_seconds)

    made_up = min(late_seconds, CATCH_UP_SECONDS) * limit * SHARE
    assert now.tokens == pytest.approx(min(elapsed_seconds * limit * SHARE, empty.capacity + made_up))


@given(limit=st.floats(2, 1_000), late_seconds=st.floats(0, 10))
def test_where_stripe_turned_calls_away_nothing_is_made_up_for(limit: float, late_seconds: float) -> None:
    slow = bucket(limit, tokens=0).slowed()

    assert slow.refilled(60, quiet_seconds=0, late_seconds=late_seconds).tokens <= slow.capacity


def test_it_begins_with_one_call() -> None:
    assert Bucket.new(25).calls == 1


def test_a_limit_that_stripe_shows_halves_the_rate_down_to_one_a_second() -> None:
    now, rates = bucket(20), []

    for _ in range(6):
        now = now.slowed()
        rates.append(now.rate)

    assert rates == [10, 5, 2.5, 1.25, 1, 1]
    assert now.calls == 0


@given(limit=limits)
def test_slowing_down_never_makes_faster(limit: float) -> None:
    assert bucket(limit).slowed().rate <= limit


@given(limit=st.floats(2, 1_000), pieces=st.integers(1, 50))
def test_the_whole_limit_is_regained_little_by_little(limit: float, pieces: int) -> None:
    slow = bucket(limit, rate=FLOOR_PER_SECOND)
    now, rates = slow, [slow.rate]

    for _ in range(pieces):
        now = now.refilled(RECOVERY_SECONDS / pieces)
        rates.append(now.rate)

    assert rates == sorted(rates)
    assert now.rate == pytest.approx(limit)
    assert slow.refilled(RECOVERY_SECONDS / 4).rate == pytest.approx(min(1 + limit / 4, limit))


def test_a_rate_that_was_slowed_stays_near_it_at_first_and_then_comes_back_ever_faster() -> None:
    slow = bucket(25, rate=10.0)

    rates = [slow.refilled(1, quiet_seconds=quiet).rate for quiet in (0, 3, 4, 5, 60)]

    assert rates == pytest.approx([10.1, 10.1, 11.1, 12.1, 12.5])


@pytest.mark.parametrize(
    ("answers", "rate_limited", "factor"), [(0, 0, None), (2, 2, None), (3, 3, 0.5), (30, 3, None), (29, 3, 0.5)]
)
def test_a_few_429_now_and_then_are_no_limit(answers: int, rate_limited: int, factor: float | None) -> None:
    assert slowing(answers, rate_limited, rate=25, is_slowed=False) == factor


@pytest.mark.parametrize("rate", [1.5, 12])
@pytest.mark.parametrize(("rate_limited", "factor"), [(0, None), (1, 0.8), (3, 0.5)])
def test_a_rate_that_comes_back_gives_way_to_a_single_429(rate: float, rate_limited: int, factor: float | None) -> None:
    assert slowing(10, rate_limited, rate=rate, is_slowed=True) == factor


@given(rate=limits, share=st.floats(0.21, 1))
def test_any_rate_gives_way_to_a_limit_that_turns_a_fifth_of_its_calls_away(rate: float, share: float) -> None:
    factors = set()

    for second in range(100):
        answers, rate_limited = (
            int((second + 1) * per_second) - int(second * per_second) for per_second in (rate, rate * share)
        )
        factors.add(slowing(answers, rate_limited, rate=rate, is_slowed=False))

    assert HALF in factors


@given(rate=st.floats(5.1, 1_000), answers=st.integers(1, 1_000))
def test_a_single_429_is_no_limit_where_five_calls_leave_in_a_second(rate: float, answers: int) -> None:
    assert slowing(answers, 1, rate=rate, is_slowed=False) is None


@given(rate=limits, steps=st.lists(st.floats(0, 0.5), min_size=1, max_size=80))
def test_calls_of_one_process_leave_spaced_but_for_three(rate: float, steps: list[float]) -> None:
    spacing, now, left_at = Spacing(rate), 0.0, []

    for step in steps:
        now += step
        spacing, wait_seconds = spacing.reserved(now)
        left_at.append(now + wait_seconds)

    for first in range(len(left_at)):
        for last in range(first, len(left_at)):
            within = left_at[last] - left_at[first]
            assert last - first <= within * rate + spacing.tolerance + 1e-6


def test_a_call_after_a_pause_waits_for_nobody() -> None:
    spacing, _ = Spacing(rate=1).reserved(0)

    assert spacing.reserved(1_000)[1] == 0
