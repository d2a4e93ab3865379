"""What a job that is due waits for, told from the buckets and the threads as one look finds them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from customer_jobs.holds import Hold, Holds
from customer_jobs.lanes import WHOLE_ACCOUNT, Endpoint

NOW = datetime(2026, 11, 22, 17, 20, 1, tzinfo=UTC)
CREATES, ACCOUNT = (Endpoint("default", "", kind) for kind in ("customer.create", WHOLE_ACCOUNT))
LIMIT = Hold("limit reached: 25/s of customer.create")
BUSY = Hold("every thread is busy")


def bucket(tokens: float, ago_seconds: float, rate: float = 25.0) -> dict[str, Any]:
    """A row of `lanes`: so many tokens as of so long ago."""
    refilled_at = NOW - timedelta(seconds=ago_seconds)
    return {"tokens": tokens, "rate": rate, "refilled_at": refilled_at, "paused_at": None, "reason": None}


def holds(endpoints: dict[Endpoint, dict[str, Any]], *, running: int = 0) -> Holds:
    return Holds({}, endpoints, threads=16, running=running, is_led=True, present=NOW)


@pytest.mark.parametrize(
    ("tokens", "ago_seconds", "running", "hold"),
    [
        (0.2, 0.01, 3, LIMIT),
        (0.2, 0.01, 16, LIMIT),  # A thread that came free now would not help.
        (0.2, 0.04, 16, BUSY),  # The next token has come.
        (0.2, 1.5, 16, BUSY),
        (1.5, 0.0, 16, BUSY),
        (0.2, 0.04, 15, LIMIT),  # A look takes the next token, and the job behind waits for another.
        (0.2, 1.5, 15, None),
        (-30.0, 1.0, 15, LIMIT),
        (0.2, -5.0, 15, LIMIT),  # A clock that went backwards adds nothing.
    ],
)
def test_a_limit_holds_jobs_back_only_while_its_tokens_are_taken_as_they_come(
    tokens: float, ago_seconds: float, running: int, hold: Hold | None
) -> None:
    found = holds({CREATES: bucket(tokens, ago_seconds)}, running=running)

    assert found.of(CREATES) == hold


def test_the_limit_of_the_whole_account_holds_jobs_of_each_endpoint_back() -> None:
    found = holds({CREATES: bucket(2.0, 1.0), ACCOUNT: bucket(0.2, 0.001, rate=100.0)})

    assert found.of(CREATES) == Hold("limit reached: 100/s of the whole account")


@pytest.mark.parametrize("rate", [0.01, 1.0, 25.0, 100.0, 1_000.0])
def test_a_bucket_that_is_full_holds_nobody_back(rate: float) -> None:
    full = max(2.0, rate * 0.08)

    assert holds({CREATES: bucket(full, 0.0, rate)}).of(CREATES) is None
