"""A PostgreSQL that falls silent in the middle of things: whoever waits learns of it, and is not left waiting."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import OperationalError

from customer_jobs import patience
from customer_jobs.database import CONNECT_OPTIONS, open_engine
from customer_jobs.embedded import wait_until
from customer_jobs.patience import for_as_long_as_it_takes
from tests.chaos.leaks import holdings
from tests.proxy import Proxy
from worker.dispatcher import wakeup
from worker.dispatcher.wakeup import Wakeup, listen


@pytest.fixture
def proxy(empty_postgres_url: str) -> Iterator[Proxy]:
    with Proxy.before(empty_postgres_url) as proxy:
        yield proxy


@pytest.fixture
def engine(proxy: Proxy, empty_postgres_url: str) -> Iterator[Engine]:
    engine = open_engine(proxy.through(empty_postgres_url))
    yield engine
    engine.dispose()


def sockets(proxy: Proxy) -> int:
    """How many this process holds that lead to the server."""
    return holdings(os.getpid(), {proxy.port: "server"}).descriptors["server"]


def test_a_server_that_falls_silent_in_a_statement_is_given_up(engine: Engine, proxy: Proxy) -> None:
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        proxy.stall()

        with pytest.raises(OperationalError, match="the server does not answer") as met:
            connection.execute(text("SELECT 2"))
    proxy.go_on()

    assert met.value.connection_invalidated
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT 3")) == 3


@pytest.fixture
def _uncollected() -> Iterator[None]:
    """Python leaves its garbage where it is, as in a process that has little to do."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_uncollected")
def test_trying_to_reach_a_silent_server_leaves_no_socket_open(engine: Engine, proxy: Proxy) -> None:
    proxy.stall()

    with pytest.raises(OperationalError, match="timeout expired"):
        engine.connect()

    assert sockets(proxy) == 0


@pytest.mark.usefixtures("_uncollected")
def test_trying_to_listen_to_a_silent_server_leaves_no_socket_open(engine: Engine, proxy: Proxy) -> None:
    proxy.stall()
    stopped = threading.Event()
    listening = threading.Thread(target=listen, args=(engine, "jobs", Wakeup(), stopped))
    listening.start()
    try:
        wait_until(lambda: sockets(proxy) == 1, 5, "it tries")
    finally:
        stopped.set()
        listening.join()

    assert sockets(proxy) == 0


def test_a_listener_has_the_limits_of_every_connection(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}
    stopped = threading.Event()

    def connect(*_: object, **options: object) -> None:
        given.update(options)
        stopped.set()
        raise OSError

    monkeypatch.setattr(wakeup, "connect", connect)

    listen(engine, "jobs", Wakeup(), stopped)

    assert given.items() >= CONNECT_OPTIONS.items()


def test_a_statement_that_waits_for_another_is_waited_for(engine: Engine, empty_postgres_url: str) -> None:
    # Longer than the silence after which the server is looked at.
    waits_seconds = patience.SILENCE_SECONDS + 1
    holder = create_engine(empty_postgres_url)
    with holder.connect() as holding, engine.connect() as waiting:
        holding.execute(text("SELECT pg_advisory_xact_lock(1)"))
        ending = threading.Timer(waits_seconds, holding.rollback)
        ending.start()
        began = time.monotonic()

        waiting.execute(text("SELECT pg_advisory_xact_lock(1)"))

        assert time.monotonic() - began > patience.SILENCE_SECONDS
        ending.join()
    holder.dispose()


def test_a_statement_that_never_ends_is_given_up_though_the_server_is_there(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "SILENCE_SECONDS", 0.1)
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.longest_seconds = 0.2

        with pytest.raises(OperationalError, match="the server does not answer"):
            connection.execute(text("SELECT pg_sleep(60)"))


def test_what_may_take_any_time_does(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "SILENCE_SECONDS", 0.1)
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.longest_seconds = 0.2

        with for_as_long_as_it_takes(driver):
            connection.execute(text("SELECT pg_sleep(0.5)"))

        assert driver.longest_seconds == 0.2
