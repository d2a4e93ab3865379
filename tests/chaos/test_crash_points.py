"""Processes killed at every point of their work: another takes over, and it is as if nothing had been.

CHAOS=long runs every point on either database; otherwise most of them run on one, to fit into the tests.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from customer_jobs import Job
from customer_jobs.embedded import start, wait_until
from customer_jobs.schema import jobs
from customer_jobs.sql import now
from customer_jobs.vocabulary import Outcome, State
from tests import servers
from tests.acceptance.stack import CHECKOUT, READY_SECONDS, Stack, email, environment, running, unique
from tests.acceptance.test_broker_door import ask
from tests.builders import add_fetch, add_job, job_row, rows
from tests.chaos.fates import (
    APP,
    DEATH_SECONDS,
    END_SECONDS,
    STARTS_AT_ONCE,
    UNLIMITED,
    Fate,
    create,
    heir_of,
    require_a_whole_world,
    verdicts,
)
from tests.chaos.points import AT_THE_DOOR, DIE_AT, IN_A_PRODUCER, IN_A_TASK, LAST_WORDS
from worker.app import PUBLISHED_TOGETHER

IS_LONG = os.environ.get("CHAOS") == "long"
LOST, DONE = "abandoned", "succeeded"  #: Verdicts.


#: What the ledger says in the end of the job in whose attempt the worker died, how often Stripe was asked, and how the
#: job ended. A replay means that Stripe had done it before the worker died.
COURSES = {
    "claimed": ([DONE], 1, Outcome.CREATED),
    "claim committed": ([LOST, DONE], 1, Outcome.CREATED),
    "before the call": ([LOST, DONE], 1, Outcome.CREATED),
    "request sent": ([LOST, DONE], 2, Outcome.REPLAYED),
    "Stripe did it": ([LOST, DONE], 2, Outcome.REPLAYED),
    "answer read": ([LOST, DONE], 2, Outcome.REPLAYED),
    "recorded": ([LOST, DONE], 2, Outcome.REPLAYED),
    "record committed": ([DONE], 1, Outcome.CREATED),
}
#: On PostgreSQL either is one statement, which commits itself.
COMMITTED_AT_ONCE = {"claimed": "claim committed", "recorded": "record committed"}
SEVERAL = PUBLISHED_TOGETHER + 4  #: Jobs, for two round trips of messages.


def die_in_tasks(stack: Stack) -> None:
    # The heir leads from the start and works beside the doomed, which die of the first job that each of them gets.
    heir_of(stack)
    with ThreadPoolExecutor() as threads:
        doomed = list(threads.map(lambda point: Fate(stack, point).begin(), IN_A_TASK))
    give_up_at = time.monotonic() + DEATH_SECONDS
    while any(fate.program.running() for fate in doomed) and time.monotonic() < give_up_at:
        stack.jobs.wait(create(stack, unique("user")).id, 0.1)
    victims = {fate.point: fate.await_death() for fate in doomed}

    require_a_whole_world(stack)

    sent = stack.creates()
    for point, job_id in victims.items():
        row = job_row(stack.engine, job_id)
        course = (verdicts(stack, job_id), sent.count(f"customer-jobs-{job_id}"), row["outcome"])
        is_committed = stack.engine.dialect.name == "postgresql" and point in COMMITTED_AT_ONCE
        assert course == COURSES[COMMITTED_AT_ONCE[point] if is_committed else point], point
        assert (row["state"], row["attempt"]) == (State.SUCCEEDED, len(course[0])), point


def die_dispatching(stack: Stack, point: str, left_as: str) -> None:
    doomed = Fate(stack, point).begin()
    stack.wait_for_end(create(stack))
    several = stack.jobs.create_customers([{"body": {"email": email()}} for _ in range(SEVERAL)])

    doomed.await_death()
    left = [job_row(stack.engine, job.id)["state"] for job in several]
    heir_of(stack)
    require_a_whole_world(stack)

    # Those that were published may have been claimed by then, even be done.
    assert left.count(left_as) >= SEVERAL - (PUBLISHED_TOGETHER if point == "some published" else 0)
    # Who was never claimed has used no attempt.
    expected = [[LOST, DONE] if state == State.RUNNING else [DONE] for state in left]
    assert [verdicts(stack, job.id) for job in several] == expected
    assert len(stack.sandbox.customers()) == 1 + SEVERAL


def die_relaying(stack: Stack, point: str) -> None:
    doomed = Fate(stack, point).begin()
    job = create(stack)

    doomed.await_death()
    _require_published_twice(stack, job)


def die_relaying_at_the_end(stack: Stack, point: str) -> None:
    doomed = Fate(stack, point).begin()
    stack.sandbox.hold()
    job = create(stack)
    stack.sandbox.wait_until_held()

    doomed.program.send(signal.SIGTERM)
    wait_until(lambda: not stack.signed_on(), READY_SECONDS, "the worker signs off", program=doomed.program)
    stack.sandbox.release()

    doomed.await_death()
    _require_published_twice(stack, job)


def _require_published_twice(stack: Stack, job: Job) -> None:
    (event,) = stack.events_of(job)
    assert event["published_at"] is None
    assert stack.consumer.event_about(job.id)["id"] == event["id"]

    heir_of(stack)
    require_a_whole_world(stack)

    assert verdicts(stack, job.id) == [DONE]
    assert [entry["event"]["id"] for entry in stack.consumer.entries_about(job.id)] == [event["id"]] * 2


def die_rescuing(stack: Stack, point: str) -> None:
    silent = {"state": State.RUNNING, "lease_expires_at": now(-1), "attempt": 1}
    found = [add_fetch(stack.engine, **silent), add_job(stack.engine, **silent)]
    stack.sandbox.add_customer(job_row(stack.engine, found[0])["customer_id"])
    lost = add_job(stack.engine, state=State.DISPATCHED, lease_expires_at=now(-1))

    Fate(stack, point).begin().await_death()
    as_before = [(job_row(stack.engine, each)["state"], verdicts(stack, each)) for each in found]
    heir_of(stack)
    require_a_whole_world(stack)

    assert as_before == [(State.RUNNING, [None])] * 2
    assert [verdicts(stack, each) for each in found] == [[LOST, DONE]] * 2
    assert verdicts(stack, lost) == [DONE]


def die_pruning(stack: Stack, point: str) -> None:
    old = {"state": State.SUCCEEDED, "outcome": Outcome.LINKED, "finished_at": now(-40 * 86_400)}
    gone, emptied = add_job(stack.engine, **old), add_job(stack.engine, external_id=unique("user"), **old)

    Fate(stack, point).begin().await_death()
    as_before = [len(rows(stack.engine, jobs, id=gone)), job_row(stack.engine, emptied)["body_digest"]]
    job = create(stack)
    heir_of(stack)
    wait_until(lambda: not rows(stack.engine, jobs, id=gone), END_SECONDS, "the old job is pruned")
    require_a_whole_world(stack)

    assert as_before == [1, None]
    assert job_row(stack.engine, emptied)["body_digest"] is not None
    assert verdicts(stack, job.id) == [DONE]


def die_shutting_down(stack: Stack) -> None:
    with STARTS_AT_ONCE:
        doomed = stack.start_worker("doomed")
    stack.sandbox.hold()
    job = create(stack)
    stack.sandbox.wait_until_held()

    doomed.send(signal.SIGTERM)
    wait_until(lambda: not stack.signed_on(), READY_SECONDS, "the worker signs off", program=doomed)
    assert doomed.kill() == -signal.SIGKILL
    stack.sandbox.release()
    heir_of(stack)
    require_a_whole_world(stack)

    assert verdicts(stack, job.id) == [LOST, DONE]
    assert job_row(stack.engine, job.id)["outcome"] == Outcome.REPLAYED


def die_at_the_door(stack: Stack) -> None:
    """The worker dies between the INSERT and the acknowledgement, or, in the long run, before the INSERT."""
    points = [point for point in AT_THE_DOOR if IS_LONG or point == "INSERT committed"]
    allowed = {"ALLOW_BROKER_PAYLOADS": "true"}
    sent = []
    for point in points:
        doomed = Fate(stack, point, allowed).begin()
        payload = {"body": {"email": email()}}
        sent.append(ask(stack, kind="customer.create", payload=payload))
        doomed.await_death()
        assert len(rows(stack.engine, jobs, id=sent[-1])) == int(point == "INSERT committed")

    with STARTS_AT_ONCE:
        stack.start_worker("heir", **UNLIMITED, **allowed)
    # What Redis gives out again after a minute; it is the same job, however often it comes.
    ask(stack, sent[-1], kind="customer.create", payload=payload)
    for job_id in sent:
        wait_until(lambda: stack.jobs.get(job_id), END_SECONDS, "the message is a job")  # noqa: B023 - called at once
    require_a_whole_world(stack)

    assert [verdicts(stack, job_id) for job_id in sent] == [[DONE]] * len(points)
    assert len(rows(stack.engine, jobs)) == len(points)


def die_cancelling(stack: Stack) -> None:
    later = {"body": {"email": email()}, "due_at": datetime(2999, 1, 1, tzinfo=UTC)}
    found = dict(zip(IN_A_PRODUCER, stack.jobs.create_customers([later, later]), strict=True))
    doomed = []
    for point, job in found.items():
        fate = Fate(stack, point)
        fatal = {DIE_AT: point, LAST_WORDS: str(fate.words)}
        env, log = environment(stack.settings | fatal), stack.directory / f"{fate.name}.log"
        fate.program = start(point, [sys.executable, "-m", APP, "cancel", job.id], log=log, env=env, cwd=CHECKOUT)
        doomed.append(fate)

    for fate in doomed:
        fate.await_death()
    left = [job_row(stack.engine, job.id)["state"] for job in found.values()]
    again = [stack.jobs.cancel(job.id) for job in found.values()]
    heir_of(stack)
    require_a_whole_world(stack)

    assert left == [State.QUEUED, State.CANCELLED]
    assert again == [True, False]
    assert stack.creates() == []


BOTH = ("sqlite", "postgresql")
Scenario = Callable[[Stack], None]
#: What is done, and on which database where there is little time.
SCENARIOS: dict[str, tuple[Scenario, tuple[str, ...]]] = {
    "in a task": (die_in_tasks, ("postgresql",)),
    "marked, not committed": (lambda it: die_dispatching(it, "marked, not committed", "queued"), ("sqlite",)),
    "marks committed": (lambda it: die_dispatching(it, "marks committed", "dispatched"), ("postgresql",)),
    "some published": (lambda it: die_dispatching(it, "some published", "dispatched"), ("sqlite",)),
    "relaying": (lambda it: die_relaying(it, "between XADD and the mark"), ("postgresql",)),
    "relaying at the end": (lambda it: die_relaying_at_the_end(it, "relaying at the end"), ("sqlite",)),
    "rescuing": (lambda it: die_rescuing(it, "rescuing"), ("postgresql",)),
    "pruning": (lambda it: die_pruning(it, "pruning"), ("postgresql",)),
    "shutting down": (die_shutting_down, ("sqlite",)),
    "at the door": (die_at_the_door, ("postgresql",)),
    "cancelling": (die_cancelling, ("sqlite",)),
}


@pytest.fixture
def new_stack(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], Stack]]:
    """Makes stacks without a worker on databases of either kind; call it from one thread at a time."""
    with ExitStack() as made:

        def make(kind: str) -> Stack:
            directory = tmp_path / unique(kind)
            directory.mkdir()
            if kind == "sqlite":
                template = request.getfixturevalue("_sqlite_template")
                url = f"sqlite:///{shutil.copy(template, directory / 'customer_jobs.sqlite3')}"
            else:
                server, name = request.getfixturevalue("postgres_url"), unique("crash")
                url = servers.create_database(server, name, template=request.getfixturevalue("_postgres_template"))
                made.callback(servers.drop_database, server, str(make_url(url).database))
            redis = made.enter_context(servers.start_redis(directory))
            return made.enter_context(running(directory, url, redis.url))

        yield make


@pytest.mark.timeout(420)
def test_whoever_dies_and_wherever_another_takes_over_and_nothing_happens_twice(
    new_stack: Callable[[str], Stack],
) -> None:
    # All at a time: most of it is waiting for leases to run out.
    wanted = [
        (name, scenario, kind) for name, (scenario, kinds) in SCENARIOS.items() for kind in (BOTH if IS_LONG else kinds)
    ]
    stacks = [new_stack(kind) for *_, kind in wanted]

    with ThreadPoolExecutor(len(wanted)) as threads:
        ends = {
            (name, kind): threads.submit(scenario, stack)
            for (name, scenario, kind), stack in zip(wanted, stacks, strict=True)
        }
    broken = {where: end.exception() for where, end in ends.items() if end.exception() is not None}
    if broken:
        raise ExceptionGroup(
            ", ".join(map(str, broken)), [error for error in broken.values() if isinstance(error, Exception)]
        )
