"""The invariants hold of a world in order, and each of them notices what it is there to notice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine

from customer_jobs.events import cloud_event
from customer_jobs.sandbox import Sandbox
from customer_jobs.schema import events
from tests.builders import Worker, add_fetch, add_job, rows
from tests.chaos.invariants import World, broken_at_the_end, broken_now, look

CREATED, RETRIED, FAILED, FETCHED = (f"00000000-0000-4000-8000-00000000000{number}" for number in range(4))

pytestmark = pytest.mark.parametrize("database", ["sqlite"])


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as running:
        yield running


@pytest.fixture
def world(engine: Engine, sandbox: Sandbox) -> World:
    """One job of each sort, done."""
    worker = Worker(engine, sandbox)
    add_job(engine, id=CREATED, external_id="user-1", payload={"body": {"email": "a@example.com"}})
    script = {"email": "b@example.com", "metadata": {"sandbox": "reset_after"}}
    add_job(engine, id=RETRIED, external_id="user-2", payload={"body": script})
    add_job(engine, id=FAILED, payload={"body": {"email": "no e-mail"}})
    customer = sandbox.add_customer("cus_before")
    add_fetch(engine, id=FETCHED, payload={"customer_id": customer["id"], "expand": []}, customer_id=customer["id"])
    worker.work()
    return look(engine, sandbox)


def of_job(world: World, job_id: str, **columns: Any) -> World:
    return replace(world, jobs={**world.jobs, job_id: {**world.jobs[job_id], **columns}})


def of_attempt(world: World, job_id: str, which: int, **columns: Any) -> World:
    made = [{**each, **columns} if each["number"] == which else each for each in world.attempts[job_id]]
    return replace(world, attempts={**world.attempts, job_id: made})


def of_last_send(world: World, **fields: Any) -> World:
    """Another second send of the create that was sent twice; `params` are added to its own."""
    last = [each for each in world.requests if each.idempotency_key == f"customer-jobs-{RETRIED}"][-1]
    fields["params"] = {**last.params, **fields.get("params", {})}
    return replace(world, requests=[replace(each, **fields) if each is last else each for each in world.requests])


def of_customer(world: World, number: int, **fields: Any) -> World:
    return replace(world, customers=[*world.customers, {**world.ours()[number], "id": "cus_again"} | fields])


#: Beside each the words with which it is noticed.
SPOILED: dict[str, tuple[Callable[[World], World], str]] = {
    "no event": (lambda it: replace(it, events={}), "with 0 completion events"),
    "a second event": (
        lambda it: replace(it, events={**it.events, CREATED: [*it.events[CREATED], *it.events[CREATED]]}),
        "with 2 completion events",
    ),
    "an event too early": (lambda it: of_job(it, CREATED, state="running"), "is running with 1 completion events"),
    "an event of another end": (lambda it: of_job(it, CREATED, state="failed"), "its event is customer_jobs."),
    "an event of another customer": (lambda it: of_job(it, CREATED, customer_id="cus_x"), "has customer_id 'cus_x'"),
    "a gap": (lambda it: of_attempt(it, RETRIED, 2, number=3), "has attempts [1, 3]"),
    "too many used": (lambda it: of_job(it, RETRIED, attempt=3), "has used 3 attempts and made 2"),
    "none made": (lambda it: replace(it, attempts={}), "has used 1 attempts and made 0"),
    "an attempt without an end": (lambda it: of_attempt(it, RETRIED, 1, verdict=None), "has verdict None and"),
    "an attempt under way": (
        lambda it: of_attempt(it, RETRIED, 2, verdict=None, finished_at=None),
        "has no verdict, the job is succeeded",
    ),
    "another's key in the ledger": (lambda it: of_attempt(it, RETRIED, 1, idempotency_key="mine"), "has key 'mine'"),
    "a success of nothing": (lambda it: of_attempt(it, CREATED, 1, verdict="retry"), "none of its attempts has"),
    "running without an attempt": (lambda it: of_job(it, RETRIED, state="running"), "is running, its last"),
    "two keys": (lambda it: of_last_send(it, idempotency_key="anew"), "was sent under ['anew', 'customer-jobs-"),
    "two bodies": (lambda it: of_last_send(it, params={"name": "Jenny"}), "was sent with different parameters"),
    "a send outside the ledger": (
        lambda it: of_attempt(it, RETRIED, 1, idempotency_key=None),
        "was sent 2 times, the ledger has 1",
    ),
    "a send of no job": (
        lambda it: replace(it, jobs={key: job for key, job in it.jobs.items() if key != RETRIED}),
        "is not in the table",
    ),
    "two customers of a job": (lambda it: of_customer(it, 0), f"job {CREATED} has 2 customers"),
    "two customers of an external_id": (
        lambda it: of_customer(it, 0, metadata={"customer_jobs_id": "x", "external_id": "user-1"}),
        "external_id 'user-1' has 2 customers",
    ),
    "two customers of an e-mail": (
        lambda it: of_customer(it, 0, metadata={"customer_jobs_id": "x"}),
        "2 customers have the e-mail of 1 creates",
    ),
}

#: What is only noticed once all had its time.
UNFINISHED: dict[str, tuple[Callable[[World], World], str]] = {
    "a job that goes on": (
        lambda it: replace(of_job(it, CREATED, state="retrying"), events={}),
        f"job {CREATED} is retrying",
    ),
    "a customer that is gone": (lambda it: replace(it, customers=[]), "which Stripe does not have"),
    "a customer of nobody": (
        lambda it: of_customer(it, 0, email=None, metadata={"customer_jobs_id": FAILED}),
        "which did not succeed with it",
    ),
    "one customer for two": (
        lambda it: of_job(it, RETRIED, customer_id=it.jobs[CREATED]["customer_id"]),
        "two creates succeeded with one customer",
    ),
    "an event in the table": (
        lambda it: replace(it, events={**it.events, CREATED: [{**it.events[CREATED][0], "published_at": None}]}),
        f"the event of job {CREATED} is not published",
    ),
}


def published(world: World) -> World:
    """The same, as if a relay had been there."""
    done = {key: [{**row, "published_at": row["created_at"]} for row in found] for key, found in world.events.items()}
    return replace(world, events=done)


def test_a_world_in_order_is_whole(engine: Engine, world: World) -> None:
    stream = [cloud_event(row) for row in rows(engine, events)]

    assert broken_at_the_end(published(world), stream) == []
    assert {job["state"] for job in world.jobs.values()} == {"succeeded", "failed"}
    assert len(world.attempts[RETRIED]) == 2


@pytest.mark.parametrize("what", SPOILED)
def test_a_world_out_of_order_is_noticed_at_once(world: World, what: str) -> None:
    spoil, words = SPOILED[what]

    broken = broken_now(spoil(world))

    assert broken_now(world) == []
    assert any(words in each for each in broken), broken


@pytest.mark.parametrize("what", UNFINISHED)
def test_what_is_missing_is_noticed_at_the_end(world: World, what: str) -> None:
    spoil, words = UNFINISHED[what]

    broken = broken_at_the_end(spoil(published(world)))

    assert any(words in each for each in broken), broken


@pytest.mark.parametrize("what", ["lost", "another id"])
def test_an_event_that_did_not_arrive_is_noticed(engine: Engine, world: World, what: str) -> None:
    stream = [cloud_event(row) for row in rows(engine, events)]
    stream = stream[1:] if what == "lost" else [*stream, {**stream[0], "id": "another"}]

    broken = broken_at_the_end(published(world), stream)

    assert [each for each in broken if "what arrived is" in each]
