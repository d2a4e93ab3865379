"""What is promised in seconds follows from the constants; how long it takes on a machine is measured elsewhere."""

from __future__ import annotations

from customer_jobs import health
from customer_jobs.database import CONNECT_TIMEOUT_SECONDS
from customer_jobs.lifecycle import LEASE_SECONDS
from customer_jobs.patience import PING_SECONDS, PROBE_SECONDS, SILENCE_SECONDS
from tests.acceptance.stack import CHECKOUT
from tests.promises import (
    BACK_SECONDS,
    HEALTH_SECONDS,
    REPLACED_SECONDS,
    TAKEN_OVER_SECONDS,
    UNAVAILABLE_SECONDS,
)
from worker.broker import RECONNECT_SECONDS
from worker.dispatcher import CLOCK_SECONDS, LIFE_EVERY_SECONDS, PAUSE_AFTER_ERROR_SECONDS, RESCUE_EVERY_SECONDS, leader
from worker.dispatcher.dispatch import DISPATCH_LEASE_SECONDS, PUBLISH_PAUSE_SECONDS
from worker.retry import RetryPolicy

FIRST_BACKOFF_SECONDS = RetryPolicy().delay_seconds(1, 1.0)  #: With the worst of luck.


def test_another_leads_in_time() -> None:
    assert leader.LEASE_SECONDS + leader.LOOK_EVERY_SECONDS <= REPLACED_SECONDS


def test_the_jobs_of_a_killed_worker_run_elsewhere_in_time_though_it_led() -> None:
    another_leads = leader.LEASE_SECONDS + leader.LOOK_EVERY_SECONDS
    rescued = max(LEASE_SECONDS, DISPATCH_LEASE_SECONDS, another_leads) + RESCUE_EVERY_SECONDS

    assert rescued + FIRST_BACKOFF_SECONDS + CLOCK_SECONDS <= TAKEN_OVER_SECONDS


def test_jobs_run_in_time_once_redis_is_back() -> None:
    assert RECONNECT_SECONDS + PUBLISH_PAUSE_SECONDS + CLOCK_SECONDS <= BACK_SECONDS


def test_jobs_run_in_time_once_the_database_is_back() -> None:
    a_worker_is_seen = max(PAUSE_AFTER_ERROR_SECONDS, LIFE_EVERY_SECONDS)
    somebody_leads = max(PAUSE_AFTER_ERROR_SECONDS, leader.LOOK_EVERY_SECONDS)

    assert max(a_worker_is_seen, somebody_leads) + PAUSE_AFTER_ERROR_SECONDS + CLOCK_SECONDS <= BACK_SECONDS


def test_who_enqueues_without_a_database_is_told_in_time() -> None:
    falls_silent_in_mid_statement = SILENCE_SECONDS + PROBE_SECONDS
    fell_silent_before = PING_SECONDS + CONNECT_TIMEOUT_SECONDS

    assert max(falls_silent_in_mid_statement, fell_silent_before) < UNAVAILABLE_SECONDS


def test_health_answers_in_time() -> None:
    assert health.DEADLINE_SECONDS < HEALTH_SECONDS


def test_the_document_promises_as_much() -> None:
    text = (CHECKOUT / "docs" / "guarantees.md").read_text()

    assert f"Another worker goes on within {TAKEN_OVER_SECONDS:g} s" in text
    assert f"Another leads within {REPLACED_SECONDS:g} s" in text
    assert f"Enqueueing fails within {UNAVAILABLE_SECONDS:g} s" in text
    assert "`customer-jobs health` says so, within five seconds" in text
