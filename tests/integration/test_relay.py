"""The outbox reaches the stream: in order, at least once, each event under its own id."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import Engine, insert, update

from customer_jobs import stream as consumers
from customer_jobs.database import writing
from customer_jobs.embedded import free_port, wait_until
from customer_jobs.schema import events
from tests import servers
from tests.builders import age, lead, rows
from tests.proxy import Proxy
from worker.dispatcher.relay import BATCH_SIZE, LATE_EVENTS, Relay, connect


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    made = connect(redis_url)
    yield made
    made.close()


@pytest.fixture
def relay(engine: Engine, client: redis.Redis, stream: str) -> Relay:
    return Relay(engine, client, stream, holder=lead(engine))


def add_events(engine: Engine, count: int = 1, **data: Any) -> list[str]:
    """The ids of new events in the outbox."""
    new = [
        {"type": "customer_jobs.customer.create.succeeded", "subject": str(uuid.uuid4())}
        | {"data": {"credential": "default", "number": number, **data}}
        for number in range(count)
    ]
    with writing(engine) as transaction:
        return [transaction.value(insert(events).values(each).returning(events.c.id)) for each in new]


def published(client: redis.Redis, stream: str) -> list[dict[str, Any]]:
    """The events on the stream, oldest first."""
    entries: Any = client.xrange(stream)
    return [json.loads(fields[b"event"]) for _, fields in entries]


def ids(client: redis.Redis, stream: str) -> list[str]:
    return [event["id"] for event in published(client, stream)]


def test_events_are_published_in_their_order_and_once(
    engine: Engine, relay: Relay, client: redis.Redis, stream: str
) -> None:
    added = add_events(engine, 5)

    counts = [relay.run_once(), relay.run_once()]

    assert counts == [5, 0]
    assert ids(client, stream) == added
    assert all(row["published_at"] is not None for row in rows(engine, events))


def test_an_entry_is_the_event_with_its_type_and_subject_beside_it(
    engine: Engine, relay: Relay, client: redis.Redis, stream: str
) -> None:
    add_events(engine, context={"name": "Zoë 🎉 \ud800"})

    relay.run_once()

    entries: Any = client.xrange(stream)
    ((_, fields),) = entries
    event = json.loads(fields[b"event"])
    (row,) = rows(engine, events)
    assert (event["id"], event["source"], event["specversion"]) == (row["id"], "/customer-jobs/default", "1.0")
    assert event["data"] == row["data"]
    assert fields[b"type"].decode() == event["type"] == row["type"]
    assert fields[b"subject"].decode() == event["subject"] == row["subject"]


def test_more_than_a_batch_is_published_batch_by_batch(
    engine: Engine, relay: Relay, client: redis.Redis, stream: str
) -> None:
    added = add_events(engine, BATCH_SIZE + 1)

    counts = [relay.run_once(), relay.run_once(), relay.run_once()]

    assert counts == [BATCH_SIZE, 1, 0]
    assert ids(client, stream) == added


def test_what_commits_late_is_published_late(engine: Engine, relay: Relay, client: redis.Redis, stream: str) -> None:
    if engine.dialect.name == "sqlite":
        pytest.skip("one writer at a time: numbers commit in their order")
    values = {"type": "t", "data": {"credential": "default"}}
    with engine.begin() as slow:
        slow.execute(insert(events).values(values | {"subject": "slow"}))
        add_events(engine)
        relay.run_once()
    relay.run_once()

    assert [event["subject"] == "slow" for event in published(client, stream)] == [False, True]


@pytest.mark.parametrize(("numbers_late", "at_once"), [(LATE_EVENTS - 1, True), (LATE_EVENTS + 1, False)])
def test_what_commits_much_later_is_published_when_the_relay_starts_over(
    engine: Engine, relay: Relay, numbers_late: int, at_once: bool
) -> None:
    last = 5000
    add_numbered(engine, last)
    relay.run_once()
    add_numbered(engine, last - numbers_late)

    left = relay.run_once()
    relay.start_over()
    left_later = relay.run_once()

    assert (left, left_later) == ((1, 0) if at_once else (0, 1))


def add_numbered(engine: Engine, seq: int) -> None:
    """An event that got its number when its transaction began, and is committed now."""
    event = {"seq": seq, "type": "customer_jobs.customer.create.succeeded", "subject": str(uuid.uuid4()), "data": {}}
    with writing(engine) as transaction:
        transaction.change(insert(events).values(event | {"data": {"credential": "default"}}))


def test_an_event_published_but_not_marked_comes_again_under_its_id(
    engine: Engine, relay: Relay, client: redis.Redis, stream: str
) -> None:
    first, second = add_events(engine, 2)
    relay.run_once()
    with writing(engine) as transaction:
        # As a crash between the two would leave it.
        transaction.change(update(events).where(events.c.id == second).values(published_at=None))

    relay.run_once()

    assert ids(client, stream) == [first, second, second]
    assert published(client, stream)[1] == published(client, stream)[2]


def test_a_redis_that_is_away_keeps_nothing_from_being_published_later(
    engine: Engine, redis_url: str, client: redis.Redis, stream: str
) -> None:
    added = add_events(engine, 3)
    with Proxy.before(redis_url) as proxy:
        behind = connect(proxy.through(redis_url))
        relay = Relay(engine, behind, stream, holder=lead(engine))
        proxy.refuse()
        with pytest.raises(redis.RedisError):
            relay.run_once()
        unpublished = [row["published_at"] for row in rows(engine, events)]
        proxy.accept()

        relay.run_once()
        behind.close()

    assert unpublished == [None] * 3
    assert ids(client, stream) == added


def test_a_reply_that_is_lost_doubles_an_event_and_loses_none(
    engine: Engine, redis_url: str, client: redis.Redis, stream: str
) -> None:
    added = add_events(engine, 2)
    with Proxy.before(redis_url) as proxy:
        behind = connect(proxy.through(redis_url))
        behind.ping()
        relay = Relay(engine, behind, stream, holder=lead(engine))
        proxy.cut_replies_after(0)
        with pytest.raises(redis.RedisError):
            relay.run_once()

        relay.run_once()
        behind.close()

    assert ids(client, stream) == [*added, *added]


def test_a_redis_that_refuses_a_write_gets_the_events_later(
    engine: Engine, relay: Relay, client: redis.Redis, stream: str
) -> None:
    added = add_events(engine, 2)
    client.set(stream, "of another type")
    with pytest.raises(redis.ResponseError):
        relay.run_once()
    client.delete(stream)

    relay.run_once()

    assert ids(client, stream) == added


def test_a_redis_that_has_become_a_replica_is_left_for_whom_its_name_leads_to_by_now(
    engine: Engine, tmp_path: Path, stream: str
) -> None:
    added = add_events(engine, 2)
    with servers.start_redis(tmp_path) as server, connect(server.url) as client, consumers.connect(server.url) as other:
        operator = redis.Redis.from_url(server.url)
        relay = Relay(engine, client, stream, holder=lead(engine))
        for of_ours in (client, other):
            of_ours.set("written", "by us")
        operator.replicaof("127.0.0.1", free_port())

        for write in (relay.run_once, lambda: client.set("written", ""), lambda: other.set("written", "")):
            with pytest.raises(redis.ReadOnlyError):
                write()
        wait_until(lambda: len(operator.client_list()) == 1, 5, "only the operator is connected")

        operator.replicaof("NO", "ONE")
        relay.run_once()

        assert ids(client, stream) == added
        operator.close()


def test_what_a_redis_took_before_it_was_full_is_not_given_to_it_again(
    engine: Engine, tmp_path: Path, stream: str
) -> None:
    added = add_events(engine, 40, context="x" * 100_000)
    with servers.start_redis(tmp_path) as server:
        client = connect(server.url)
        relay = Relay(engine, client, stream, holder=lead(engine))
        client.config_set("maxmemory", int(client.info("memory")["used_memory"]) + 2_000_000)
        for _ in range(3):
            with pytest.raises(redis.ResponseError):
                relay.run_once()
        taken = ids(client, stream)
        client.config_set("maxmemory", 0)
        relay.run_once()
        in_the_end = ids(client, stream)
        client.close()

    assert 0 < len(taken) < len(added)
    assert in_the_end == added


def test_nobody_there_is_an_error_soon(engine: Engine, stream: str) -> None:
    add_events(engine)
    nobody = connect(f"redis://127.0.0.1:{free_port()}/0")

    with pytest.raises(redis.ConnectionError):
        Relay(engine, nobody, stream, holder=lead(engine)).run_once()

    nobody.close()
    assert [row["published_at"] for row in rows(engine, events)] == [None]


def test_who_does_not_lead_publishes_nothing(engine: Engine, client: redis.Redis, stream: str) -> None:
    add_events(engine)
    lead(engine, "another")

    published_by_us = Relay(engine, client, stream, holder="us").run_once()

    assert published_by_us == 0
    assert ids(client, stream) == []


def test_events_of_any_age_are_published(engine: Engine, relay: Relay, client: redis.Redis, stream: str) -> None:
    added = add_events(engine)
    age(engine, 40 * 86_400, events)

    relay.run_once()

    assert ids(client, stream) == added
