"""What wakes the dispatcher before its clock does: NOTIFY, a change of SQLite's file, this process itself."""

from __future__ import annotations

import select
import threading

import psycopg
import structlog
from sqlalchemy import Engine

from customer_jobs.database import CONNECT_OPTIONS
from customer_jobs.patience import connect

SQLITE_LOOK_SECONDS = 0.05  #: One PRAGMA; a twentieth of a second is not noticed by a person.
LISTEN_SECONDS = 0.5  #: Between two looks at whether this is to end.
RECONNECT_SECONDS = 1.0  #: Pause before listening anew; the dispatchers' clocks go on meanwhile.

log = structlog.get_logger(__name__)


class Wakeup:
    """Two bells; rings while the listener is busy count once."""

    def __init__(self) -> None:
        self.jobs = threading.Event()  #: There may be a job to dispatch.
        self.events = threading.Event()  #: There may be an event to publish.
        self.awaiting_room = True  #: Whether a job that ends lets the next one leave.

    def ring(self) -> None:
        """Wake everybody."""
        self.jobs.set()
        self.events.set()

    def job_ended(self) -> None:
        """Wake who publishes its event and, if that was awaited, who gives its thread the next job."""
        self.events.set()
        if self.awaiting_room:
            self.jobs.set()


def listen(engine: Engine, channel: str, wakeup: Wakeup, stopped: threading.Event) -> None:
    """Ring whenever somebody commits new jobs or events, until stopped."""
    watch = _watch_sqlite if engine.dialect.name == "sqlite" else _watch_postgresql
    while not stopped.is_set():
        try:
            watch(engine, channel, wakeup, stopped)
        except Exception as error:  # noqa: BLE001 - whatever breaks the connection, the clock stands in for it
            log.warning("not listening", error=type(error).__name__)
            stopped.wait(RECONNECT_SECONDS)


def _watch_postgresql(engine: Engine, channel: str, wakeup: Wakeup, stopped: threading.Event) -> None:
    arguments, options = engine.dialect.create_connect_args(engine.url)
    with connect(*arguments, **{**options, **CONNECT_OPTIONS, "autocommit": True}) as connection:
        connection.execute(psycopg.sql.SQL("LISTEN {}").format(psycopg.sql.Identifier(channel)))
        wakeup.ring()  # What was committed while nobody listened.
        arriving = select.poll()  # psycopg, left to wait by itself, wakes ten times a second.
        arriving.register(connection, select.POLLIN)
        while not stopped.is_set():
            for notification in connection.notifies(timeout=0) if arriving.poll(LISTEN_SECONDS * 1000) else ():
                (wakeup.jobs.set if notification.payload == "jobs" else wakeup.job_ended)()


def _watch_sqlite(engine: Engine, channel: str, wakeup: Wakeup, stopped: threading.Event) -> None:  # noqa: ARG001 - one signature for both
    seen = None
    with engine.connect() as connection:
        raw = connection.connection.driver_connection
        assert raw is not None  # noqa: S101 - a connection that is checked out
        while not stopped.wait(SQLITE_LOOK_SECONDS):
            # Changes when another connection has committed; reading it opens no transaction.
            version = raw.execute("PRAGMA data_version").fetchone()
            if version != seen:
                seen = version
                wakeup.ring()
