"""EventConsumer: hands the completion events of the stream to an app, each at least once, or once with its database."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from customer_jobs.database import Transaction, translating_outages
from customer_jobs.errors import Unavailable
from customer_jobs.events import Event
from customer_jobs.group import Delivery
from customer_jobs.intake import Intake, Start, pause_after
from customer_jobs.schema import consumed_events
from customer_jobs.stream import connect, redis_url, stream_name

MAX_DELIVERIES = 5  #: An event that nobody could handle by then waits for a person, among the dead letters.
RETRY_SECONDS = 1.0  #: Before the second delivery; four times as long before each further one: 85 s in all.
TAKEOVER_SECONDS = 60.0  #: Longer than a handler takes, or a slow consumer's event is handled by another as well.

log = logging.getLogger(__name__)

Handler = Callable[[Event], object]
#: The app's engine, or what makes its sessions, such as a `sessionmaker`.
Once = Engine | Callable[[], Session]

_numbers = itertools.count(1)


class EventConsumer:
    """One member of a consumer group: the group's members share the events, each group gets all of them.

    As a loop: leaving the body normally, `continue` included, acknowledges the event. Leaving it by an exception,
    `break` or `return` does not: the same consumer gets the event again when it loops again, another member of the
    group after `takeover_seconds`. To stop and acknowledge, call `stop()` and let the body end. (The loop learns of it
    by being asked for the next event; one that is abandoned never asks.)

        for event in EventConsumer("billing", types=["customer.create.*"]):
            ...

    `run(handler)` also goes on after an exception: the event comes again later, others come meanwhile. Either way an
    event delivered `max_deliveries` times in vain goes to the dead letters: `customer-jobs events dead`.

    SIGTERM and Ctrl-C end a loop or `run` after the event in hand, unless the app handles these signals itself. Redis
    may be flushed, restarted or away for hours. Where it lost events, they are published again from the table, which
    `engine` leads to (left out: DATABASE_URL, if it is set); without it `customer-jobs events replay` does that.

    Args:
        group: the name that shares the work; a new group starts at the `start` of the stream.
        types: only these, such as `customer.create.succeeded`; `*` stands for anything. All, if empty.
        name: this member; host and process id, so that a process that comes back is another one.
        url: of Redis; REDIS_URL.
        stream: EVENT_STREAM.
        engine: of the database with our tables.
        start: where a new group begins.
        max_deliveries: 1 or more.
        retry_seconds: from a handler's first exception to the second delivery; each later pause is four times longer.
        takeover_seconds: after so long an event goes to whoever asks: longer than a handler ever takes.
    """

    def __init__(
        self,
        group: str,
        *,
        types: Sequence[str] = (),
        name: str | None = None,
        url: str | None = None,
        stream: str | None = None,
        engine: Engine | None = None,
        start: Start = "beginning",
        max_deliveries: int = MAX_DELIVERIES,
        retry_seconds: float = RETRY_SECONDS,
        takeover_seconds: float = TAKEOVER_SECONDS,
    ) -> None:
        if isinstance(types, str):
            raise TypeError(f"types must be a sequence of patterns, such as [{types!r}]")
        if max_deliveries < 1:
            raise ValueError(f"max_deliveries must be 1 or more, not {max_deliveries}")
        self.group = group
        self.name = name or _default_name()
        self._retry_seconds = retry_seconds
        self._max_deliveries = max_deliveries
        self._intake = Intake(
            connect(url or redis_url()),
            stream or stream_name(),
            group,
            self.name,
            types=tuple(types),
            engine=engine,
            start=start,
            max_deliveries=max_deliveries,
            takeover_seconds=takeover_seconds,
        )
        self._failures = 0  #: In a row.

    def __iter__(self) -> Iterator[Event]:
        with self._consuming():
            for delivery, event in self._intake.deliveries():
                yield event
                # Not reached when the body was left in any other way than by asking for the next event.
                self._intake.acknowledge(delivery)

    def run(self, handler: Callable[..., object], *, once_in: Once | None = None) -> None:
        """Call `handler(event)` for each event until stopped; whatever it raises leads to another delivery.

        With `once_in`, an engine or a session factory, it is `handler(event, connection)` or `handler(event, session)`
        within a transaction that also remembers source and id: what the handler writes through it happens once for the
        group, however often the event comes. The transaction ends with the handler; the database must have been
        migrated (`customer-jobs migrate`).

        A handler that raises Unavailable, as our own calls do when the database is away, is called again for ever.
        """
        work: Handler = handler if once_in is None else self._once(handler, once_in)
        with self._consuming():
            for delivery, event in self._intake.deliveries():
                self._handle(delivery, event, work)

    def stop(self) -> None:
        """End the loop or `run` after the event in hand, at once if there is none, and for good; from any thread."""
        self._intake.stopped = True

    def seen(self, event: Event, session: Session | Connection) -> bool:
        """Whether this group has handled the event before; if not, the session's transaction remembers that it has.

        Whoever asks at the same time in another transaction waits for this one to end.
        """
        transaction = Transaction(session.connection() if isinstance(session, Session) else session)
        values = {"consumer_group": self.group, "source": event.source, "id": event.id}
        statement = transaction.insert(consumed_events).values(values).on_conflict_do_nothing()
        return transaction.row(statement.returning(consumed_events.c.id)) is None

    def _once(self, handler: Callable[..., object], once_in: Once) -> Handler:
        def work(event: Event) -> None:
            with translating_outages(), _transaction(once_in) as session:
                if self.seen(event, session):
                    return
                try:
                    handler(event, session)
                except Exception as error:
                    # A database's error that is the handler's own must not count as an outage.
                    raise _HandlerFailed from error

        return work

    def _handle(self, delivery: Delivery, event: Event, work: Handler) -> None:
        try:
            work(event)
        except Exception as raised:
            # Whatever a handler raises, the event comes again.
            cause = raised.__cause__ if isinstance(raised, _HandlerFailed) else raised
            assert isinstance(cause, Exception)  # noqa: S101 - it was raised from one
            self._failures += 1
            if isinstance(cause, Unavailable):
                log.warning("event %s waits: %s", event.id, cause)
                self._intake.again_later(delivery, pause_after(self._failures), counts=False)
            elif delivery.count >= self._max_deliveries:
                log.warning("event %s goes to the dead letters", event.id, exc_info=cause)
                self._intake.give_up(delivery, _described(cause))
            else:
                log.warning("event %s failed, delivery %d", event.id, delivery.count, exc_info=cause)
                self._intake.again_later(delivery, self._retry_seconds * 4 ** (delivery.count - 1))
            if self._failures > 1:
                # It is not the event, then: what is wrong with every event must not use up all their deliveries.
                self._intake.pause(pause_after(self._failures))
        else:
            self._failures = 0
            self._intake.acknowledge(delivery)

    @contextmanager
    def _consuming(self) -> Iterator[None]:
        try:
            with _stopping_on_signals(self.stop):
                yield
        finally:
            self._intake.close()


class _HandlerFailed(Exception):
    """Carries what the handler raised, its cause, past what would take it for an outage."""


def _default_name() -> str:
    number = next(_numbers)
    return f"{socket.gethostname()}-{os.getpid()}" + (f"-{number}" if number > 1 else "")


def _described(error: BaseException) -> str:
    """What went wrong and where; not its words, which may quote the row and the person: those are in the app's log."""
    name = type(error).__qualname__
    frames = traceback.extract_tb(error.__traceback__)
    return f"{name} at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else name


def _transaction(once_in: Once) -> AbstractContextManager[Connection | Session]:
    return once_in.begin() if isinstance(once_in, Engine) else _session(once_in)


@contextmanager
def _session(factory: Callable[[], Session]) -> Iterator[Session]:
    with factory() as session, session.begin():
        yield session


@contextmanager
def _stopping_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` on the first SIGTERM or Ctrl-C; the second one does what it would have done before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[signal.Signals, Any] = {}

    def give_back() -> None:
        while before:
            signal.signal(*before.popitem())

    def hear(_: int, __: FrameType | None) -> None:
        give_back()
        stop()

    for number, default in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        # What the app has set up itself stays.
        if signal.getsignal(number) is default:
            before[number] = signal.signal(number, hear)
    try:
        yield
    finally:
        give_back()
