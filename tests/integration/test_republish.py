"""A Redis that lost the stream loses no event: the table has them, under the same ids."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import Engine, update

from customer_jobs import Event, EventConsumer, Unavailable, replay
from customer_jobs.database import writing
from customer_jobs.embedded import free_port
from customer_jobs.schema import events
from customer_jobs.stream import connect
from tests import servers
from tests.builders import age, lead, rows
from tests.integration.test_consumer import soon
from tests.outbox import add_events, ids_on
from worker.dispatcher.prune import Prune
from worker.dispatcher.relay import Relay

LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


@pytest.fixture
def publish(engine: Engine, client: redis.Redis, stream: str) -> Callable[[int], list[str]]:
    """Adds events to the table and relays them."""
    relay = Relay(engine, client, stream, holder=lead(engine))

    def publish(count: int) -> list[str]:
        added = add_events(engine, count)
        while relay.run_once():
            pass
        return added

    return publish


@contextmanager
def running(consumer: EventConsumer, handler: Callable[[Event], object]) -> Iterator[None]:
    thread = threading.Thread(target=consumer.run, args=(handler,))
    thread.start()
    try:
        yield
    finally:
        consumer.stop()
        thread.join(10)
        assert not thread.is_alive()


def noting(ids: list[str]) -> Callable[[Event], object]:
    """A handler that does nothing else."""
    return lambda event: ids.append(event.id)


Publish = Callable[[int], list[str]]


def test_replay_publishes_again_in_order_and_under_the_same_ids(
    engine: Engine, client: redis.Redis, redis_url: str, stream: str, publish: Publish
) -> None:
    added = publish(3)
    unpublished = add_events(engine, 1)

    again = replay(engine, since=LONG_AGO, url=redis_url, stream=stream)

    assert again == 3
    assert ids_on(client, stream) == added + added
    assert [row["published_at"] is None for row in rows(engine, events)] == [False] * 3 + [True]
    assert unpublished[0] not in ids_on(client, stream)


def test_replay_keeps_to_a_time_and_to_types(
    engine: Engine, client: redis.Redis, redis_url: str, stream: str, publish: Publish
) -> None:
    publish(2)
    age(engine, 3600, events)
    young = publish(1)
    options: dict[str, Any] = {"url": redis_url, "stream": stream}
    since = datetime.now(UTC) - timedelta(minutes=10)

    assert replay(engine, since=since, **options) == 1
    assert ids_on(client, stream)[-1:] == young
    assert replay(engine, since=LONG_AGO, types=["customer.fetch.*"], **options) == 0
    assert replay(engine, since=LONG_AGO, types=["customer.create.*"], **options) == 3


def test_only_what_is_missing_is_published(
    engine: Engine, client: redis.Redis, redis_url: str, stream: str, publish: Publish
) -> None:
    added = publish(600)
    entries: Any = client.xrange(stream)
    client.xdel(stream, *(entry_id for entry_id, _ in entries[100:300]))

    again = replay(engine, since=LONG_AGO, missing_only=True, url=redis_url, stream=stream)

    assert again == 200
    assert ids_on(client, stream) == added[:100] + added[300:] + added[100:300]
    assert replay(engine, since=LONG_AGO, missing_only=True, url=redis_url, stream=stream) == 0


def test_nobody_there_is_unavailable_soon(engine: Engine) -> None:
    began = time.monotonic()

    with pytest.raises(Unavailable, match="cannot be reached"):
        replay(engine, since=LONG_AGO, url=f"redis://127.0.0.1:{free_port()}/0")

    assert time.monotonic() - began < 5


def test_a_consumer_restores_what_a_flushed_redis_lost(
    engine: Engine, client: redis.Redis, redis_url: str, stream: str, publish: Publish
) -> None:
    slow = threading.Event()
    ids: list[str] = []

    def handler(event: Event) -> None:
        ids.append(event.id)
        slow.wait(10)

    with running(EventConsumer("billing", url=redis_url, stream=stream, engine=engine), handler):
        added = publish(50)
        soon(lambda: ids)
        client.delete(stream)  # With the group and all that the consumer has not seen.
        slow.set()
        soon(lambda: set(ids) >= set(added))
        later = publish(1)
        soon(lambda: later[0] in ids)

    assert len(set(ids_on(client, stream))) == len(ids_on(client, stream)) == 51


def test_consumers_of_several_groups_restore_it_once(
    engine: Engine, client: redis.Redis, redis_url: str, stream: str, publish: Publish
) -> None:
    options: dict[str, Any] = {"url": redis_url, "stream": stream, "engine": engine}
    heard: dict[str, list[str]] = {"billing": [], "audit": [], "crm": []}
    consumers = [running(EventConsumer(group, **options), noting(ids)) for group, ids in heard.items()]
    with consumers[0], consumers[1], consumers[2]:
        before = publish(1)
        soon(lambda: all(heard.values()))
        added = add_events(engine, 300)
        with writing(engine) as transaction:
            transaction.change(update(events).values(published_at=datetime.now(UTC)))
        client.delete(stream)
        soon(lambda: all(set(ids) >= set(added) for ids in heard.values()))

    assert sorted(ids_on(client, stream)) == sorted(before + added)


def test_a_new_process_finds_out_by_itself(
    engine: Engine, client: redis.Redis, redis_url: str, stream: str, publish: Publish
) -> None:
    added = publish(5)
    client.delete(stream)
    ids: list[str] = []

    with running(EventConsumer("billing", url=redis_url, stream=stream, engine=engine), noting(ids)):
        soon(lambda: len(ids) == 5)

    assert ids == added


def test_a_redis_that_comes_back_as_it_was_a_while_ago_gets_the_rest(tmp_path: Path, engine: Engine) -> None:
    with servers.start_redis(tmp_path, append_only=True) as server, connect(server.url) as client:
        relay = Relay(engine, client, "s", holder=lead(engine))
        ids: list[str] = []
        with running(EventConsumer("billing", url=server.url, stream="s", engine=engine), noting(ids)):
            early = add_events(engine, 3)
            relay.run_once()
            soon(lambda: ids == early)
            # These reached Redis, which forgot them in a crash: its group and its older entries are there.
            late = add_events(engine, 3)
            with writing(engine) as transaction:
                transaction.change(update(events).values(published_at=datetime.now(UTC)))
            server.stop_immediately()
            server.start_again()
            soon(lambda: set(late) <= set(ids))

        assert sorted(ids_on(client, "s")) == sorted(early + late)


def test_without_a_database_a_loss_is_said(
    client: redis.Redis, redis_url: str, stream: str, publish: Publish, caplog: pytest.LogCaptureFixture
) -> None:
    ids: list[str] = []
    with running(EventConsumer("billing", url=redis_url, stream=stream), noting(ids)):
        publish(1)
        soon(lambda: ids)
        client.delete(stream)
        soon(lambda: "customer-jobs events replay" in caplog.text)


def test_the_database_comes_from_the_settings(
    database_url: str,
    client: redis.Redis,
    redis_url: str,
    stream: str,
    publish: Publish,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    added = publish(1)
    client.delete(stream)
    ids: list[str] = []

    with running(EventConsumer("billing", url=redis_url, stream=stream), noting(ids)):
        soon(lambda: ids == added)


def test_a_database_without_our_tables_is_no_hindrance(
    empty_database_url: str, redis_url: str, stream: str, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    added = publish(1)
    ids: list[str] = []

    with running(EventConsumer("billing", url=redis_url, stream=stream), noting(ids)):
        soon(lambda: ids == added)


def test_the_stream_is_trimmed_by_age_and_the_table_outlives_it(
    engine: Engine, client: redis.Redis, redis_url: str, stream: str, publish: Publish
) -> None:
    added = publish(300)
    time.sleep(0.01)
    # Nothing is older than a hundredth of a second by the table's count, which is in days.
    Prune(engine, client, stream, 0.005 / 86_400, holder=lead(engine)).trim_stream()

    left = ids_on(client, stream)
    assert len(left) < 100 + 1  # Whole pages of a hundred entries go.
    assert [row["id"] for row in rows(engine, events)] == added
    assert replay(engine, since=LONG_AGO, missing_only=True, url=redis_url, stream=stream) == 300 - len(left)
    assert sorted(ids_on(client, stream)) == sorted(added)
