"""Workers that are killed or told to stop, and a Redis that forgets: every job ends once, every event arrives."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from customer_jobs import Job
from customer_jobs.embedded import wait_until
from tests.acceptance.stack import READY_SECONDS, Stack, email, unique
from tests.servers import Server

pytestmark = pytest.mark.slow

RESCUED_WITHIN_SECONDS = 20.0  #: The promise; a job's own time comes on top of it.
OWN_TIME_SECONDS = 3.0  #: A retry's backoff of at most a second, and a call on a busy machine.


def test_the_jobs_of_a_killed_worker_end_once(stacks: list[Stack]) -> None:
    # Both kinds of database at a time: most of this test is waiting for leases to run out.
    with ThreadPoolExecutor(len(stacks)) as threads:
        list(threads.map(kill_a_worker_in_mid_call, stacks))


def kill_a_worker_in_mid_call(stack: Stack) -> None:
    doomed = stack.start_worker("doomed")
    # The first answer of each is lost with the worker: before the deed, after it, and while reading.
    before = stack.jobs.create_customer({"email": email(), "metadata": {"sandbox": "hang"}}, external_id=unique("user"))
    after = stack.jobs.create_customer({"email": email(), "metadata": {"sandbox": "hang_after"}})
    reading = stack.jobs.fetch_customer("cus_sandbox_hang")
    for job in (before, after, reading):
        stack.wait_for_request(job)

    doomed.kill()
    killed_at = time.monotonic()
    stack.start_worker("heir")

    left = killed_at + RESCUED_WITHIN_SECONDS + OWN_TIME_SECONDS - time.monotonic()
    ended = {job.id: stack.jobs.wait(job.id, left) for job in (before, after, reading)}
    assert [(job.state, job.outcome) for job in ended.values()] == [
        ("succeeded", "created"),
        ("succeeded", "replayed"),
        ("succeeded", "found"),
    ]
    for job in ended.values():
        first, second = job.attempts
        assert (first.verdict, first.worker, first.ambiguous) == (
            "abandoned",
            "doomed@test",
            job.kind.endswith("create"),
        )
        assert (second.verdict, second.worker) == ("succeeded", "heir@test")
        assert len(stack.requests_of(job)) == 2
        assert stack.consumer.event_about(job.id)["data"]["state"] == "succeeded"
        assert len(stack.events_of(job)) == 1
    for job in (before, after):
        (customer,) = stack.customers_of(job)
        assert customer["id"] == ended[job.id].customer_id


def test_a_worker_told_to_stop_finishes_its_jobs_and_gives_up_the_lead(own_stack: Stack) -> None:
    stack = own_stack
    worker = stack.start_worker()
    stack.sandbox.hold()
    running = [stack.jobs.create_customer({"email": email()}) for _ in range(2)]
    stack.sandbox.wait_until_held(2)

    worker.send(signal.SIGTERM)
    wait_until(lambda: not stack.signed_on(), READY_SECONDS, "the worker signs off", program=worker)
    late = stack.jobs.create_customer({"email": email()})
    stack.sandbox.release()

    wait_until(lambda: not worker.running(), READY_SECONDS, "the worker ends")
    assert worker.exit_code() == 0
    for job in running:
        ended = stack.jobs.get(job.id)
        assert ended is not None
        assert (ended.state, len(ended.attempts)) == ("succeeded", 1)
        assert stack.consumer.event_about(job.id)["data"]["outcome"] == "created"
    assert stack.leader() is None
    untouched = stack.jobs.get(late.id)
    assert untouched is not None
    assert (untouched.state, untouched.attempts) == ("queued", ())
    assert "Traceback" not in worker.log.read_text()


@pytest.mark.parametrize("database", ["postgresql"])
def test_a_second_worker_takes_over_at_once_from_one_told_to_stop(own_stack: Stack) -> None:
    stack = own_stack
    leader = stack.start_worker("leader")
    wait_until(stack.leader, READY_SECONDS, "the worker leads")
    stack.start_worker("heir")

    exit_code = leader.stop()
    began = time.monotonic()
    job = stack.wait_for_end(stack.jobs.create_customer({"email": email()}))
    stack.consumer.event_about(job.id)

    assert exit_code == 0
    assert time.monotonic() - began < 5  # An expired lease would take ten.
    assert job.attempts[0].worker == "heir@test"


@pytest.mark.parametrize("database", ["sqlite"])
def test_a_redis_that_forgets_everything_loses_no_job_and_no_event(own_stack: Stack, redis: Server) -> None:
    stack = own_stack
    # Nothing leaves the sandbox, so that no event is on the stream that is about to be lost; the last jobs are
    # beyond the worker's sixteen threads and wait in Redis.
    stack.start_worker(RATE_LIMIT_CREATE="100")
    stack.sandbox.hold()
    jobs = [stack.jobs.create_customer({"email": email()}) for _ in range(30)]
    stack.sandbox.wait_until_held(16)

    redis.stop_immediately()
    jobs += [stack.jobs.create_customer({"email": email()}) for _ in range(5)]
    stack.sandbox.release()
    wait_until(lambda: stack.row("SELECT count(*) FROM {events}")[0] >= 16, READY_SECONDS, "jobs end without Redis")
    redis.start_again()

    for job in jobs:
        ended = stack.wait_for_end(job, READY_SECONDS)
        assert (ended.state, ended.outcome, len(ended.attempts)) == ("succeeded", "created", 1)
        assert stack.consumer.event_about(job.id)["data"]["customer_id"] == ended.customer_id
    assert len(stack.sandbox.customers()) == len(jobs) == len(stack.creates())


def test_two_workers_call_each_job_once(own_stack: Stack) -> None:
    stack = own_stack
    # A call takes a moment, so that one worker is not enough.
    stack.sandbox.set_latency(0.05)
    limits = {"RATE_LIMIT_CREATE": "100", "RATE_LIMIT_ACCOUNT": "100"}
    stack.start_worker("one", **limits)
    stack.start_worker("two", **limits)
    assert stack.signed_on() == {"one@test", "two@test"}

    jobs: list[Job] = stack.jobs.create_customers([{"body": {"email": email()}} for _ in range(60)])
    ended = [stack.wait_for_end(job, READY_SECONDS) for job in jobs]

    assert {(job.state, job.outcome, len(job.attempts)) for job in ended} == {("succeeded", "created", 1)}
    assert {job.attempts[0].worker for job in ended} == {"one@test", "two@test"}
    assert sorted(stack.creates()) == sorted(f"customer-jobs-{job.id}" for job in jobs)
    for job in jobs:
        stack.consumer.event_about(job.id)
        assert len(stack.consumer.entries_about(job.id)) == 1
