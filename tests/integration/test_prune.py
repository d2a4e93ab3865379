"""What is old goes, a little at a time; what keeps a second customer from being made stays, emptied."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import redis
from sqlalchemy import Engine, insert

from customer_jobs import lifecycle
from customer_jobs.database import writing
from customer_jobs.errors import ConflictError, NotRetryable
from customer_jobs.producer import CustomerJobs
from customer_jobs.sandbox import Sandbox
from customer_jobs.schema import attempts, events, jobs, webhook_events
from customer_jobs.sql import now
from customer_jobs.vocabulary import FINAL_STATES, State
from tests.builders import (
    EMAIL,
    Worker,
    add_job,
    age,
    change,
    claimed,
    events_of,
    job_row,
    later,
    lead,
    ledger,
    rows,
    settings_for,
)
from worker.dispatcher import Dispatcher
from worker.dispatcher import prune as prune_module
from worker.dispatcher.prune import Prune
from worker.dispatcher.relay import Relay
from worker.record import LATE
from worker.retry import RetryPolicy

DAY_SECONDS = 86_400
RETENTION_DAYS = 30
STREAM = "prune:events"
BODY = {"email": EMAIL, "name": "Jenny Rosen", "phone": "+15555550123", "metadata": {"note": "likes tea"}}
PERSONAL = (EMAIL, "Jenny Rosen", "5555550123", "likes tea", "secret-context")


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as opened:
        opened.delete(STREAM)
        yield opened


@pytest.fixture
def prune(engine: Engine, client: redis.Redis) -> Prune:
    return Prune(engine, client, STREAM, RETENTION_DAYS, holder=lead(engine))


def days_later(engine: Engine, days: float) -> None:
    later(engine, days * DAY_SECONDS)
    age(engine, days * DAY_SECONDS, events)
    age(engine, days * DAY_SECONDS, webhook_events)
    lead(engine)


def prune_all(prune: Prune) -> int:
    """How many batches there were work for."""
    batches = 0
    while prune.run_once():
        batches += 1
        assert batches < 50
    return batches


def publish(engine: Engine, client: redis.Redis) -> None:
    Relay(engine, client, STREAM, holder=lead(engine)).run_once()


def test_a_final_job_goes_with_its_attempts_and_its_event(
    engine: Engine, worker: Worker, prune: Prune, client: redis.Redis
) -> None:
    job_id = add_job(engine, payload={"body": {"email": EMAIL}})
    worker.work()
    publish(engine, client)

    days_later(engine, RETENTION_DAYS - 0.1)
    assert prune_all(prune) == 0
    assert len(ledger(engine, job_id)) == 1
    days_later(engine, 0.2)
    prune_all(prune)

    assert rows(engine, jobs) == rows(engine, attempts) == rows(engine, events) == []


@pytest.mark.parametrize("state", State)
def test_only_what_is_final_goes(engine: Engine, prune: Prune, state: State) -> None:
    add_job(engine, state=state)
    days_later(engine, 400)

    prune_all(prune)

    assert (rows(engine, jobs) == []) == (state in FINAL_STATES)


def test_an_event_that_was_not_published_stays(engine: Engine, worker: Worker, prune: Prune) -> None:
    job_id = add_job(engine)
    worker.work()
    days_later(engine, 400)

    prune_all(prune)

    assert len(events_of(engine, job_id)) == 1


def test_webhooks_received_long_ago_go(engine: Engine, prune: Prune) -> None:
    with writing(engine) as transaction:
        transaction.change(
            insert(webhook_events).values(id="evt_1", type="customer.updated", created=now(), received_at=now())
        )
    days_later(engine, RETENTION_DAYS - 1)
    prune_all(prune)
    assert len(rows(engine, webhook_events)) == 1
    days_later(engine, 2)

    prune_all(prune)

    assert rows(engine, webhook_events) == []


def test_pruning_goes_by_batches_and_ends(engine: Engine, prune: Prune, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune_module, "BATCH_SIZE", 10)
    for number in range(25):
        add_job(engine, state=State.SUCCEEDED, external_id=f"user-{number}" if number % 2 else None)
    kept = add_job(engine)
    days_later(engine, 400)

    removed = [prune.run_once() for _ in range(4)]

    assert removed == [20, 5, 0, 0]
    assert len(rows(engine, jobs)) == 12 + 1
    assert job_row(engine, kept)["state"] == State.QUEUED


def test_who_does_not_lead_prunes_nothing(engine: Engine, client: redis.Redis) -> None:
    lead(engine, "another")
    add_job(engine, state=State.SUCCEEDED)
    client.xadd(STREAM, {"event": "{}"}, id="1-1")
    later(engine, 400 * DAY_SECONDS)
    idle = Prune(engine, client, STREAM, RETENTION_DAYS, holder="holder")

    assert idle.run_once() == 0
    idle.trim_stream()

    assert len(rows(engine, jobs)) == 1
    assert client.xlen(STREAM) == 1


def test_what_keeps_an_external_id_is_emptied(
    engine: Engine, worker: Worker, prune: Prune, client: redis.Redis
) -> None:
    job = CustomerJobs(engine).create_customer(BODY, external_id="user-1", context={"for": "secret-context"})
    worker.work()
    publish(engine, client)
    customer_id = job_row(engine, job.id)["customer_id"]
    days_later(engine, RETENTION_DAYS + 1)

    prune_all(prune)

    row = job_row(engine, job.id)
    assert (row["state"], row["external_id"], row["customer_id"]) == (State.SUCCEEDED, "user-1", customer_id)
    assert (row["payload"], row["params"], row["context"], row["result"]) == ({}, None, None, None)
    assert ledger(engine, job.id) == []
    everything = json.dumps([row, *rows(engine, events), *rows(engine, attempts)], default=str)
    assert [word for word in PERSONAL if word in everything] == []
    assert prune_all(prune) == 0


def test_a_failure_that_keeps_its_external_id_is_emptied_too(engine: Engine, prune: Prune) -> None:
    job_id = add_job(
        engine,
        state=State.FAILED,
        external_id="user-1",
        payload={"body": BODY},
        first_sent_at=now(),
        error={"type": "api_error", "code": "outcome_unknown", "message": f"no {EMAIL}", "param": EMAIL},
    )
    days_later(engine, RETENTION_DAYS + 1)

    prune_all(prune)

    row = job_row(engine, job_id)
    assert EMAIL not in json.dumps(row, default=str)
    assert row["error"]["code"] == "outcome_unknown"
    assert row["external_id"] == "user-1"
    with pytest.raises(NotRetryable, match="customer_jobs_id"):
        CustomerJobs(engine).retry(job_id)


@pytest.mark.parametrize("is_there", [True, False])
def test_the_truth_about_a_failure_that_was_emptied_still_arrives(
    engine: Engine, worker: Worker, sandbox: Sandbox, prune: Prune, is_there: bool
) -> None:
    (sent_to,) = worker.gateway.identities("default")
    unknown = {"error": {"code": "outcome_unknown"}, "first_sent_at": now(), "sent_to": sent_to}
    failed = add_job(engine, state=State.FAILED, external_id="user-1", **unknown)
    days_later(engine, RETENTION_DAYS + 1)
    prune_all(prune)
    if is_there:
        sandbox.add_customer("cus_1", account="acct_shop", metadata={"customer_jobs_id": failed})

    with writing(engine) as transaction:
        row = lifecycle.read(transaction, failed)
        assert row is not None
        made = lifecycle.retry_by_hand(transaction, row, candidate_customer_id="cus_1")
    assert made is not None
    for _ in range(4):
        worker.work()
        later(engine, 61, made["id"])

    job = job_row(engine, made["id"])
    ends = ("succeeded", "adopted", "cus_1") if is_there else ("failed", None, None)
    assert (job["state"], job["outcome"], job["customer_id"]) == ends
    assert job["external_id"] == "user-1"
    assert [request.method for request in sandbox.requests if request.method != "GET"] == []


def test_after_a_prune_the_same_create_makes_no_second_customer(
    engine: Engine, worker: Worker, sandbox: Sandbox, prune: Prune
) -> None:
    producer = CustomerJobs(engine)
    job = producer.create_customer(BODY, external_id="user-1")
    worker.work()
    days_later(engine, RETENTION_DAYS + 1)
    prune_all(prune)

    again = producer.create_customer(BODY, external_id="user-1")
    with pytest.raises(ConflictError) as conflict:
        producer.create_customer(BODY | {"name": "Somebody Else"}, external_id="user-1")
    worker.work()

    assert again.id == conflict.value.job.id == job.id
    assert again.state == State.SUCCEEDED
    assert len(sandbox.customers()) == 1


@pytest.mark.parametrize("pruned", [False, True])
def test_a_corrected_create_makes_one_customer(
    engine: Engine, worker: Worker, sandbox: Sandbox, prune: Prune, pruned: bool
) -> None:
    producer = CustomerJobs(engine)
    failed = producer.create_customer({"email": "no address"}, external_id="user-1")
    worker.work()
    assert producer.get(failed.id).state == State.FAILED  # type: ignore[union-attr]
    if pruned:
        days_later(engine, RETENTION_DAYS + 1)
        prune_all(prune)
        assert producer.get(failed.id) is None

    corrected = producer.create_customer(BODY, external_id="user-1")
    once_more = producer.create_customer(BODY, external_id="user-1")
    worker.work()

    assert corrected.id == once_more.id != failed.id
    assert job_row(engine, corrected.id)["state"] == State.SUCCEEDED
    assert [each["metadata"]["external_id"] for each in sandbox.customers()] == ["user-1"]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("fault", ["400", "402", "401", "403_account", "404", "424x3", "lock_timeoutx3"])
def test_a_job_that_certainly_made_no_customer_lets_its_id_go(
    engine: Engine, worker: Worker, sandbox: Sandbox, fault: str
) -> None:
    body: dict[str, Any] = {"email": EMAIL, "metadata": {"sandbox": fault}}
    job_id = add_job(engine, payload={"body": body}, external_id="user-1", max_attempts=3)
    worker.work()

    assert job_row(engine, job_id)["state"] == State.FAILED
    assert CustomerJobs(engine).create_customer({"email": EMAIL}, external_id="user-1").id != job_id
    assert sandbox.customers() == []


def test_the_stream_loses_what_is_old_and_nothing_else(prune: Prune, client: redis.Redis) -> None:
    present = int(client.time()[0])
    old = present - (RETENTION_DAYS + 1) * DAY_SECONDS
    young = present - (RETENTION_DAYS - 1) * DAY_SECONDS
    for number in range(500):
        client.xadd(STREAM, {"event": "{}"}, id=f"{old * 1000}-{number + 1}")
    for number in range(300):
        client.xadd(STREAM, {"event": "{}"}, id=f"{young * 1000}-{number + 1}")

    prune.trim_stream()

    entries: Any = client.xrange(STREAM)
    left = [int(entry_id.split(b"-")[0]) for entry_id, _ in entries]
    assert left.count(young * 1000) == 300
    assert len(left) <= 400  # Redis drops whole nodes, of a hundred entries at most.


def test_whoever_keeps_things_for_longer_than_there_are_streams_may(engine: Engine, client: redis.Redis) -> None:
    client.xadd(STREAM, {"event": "{}"})
    for_ever = Prune(engine, client, STREAM, 36_500, holder=lead(engine))

    for_ever.trim_stream()

    assert client.xlen(STREAM) == 1


def test_the_stream_is_trimmed_although_there_is_always_something_to_prune(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    trimmed = threading.Event()
    monkeypatch.setattr(Prune, "run_once", lambda _: 1)
    monkeypatch.setattr(Prune, "trim_stream", lambda _: trimmed.set())
    dispatcher = Dispatcher(
        engine, settings_for(), lambda *_: None, worker="w1", slots=16, abandon=lambda _transaction, _held: None
    )

    dispatcher.start()
    try:
        assert trimmed.wait(20)
    finally:
        dispatcher.stop()
        dispatcher.close()


def test_an_emptied_job_does_not_come_up_again(engine: Engine, prune: Prune) -> None:
    job_id = add_job(engine, state=State.SUCCEEDED, external_id="user-1")
    days_later(engine, 40)
    prune_all(prune)
    digest = job_row(engine, job_id)["body_digest"]
    days_later(engine, 400)

    assert prune_all(prune) == 0
    assert job_row(engine, job_id)["body_digest"] == digest
    assert job_row(engine, job_id)["created_at"] < job_row(engine, job_id)["finished_at"] + timedelta(seconds=1)


def test_a_worker_that_comes_back_after_its_job_was_pruned_changes_nothing(
    engine: Engine, worker: Worker, prune: Prune
) -> None:
    held = claimed(engine)
    change(engine, held.job["id"], state=State.CANCELLED, lease_token=None, lease_expires_at=None, finished_at=now())
    days_later(engine, RETENTION_DAYS + 1)
    prune_all(prune)

    with writing(engine) as transaction:
        recorded = worker.runner.abandon(transaction, held, RetryPolicy())

    assert recorded == LATE
    assert rows(engine, jobs) == []
