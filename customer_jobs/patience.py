"""Connections to PostgreSQL that do not wait for ever: a server that falls silent is out of reach."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import cache
from traceback import clear_frames
from typing import Any, cast

from sqlalchemy import Engine, event

PING_SECONDS = 1.5  #: A server that is there answers a ping at once.
#: After so much silence in the middle of a statement, another connection finds out whether the server is still there:
#: one that waits for a lock, or has much to do, is waited for, and looked at again after twice the time.
SILENCE_SECONDS = 2.0
PROBE_SECONDS = 2  #: For that connection; libpq takes no less.
#: A network path that died between two servers that live; no statement of ours takes so long, but for a migration's.
LONGEST_SECONDS = 60.0

_NOTHING_YET = 0  #: What psycopg tells whoever waits while nothing has arrived.


def connect_patiently(engine: Engine) -> None:
    """Let the engine's new connections be of this kind."""

    @event.listens_for(engine, "do_connect")
    def connect_for_the_engine(_: Any, __: Any, arguments: Any, options: Any) -> Any:
        return connect(*arguments, **options)


def connect(*arguments: Any, **options: Any) -> Any:
    """A connection of psycopg's whose every wait comes to an end; raises psycopg.Error."""
    connection = _connect(*arguments, **options)
    connection.is_there = lambda: _answers(
        lambda: _connect(*arguments, **{**options, "connect_timeout": PROBE_SECONDS})
    )
    return connection


@contextmanager
def for_a_ping(connection: Any) -> Iterator[None]:
    """Within the block the server is given the time that a ping takes."""
    with _with(connection, is_ping=True):
        yield


@contextmanager
def for_as_long_as_it_takes(connection: Any) -> Iterator[None]:
    """Within the block a statement may take any time, while the server is there."""
    with _with(connection, longest_seconds=float("inf")):
        yield


@contextmanager
def _with(connection: Any, **members: object) -> Iterator[None]:
    if not hasattr(connection, "is_ping"):  # An app's own, or another driver's.
        yield
        return
    before = {name: getattr(connection, name) for name in members}
    vars(connection).update(members)
    try:
        yield
    finally:
        vars(connection).update(before)


def _connect(*arguments: Any, **options: Any) -> Any:
    try:
        return _connection_class().connect(*arguments, **options)
    except Exception as error:
        # psycopg's frame keeps the errors that it met, and they keep the frame, with the half-made connection and its
        # socket: until Python collects its garbage, and in a process that has little to do that may take hours.
        clear_frames(error.__traceback__)
        raise


@cache
def _connection_class() -> Any:
    import psycopg

    class PatientConnection(psycopg.Connection[Any]):
        """psycopg's connection, whose every wait comes to an end."""

        is_ping = False
        longest_seconds = LONGEST_SECONDS
        is_there: Callable[[], bool] = staticmethod(lambda: True)  # Until it is connected psycopg's own limit holds.

        def wait(self, gen: Any, *arguments: Any, **options: Any) -> Any:
            try:
                wanted = next(gen)
            except StopIteration as end:  # As when autocommit is set: there was nothing to wait for.
                return end.value
            return super().wait(cast("Any", self._limited(gen, wanted)), *arguments, **options)

        def _limited(self, gen: Generator[Any, Any, Any], wanted: Any) -> Generator[Any, Any, Any]:
            """The steps behind the first; while nothing arrives, psycopg comes by here every tenth of a second."""
            began = looked_at = time.monotonic()
            silence_seconds = PING_SECONDS if self.is_ping else SILENCE_SECONDS
            try:
                while True:
                    ready = yield wanted
                    if ready == _NOTHING_YET and time.monotonic() - looked_at > silence_seconds:
                        if self.is_ping or time.monotonic() - began > self.longest_seconds or not self.is_there():
                            self.pgconn.finish()  # What it was asked may still be answered, to nobody.
                            raise psycopg.OperationalError("the server does not answer")
                        looked_at, silence_seconds = time.monotonic(), 2 * silence_seconds
                    wanted = gen.send(ready)
            except StopIteration as end:
                return end.value

    return PatientConnection


def _answers(connect: Callable[[], Any]) -> bool:
    try:
        connect().close()
    except Exception as error:  # noqa: BLE001 - whatever keeps a connection from coming about
        # Its own words, such as "too many clients already".
        return "FATAL" in str(error)
    return True
