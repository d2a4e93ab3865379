"""A worker comes back soon after its broker does, however long that was away, and notices a database that vanished."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery import Celery
from kombu.asynchronous import Hub
from kombu.exceptions import OperationalError
from kombu.transport.redis import Transport
from redis.exceptions import OutOfMemoryError
from sqlalchemy import Engine

from customer_jobs.database import open_engine
from customer_jobs.embedded import free_port, wait_until
from customer_jobs.schema import leases, workers
from tests import servers
from tests.builders import rows, settings_for
from tests.proxy import Proxy
from worker import broker
from worker.app import app
from worker.broker import EVENTS_AT_ONCE, GATHER_EVENTS_SECONDS, RECONNECT_SECONDS, PromptConsumer
from worker.dispatcher import Dispatcher


def test_the_pauses_between_two_tries_do_not_grow(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nobody = f"redis://127.0.0.1:{free_port()}/0"
    monkeypatch.setenv("REDIS_URL", nobody)
    monkeypatch.setitem(app.conf, "broker_connection_max_retries", 3)
    consumer = PromptConsumer.__new__(PromptConsumer)
    consumer.app, consumer.first_connection_attempt = app, True

    with caplog.at_level(logging.ERROR), pytest.raises(OperationalError):
        consumer.ensure_connected(app.connection_for_read(nobody))

    pauses = [line.partition("Trying again in ")[2].partition(" seconds")[0] for line in caplog.messages]
    assert pauses == [f"{RECONNECT_SECONDS:.2f}"] * 3


@contextmanager
def consumer_of(redis_url: str) -> Iterator[Any]:
    """A worker's consumer that is not connected yet."""
    made = PromptConsumer.__new__(PromptConsumer)
    made.hub, made.amqheartbeat, made.first_connection_attempt = Hub(), None, True  # type: ignore[no-untyped-call]
    try:
        with Celery(broker=redis_url, set_as_current=False) as made.app:
            made.app.conf.broker_connection_retry_on_startup = True
            yield made
    finally:
        made.hub.close()


def test_a_connection_that_breaks_while_it_is_made_is_closed(tmp_path: Path) -> None:
    with (
        servers.start_redis(tmp_path) as server,
        redis.Redis.from_url(server.url) as client,
        consumer_of(server.url) as consumer,
    ):
        client.config_set("maxmemory", 1)

        with pytest.raises(OutOfMemoryError):
            consumer.connect()

        # Kombu would keep it, and what it holds of Redis, until the process ends.
        wait_until(lambda: len(client.client_list()) == 1, 5, "nobody else is connected")


def test_once_reconnected_the_loop_calls_nothing_for_the_connection_before(redis_url: str) -> None:
    def of_the_pool() -> None: ...

    called = []
    with consumer_of(redis_url) as consumer:
        consumer.hub.on_tick.add(of_the_pool)
        for _ in range(3):
            consumer.connect().close()
            called.append(len(consumer.hub.on_tick - {of_the_pool}))

        assert called == [1, 1, 1]
        assert of_the_pool in consumer.hub.on_tick


def test_a_consumer_without_a_loop_connects(redis_url: str) -> None:
    with consumer_of(redis_url) as consumer:
        consumer.hub, loop = None, consumer.hub
        connection = consumer.connect()
        consumer.hub = loop

        assert connection.connected
        connection.close()


def test_more_tries_than_a_transport_has_channels_are_no_end(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "RECONNECT_SECONDS", 0.0)
    # Kombu's own would do for days.
    monkeypatch.setattr(Transport, "channel_max", 3)
    with Proxy.before(redis_url) as proxy, consumer_of(proxy.through(redis_url)) as consumer:
        proxy.refuse()
        tries: list[object] = []

        def go_on_after_some(*_: object) -> None:
            tries.append(None)
            if len(tries) == 10:
                proxy.accept()

        monkeypatch.setattr("celery.worker.consumer.consumer.error", go_on_after_some)

        consumer.connect().close()

        assert len(tries) >= 10


class Loop:
    """Celery's event loop, as far as it plans things."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []
        self.later: list[tuple[float, Callable[[], None]]] = []

    def call_soon(self, work: Callable[..., None], *arguments: Any) -> None:
        self.soon.append(lambda: work(*arguments))

    def call_later(self, seconds: float, work: Callable[[], None]) -> None:
        self.later.append((seconds, work))


def test_the_events_of_tasks_gather_and_leave_in_one_message() -> None:
    consumer, loop, flushed = PromptConsumer.__new__(PromptConsumer), Loop(), []
    consumer.hub, consumer._flush_events = loop, lambda: flushed.append(True)
    consumer.event_dispatcher = SimpleNamespace(buffer_limit=24)

    for _ in range(2):
        for _ in range(100):
            consumer.on_send_event_buffered()
        loop.soon.pop()()
        seconds, flush = loop.later.pop()
        flush()

        assert (seconds, loop.soon, loop.later) == (GATHER_EVENTS_SECONDS, [], [])
    assert flushed == [True, True]
    # Or the thread that has a job to do would send them, well before that.
    assert consumer.event_dispatcher.buffer_limit == EVENTS_AT_ONCE


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_database_that_vanished_is_noticed_in_mid_statement_too(engine: Engine) -> None:
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        options = driver.info.get_parameters()

    # Keepalives say nothing while something that was sent waits for its confirmation.
    assert (options["keepalives_idle"], options["tcp_user_timeout"]) == ("5", "15000")


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_database_that_is_away_when_a_dispatcher_starts_ends_no_worker(engine: Engine, database_url: str) -> None:
    with Proxy.before(database_url) as proxy:
        through = open_engine(proxy.through(database_url))
        dispatcher = Dispatcher(
            through, settings_for(), lambda *_: None, worker="w1", slots=16, abandon=lambda _transaction, _held: None
        )
        proxy.refuse()
        dispatcher.start()
        try:
            proxy.accept()
            wait_until(lambda: rows(engine, leases) and rows(engine, workers), 20, "it leads and shows its threads")
        finally:
            dispatcher.stop()
            dispatcher.close()
            through.dispose()


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_worker_that_is_told_to_stop_does_not_wait_for_a_silent_database(database_url: str) -> None:
    with Proxy.before(database_url) as proxy:
        engine = open_engine(proxy.through(database_url))
        dispatcher = Dispatcher(
            engine, settings_for(), lambda *_: None, worker="w1", slots=16, abandon=lambda _transaction, _held: None
        )
        dispatcher.start()
        wait_until(lambda: rows(engine, leases), 20, "it leads")
        proxy.stall()

        def stop() -> None:
            dispatcher.stop()
            dispatcher.close()

        stopping = threading.Thread(target=stop)
        stopping.start()
        stopping.join(60)

        is_over = not stopping.is_alive()
        proxy.go_on()
        stopping.join()
        engine.dispose()
    assert is_over
