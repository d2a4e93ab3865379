"""One worker leads: another takes over when it is killed or stopped, and a Redis that hangs changes nothing."""

from __future__ import annotations

import signal
from datetime import datetime, timedelta

import pytest
from sqlalchemy import select

from customer_jobs import Job
from customer_jobs.database import reading
from customer_jobs.embedded import wait_until
from customer_jobs.schema import leases
from customer_jobs.sql import now
from customer_jobs.vocabulary import Lease
from tests.acceptance.stack import READY_SECONDS, Stack, email, wait_for_line
from tests.promises import REPLACED_SECONDS
from tests.servers import Server
from worker.dispatcher.leader import LEASE_SECONDS, RENEW_EVERY_SECONDS

pytestmark = pytest.mark.parametrize("database", ["postgresql"])


def leader(stack: Stack) -> str:
    return (stack.leader() or "").partition("@")[0]


def lead(stack: Stack) -> tuple[str, datetime]:
    """Who leads, or led last, and when the lead was taken or renewed, by the database's clock."""
    with reading(stack.engine) as transaction:
        (row,) = transaction.rows(select(leases.c.holder, leases.c.expires_at).where(leases.c.name == Lease.LEAD))
    return row["holder"].partition("@")[0], row["expires_at"] - timedelta(seconds=LEASE_SECONDS)


def present(stack: Stack) -> datetime:
    with reading(stack.engine) as transaction:
        at: datetime = transaction.value(select(now()))
    return at


def taken_over_at(stack: Stack, heir: str) -> datetime:
    """When the heir took the lead, by the database's clock."""
    seen: list[datetime] = []

    def has_taken_it() -> bool:
        # One look for both: the heir may have renewed the lead before a second one.
        by, renewed_at = lead(stack)
        seen[:] = [renewed_at]
        return by == heir

    wait_until(has_taken_it, READY_SECONDS, f"{heir} leads")
    return seen[0]


def create(stack: Stack, count: int) -> list[Job]:
    return stack.jobs.create_customers([{"body": {"email": email()}} for _ in range(count)])


def assert_each_called_once(stack: Stack, jobs: list[Job]) -> None:
    ended = [stack.wait_for_end(job, READY_SECONDS) for job in jobs]
    assert {(job.state, job.outcome, len(job.attempts)) for job in ended} == {("succeeded", "created", 1)}
    assert sorted(stack.creates()) == sorted(f"customer-jobs-{job.id}" for job in jobs)


def test_a_killed_leader_is_replaced_within_twelve_seconds(own_stack: Stack) -> None:
    stack = own_stack
    doomed = stack.start_worker("doomed")
    wait_until(lambda: leader(stack) == "doomed", READY_SECONDS, "the first leads")
    stack.start_worker("heir")

    doomed.kill()
    killed_at = present(stack)
    jobs = create(stack, 3)

    assert taken_over_at(stack, "heir") - killed_at < timedelta(seconds=REPLACED_SECONDS)
    assert_each_called_once(stack, jobs)


def test_a_leader_that_was_stopped_and_goes_on_has_lost_the_lead_and_does_no_harm(own_stack: Stack) -> None:
    stack = own_stack
    stopped = stack.start_worker("stopped")
    wait_until(lambda: leader(stack) == "stopped", READY_SECONDS, "the first leads")
    stack.start_worker("heir")

    stopped.send(signal.SIGSTOP)
    stopped_at = present(stack)
    jobs = create(stack, 20)
    taken_at = taken_over_at(stack, "heir")
    stopped.send(signal.SIGCONT)
    jobs += create(stack, 20)

    wait_for_line(stopped, "leads no more")
    assert taken_at - stopped_at < timedelta(seconds=REPLACED_SECONDS)
    assert_each_called_once(stack, jobs)
    assert leader(stack) == "heir"
    for job in jobs:
        stack.consumer.event_about(job.id)


def test_a_redis_that_hangs_does_not_cost_the_lead(own_stack: Stack, redis: Server) -> None:
    stack = own_stack
    stack.start_worker("leader")
    wait_until(lambda: leader(stack) == "leader", READY_SECONDS, "the first leads")
    stack.start_worker("other")

    redis.hang()
    hung_at = present(stack)
    jobs = create(stack, 3)
    until = hung_at + timedelta(seconds=LEASE_SECONDS + RENEW_EVERY_SECONDS)
    led_by: set[str] = set()

    def is_renewed() -> bool:
        led_by.add(leader(stack))
        _, renewed_at = lead(stack)
        return renewed_at > until

    wait_until(is_renewed, READY_SECONDS, "the lead is renewed for longer than it lasts")
    redis.go_on()

    assert led_by == {"leader"}
    assert_each_called_once(stack, jobs)
