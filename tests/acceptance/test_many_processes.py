"""The same jobs end the same way by four workers, and by one that forks with a dispatcher beside it."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from customer_jobs import Job
from customer_jobs.database import reading
from customer_jobs.embedded import wait_until
from customer_jobs.holds import held_jobs
from tests.acceptance.stack import CHECKOUT, READY_SECONDS, Stack, email, environment, unique
from worker.dispatcher.limits import CAPACITY_TOKENS
from worker.pace import Spacing

pytestmark = pytest.mark.slow

RATE = 20  #: Creates per second that the settings allow.
WORKERS = ("one", "two", "three", "four")
PREFORK = ("--pool", "prefork", "--concurrency", "4")
UNLIMITED = "100000"
WAITS_SECONDS = 1.5  #: Three looks of a dispatcher's clock.


def test_four_workers_share_the_jobs_and_one_limit(own_stack: Stack) -> None:
    stack = own_stack
    stack.sandbox.set_latency(0.2)
    stack.sandbox.set_limits(rate=RATE)
    for name in WORKERS:
        stack.start_worker(name, RATE_LIMIT_CREATE=str(RATE), RATE_LIMIT_ACCOUNT="100")

    began = time.monotonic()
    jobs = stack.jobs.create_customers([{"body": {"email": email()}} for _ in range(60)])
    ended = [stack.wait_for_end(job, READY_SECONDS) for job in jobs]

    # One attempt at each: nobody was turned away.
    assert {(job.state, job.outcome, len(job.attempts)) for job in ended} == {("succeeded", "created", 1)}
    assert sorted(stack.creates()) == sorted(f"customer-jobs-{job.id}" for job in jobs)
    assert {job.attempts[0].worker for job in ended} == {f"{name}@test" for name in WORKERS}
    arrived = sorted(each.arrived_monotonic for each in stack.sandbox.requests if each.endpoint == "create")
    busiest = max(sum(first <= each < first + 1 for each in arrived) for first in arrived)
    # However busy the machine: a bucketful, and what has come into the bucket since.
    assert all(count <= CAPACITY_TOKENS + RATE * (at - began) for count, at in enumerate(arrived, start=1))
    # What a busy machine held up for a moment leaves together, up to what a process lets leave before its time.
    assert busiest <= RATE + CAPACITY_TOKENS + Spacing(RATE).tolerance, busiest


def test_a_worker_that_forks_works_with_a_dispatcher_beside_it(own_stack: Stack) -> None:
    stack = own_stack
    worker = stack.start_worker("fork", options=PREFORK)
    customer_id = f"cus_{unique('fork').replace('-', '')}"
    stack.sandbox.add_customer(customer_id, email=email())

    waiting = stack.jobs.create_customer({"email": email()})
    time.sleep(WAITS_SECONDS)  # Nothing may happen meanwhile.
    assert held_by(stack, waiting) == "no dispatcher leads"
    assert stack.creates() == []

    dispatcher = stack.start_dispatcher()
    emails = [email() for _ in range(30)]
    creates = stack.jobs.create_customers([{"body": {"email": each}} for each in emails])
    fetch = stack.jobs.fetch_customer(customer_id)

    assert stack.wait_for_end(waiting).outcome == "created"
    assert stack.wait_for_end(fetch).outcome == "found"
    ended = [stack.wait_for_end(job, READY_SECONDS) for job in creates]
    # Children that shared a connection would get one another's customers.
    assert [job.result["response"]["email"] for job in ended if job.result] == emails
    assert {(len(job.attempts), job.attempts[0].worker) for job in ended} == {(1, "fork@test")}
    assert stack.consumer.event_about(fetch.id)["data"]["outcome"] == "found"
    assert stack.signed_on() == {"fork@test"}

    assert dispatcher.stop() == 0
    assert stack.leader() is None
    late = stack.jobs.create_customer({"email": email()})
    time.sleep(WAITS_SECONDS)
    assert held_by(stack, late) == "no dispatcher leads"

    again = stack.start_dispatcher("again")
    assert stack.wait_for_end(late).outcome == "created"
    assert worker.stop() == 0
    wait_until(lambda: not stack.signed_on(), READY_SECONDS, "the worker signs off")
    assert again.stop() == 0
    for program in (worker, dispatcher, again):
        assert "Traceback" not in program.log.read_text()


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) == 1, reason="there is no other core"
)
def test_a_worker_that_has_much_to_do_stays_on_one_core_until_it_ends(own_stack: Stack) -> None:
    all_cores = os.sched_getaffinity(0)
    worker = own_stack.start_worker("busy", RATE_LIMIT_CREATE=UNLIMITED, RATE_LIMIT_ACCOUNT=UNLIMITED)

    own_stack.jobs.create_customers([{"body": {"email": email()}} for _ in range(1000)])
    wait_until(lambda: len(os.sched_getaffinity(worker.pid)) == 1, READY_SECONDS, "its threads share one core")
    wait_until(lambda: not own_stack.jobs.list(state="queued", limit=1), READY_SECONDS, "all jobs have left")
    wait_until(lambda: os.sched_getaffinity(worker.pid) == all_cores, READY_SECONDS, "the kernel chooses again")

    assert worker.stop() == 0


def held_by(stack: Stack, job: Job) -> str | None:
    with reading(stack.engine) as transaction:
        hold = held_jobs(transaction, [job.id]).get(job.id)
    return None if hold is None else hold.reason


@pytest.mark.parametrize(("words", "exit_code"), [(["--help"], 0), (["-h"], 0), (["start"], 2), (["--pool"], 2)])
def test_the_dispatcher_says_what_it_is_and_takes_no_arguments(words: list[str], exit_code: int) -> None:
    said = subprocess.run(
        [sys.executable, "-m", "worker.dispatcher", *words],
        env=environment({}),
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert said.returncode == exit_code
    assert "python -m worker.dispatcher" in said.stdout + said.stderr
    assert ("--pool prefork" in said.stdout) is (exit_code == 0)
