"""Nothing stays behind: messages that were lost, workers that fell silent, jobs that take workers down with them."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, delete, insert

from customer_jobs import lifecycle
from customer_jobs.database import Transaction, writing
from customer_jobs.embedded import wait_until
from customer_jobs.lanes import LONGEST_LEASE_SECONDS
from customer_jobs.lifecycle import Claim
from customer_jobs.sandbox import Sandbox
from customer_jobs.schema import events, jobs
from customer_jobs.sql import now
from customer_jobs.vocabulary import State
from tests.builders import (
    CUSTOMER_ID,
    FETCH,
    Worker,
    add_fetch,
    add_job,
    change,
    claimed,
    dispatched,
    events_of,
    job_row,
    later,
    ledger,
    rows,
)
from worker import leases
from worker.app import retry_of
from worker.dispatcher.upkeep import RESCUE_AT_ONCE, Overdue, overdue, rescue
from worker.leases import LeaseKeeper
from worker.retry import CREATE_WINDOW, RetryPolicy

TOKEN = "0b1c9f1e-5b0c-4b55-9d2f-0c8b1b0f6a1d"


def rescued(worker: Worker, holder: str | None = None) -> int:
    """How many jobs a look rescues."""

    def abandon(transaction: Transaction, held: Claim) -> object:
        window = CREATE_WINDOW if held.job["kind"] == "customer.create" else None
        return worker.runner.abandon(transaction, held, RetryPolicy(window=window))

    return rescue(worker.engine, holder or worker.holder, abandon)


def test_a_look_says_what_is_overdue(engine: Engine) -> None:
    quiet = overdue(engine)
    job_id = add_job(engine)
    later(engine, 3600, job_id)
    waiting = overdue(engine)
    later(engine, 3600, dispatched(engine))
    with writing(engine) as transaction:
        lifecycle.cancel(transaction, job_id)

    late = overdue(engine)

    assert (quiet, waiting) == (Overdue(leases=False, events=False),) * 2
    assert late == Overdue(leases=True, events=True)


@pytest.mark.parametrize(("seconds", "seen"), [(70, True), (3600, False)])
def test_a_short_look_passes_by_what_ran_out_long_ago(engine: Engine, seconds: float, seen: bool) -> None:
    later(engine, seconds, dispatched(engine, lease_seconds=60))
    job_id = add_job(engine)
    with writing(engine) as transaction:
        lifecycle.cancel(transaction, job_id)

    assert overdue(engine, lately=True) == Overdue(leases=seen, events=False)
    assert overdue(engine) == Overdue(leases=True, events=True)


def abandoned_fetch(engine: Engine, job_id: str | None = None, seconds: float = 16) -> str:
    """The id of a fetch whose worker fell silent so long ago."""
    held = claimed(engine, job_id or add_fetch(engine), may_create=False)
    later(engine, seconds, held.job["id"])
    return str(held.job["id"])


def test_leases_are_extended_although_no_thread_could_be_started_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = claimed(engine)
    keeper = LeaseKeeper(engine)
    with monkeypatch.context() as without_threads:
        without_threads.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError), keeper.holding(held):
            pytest.fail("it holds nothing")

    monkeypatch.setattr(leases, "EXTEND_EVERY_SECONDS", 0.01)
    before = job_row(engine, held.job["id"])["lease_expires_at"]
    with keeper.holding(held):
        wait_until(lambda: job_row(engine, held.job["id"])["lease_expires_at"] > before, 10, "the lease is extended")


def refuse(_: object) -> None:
    raise RuntimeError("can't start new thread")


def test_a_message_that_nobody_took_is_sent_again(engine: Engine, worker: Worker) -> None:
    lost, fresh = dispatched(engine, lease_seconds=5), dispatched(engine, lease_seconds=5)
    later(engine, 6, lost)

    count = rescued(worker)

    row = job_row(engine, lost)
    assert count == 1
    assert (row["state"], row["attempt"]) == (State.RETRYING, 0)
    assert ledger(engine, lost) == []
    assert job_row(engine, fresh)["state"] == State.DISPATCHED
    worker.work()
    assert job_row(engine, lost)["state"] == State.SUCCEEDED


def test_an_attempt_whose_worker_fell_silent_is_made_again(engine: Engine, worker: Worker) -> None:
    job_id = abandoned_fetch(engine)

    count = rescued(worker)

    row = job_row(engine, job_id)
    (attempt,) = ledger(engine, job_id)
    assert count == 1
    assert (row["state"], row["attempt"]) == (State.RETRYING, 1)
    assert (attempt["verdict"], attempt["ambiguous"], attempt["error_code"]) == ("abandoned", False, "worker_died")
    assert attempt["finished_at"] is not None
    assert row["due_at"] - attempt["finished_at"] < timedelta(seconds=2)


def test_an_abandoned_create_may_have_been_executed(engine: Engine, worker: Worker) -> None:
    held = claimed(engine)
    later(engine, 16, held.job["id"])

    rescued(worker)

    row = job_row(engine, held.job["id"])
    assert row["state"] == State.RETRYING
    assert row["first_sent_at"] is not None
    assert ledger(engine, held.job["id"])[0]["ambiguous"] is True


def test_a_worker_that_works_is_left_alone(engine: Engine, worker: Worker) -> None:
    job_id = abandoned_fetch(engine, seconds=10)

    count = rescued(worker)

    assert count == 0
    assert job_row(engine, job_id)["state"] == State.RUNNING


def test_a_job_that_has_taken_five_workers_down_is_poison(engine: Engine, worker: Worker, sandbox: Sandbox) -> None:
    job_id = add_fetch(engine)
    states = []

    for _ in range(5):
        abandoned_fetch(engine, job_id)
        rescued(worker)
        states.append(job_row(engine, job_id)["state"])

    row = job_row(engine, job_id)
    assert states == [State.RETRYING] * 4 + [State.FAILED]
    assert (row["error"]["code"], row["error"]["transient"]) == ("worker_died", True)
    assert "logs" in row["error"]["remedy"]
    assert [attempt["verdict"] for attempt in ledger(engine, job_id)] == ["abandoned"] * 5
    assert len(events_of(engine, job_id)) == 1
    assert sandbox.requests == []


def test_a_create_that_is_poison_is_looked_for_before_it_fails(engine: Engine, worker: Worker) -> None:
    job_id = add_job(engine)

    for _ in range(5):
        claimed(engine, job_id)
        later(engine, 16, job_id)
        rescued(worker)

    row = job_row(engine, job_id)
    assert (row["state"], row["reconciling"]) == (State.RETRYING, True)
    assert events_of(engine, job_id) == []


def test_who_does_not_lead_rescues_nothing(engine: Engine, worker: Worker) -> None:
    job_id = abandoned_fetch(engine)

    count = rescued(worker, holder="another")

    assert count == 0
    assert job_row(engine, job_id)["state"] == State.RUNNING


def test_one_attempt_that_cannot_be_ended_keeps_no_other_from_it(engine: Engine, worker: Worker) -> None:
    broken, sound = abandoned_fetch(engine), abandoned_fetch(engine, add_fetch(engine, customer_id=CUSTOMER_ID + "2"))

    def abandon(transaction: Transaction, held: Claim) -> Any:
        if held.job["id"] == broken:
            raise RuntimeError("a bug of ours")
        return worker.runner.abandon(transaction, held, RetryPolicy())

    rescue(engine, worker.holder, abandon)

    assert job_row(engine, sound)["state"] == State.RETRYING
    assert job_row(engine, broken)["state"] == State.RUNNING


def add_silent(engine: Engine, count: int, **columns: Any) -> None:
    """So many running jobs whose worker fell silent."""
    values = {**FETCH, "state": State.RUNNING, "lease_expires_at": now(-1), **columns}
    with writing(engine) as transaction:
        for _ in range(count):
            transaction.change(insert(jobs).values(values))


def test_one_pass_rescues_more_than_it_takes_at_once(engine: Engine, worker: Worker) -> None:
    add_silent(engine, 2 * RESCUE_AT_ONCE + 1)

    count = rescued(worker)

    assert count == 2 * RESCUE_AT_ONCE + 1
    assert {row["state"] for row in rows(engine, jobs)} == {State.RETRYING}


@pytest.mark.parametrize("broken", [RESCUE_AT_ONCE, 2 * RESCUE_AT_ONCE])
def test_attempts_that_cannot_be_ended_keep_no_other_from_it_however_many(
    engine: Engine, worker: Worker, broken: int
) -> None:
    add_silent(engine, broken, attempt=7)
    sound = abandoned_fetch(engine)

    def abandon(transaction: Transaction, held: Claim) -> Any:
        if held.job["attempt"] == 7:
            raise RuntimeError("a bug of ours")
        return worker.runner.abandon(transaction, held, RetryPolicy())

    count = rescue(engine, worker.holder, abandon)

    assert count == 1
    assert job_row(engine, sound)["state"] == State.RETRYING


def test_running_jobs_of_an_unknown_kind_end_and_keep_no_other_from_it(engine: Engine, worker: Worker) -> None:
    add_silent(engine, RESCUE_AT_ONCE, kind="nope")
    sound = abandoned_fetch(engine)

    rescue(engine, worker.holder, lambda tx, held: worker.runner.abandon(tx, held, retry_of(held.job["kind"])))
    later(engine, 60)
    worker.dispatch.run_once()

    assert job_row(engine, sound)["state"] == State.DISPATCHED
    unknown = rows(engine, jobs, kind="nope")
    assert {(row["state"], row["error"]["code"]) for row in unknown} == {(State.FAILED, "invalid_payload")}


@pytest.mark.parametrize("state", [State.DISPATCHED, State.RUNNING])
def test_a_lease_that_is_none_of_ours_is_not_waited_for(engine: Engine, worker: Worker, state: State) -> None:
    job_id = add_fetch(engine, state=state, lease_expires_at=now(LONGEST_LEASE_SECONDS + 10))
    seen = overdue(engine, lately=True)

    count = rescued(worker)

    assert (seen.leases, count) == (True, 1)
    assert job_row(engine, job_id)["state"] == State.RETRYING


def test_a_create_whose_worker_was_killed_makes_one_customer(engine: Engine, worker: Worker, sandbox: Sandbox) -> None:
    job_id = add_job(engine)
    worker.dispatch_and_attempt(job_id)
    # As if the worker had been killed between Stripe's answer and the record.
    with writing(engine) as transaction:
        transaction.change(delete(events))
    change(
        engine,
        job_id,
        state=State.RUNNING,
        finished_at=None,
        outcome=None,
        lease_token=TOKEN,
        lease_expires_at=now(-1),
    )

    rescued(worker)
    worker.work()

    assert job_row(engine, job_id)["outcome"] == "replayed"
    assert len(sandbox.customers()) == 1
    assert len(events_of(engine, job_id)) == 1
