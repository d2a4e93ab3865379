"""What the benchmarks make of the sandbox's log."""

from __future__ import annotations

import pytest

from benchmarks.arrivals import first_of, speed, turned_away, used
from benchmarks.parts import Json


def arrival(at: float, *, status: int = 200, endpoint: str = "create", key: str | None = None) -> Json:
    return {"arrived_at": at, "status": status, "endpoint": endpoint, "idempotency_key": key}


def test_calls_at_the_rate_use_the_whole_allowance() -> None:
    log = [arrival(1000 + number / 25) for number in range(51)]

    assert used(log) == pytest.approx(1)
    assert speed(log) == pytest.approx(25)


def test_a_call_that_was_turned_away_uses_nothing() -> None:
    log = [arrival(1000), arrival(1000.5, status=429), arrival(1001)]

    assert used(log) == pytest.approx(1 / 25)
    assert turned_away(log) == pytest.approx(1 / 3)


def test_another_endpoint_has_an_allowance_of_its_own() -> None:
    log = [arrival(1000), arrival(1000, endpoint="retrieve", status=429), arrival(1000.04)]

    assert used(log) == pytest.approx(1)
    assert turned_away(log) == 0


def test_what_was_allowed_follows_the_limit() -> None:
    """25 a second for one second, 10 for two, 25 for another one: 70 calls."""
    log = [arrival(1000), *(arrival(1000 + number / 10) for number in range(1, 35)), arrival(1004)]

    allowed = used(log, changes=[(0.0, 25.0), (1001.0, 10.0), (1003.0, 25.0)])

    assert allowed == pytest.approx(35 / 70)


def test_a_limit_that_changes_when_all_is_done_allows_nothing_more() -> None:
    log = [arrival(1000), arrival(1001)]

    assert used(log, changes=[(0.0, 10.0), (1002.0, 100.0)]) == pytest.approx(1 / 10)


def test_a_call_that_was_repeated_counts_from_its_first_arrival() -> None:
    log = [arrival(1000, key="a", status=429), arrival(1001, key="b"), arrival(1002, key="a")]

    assert {key: request["arrived_at"] for key, request in first_of(log, {"a": 0.0}).items()} == {"a": 1000}
