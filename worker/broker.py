"""How a worker takes messages, gets back to a broker that was away, and tells of tasks; the rest is Celery's."""

from __future__ import annotations

import time
from collections.abc import Callable, Set
from typing import Any

import structlog
from celery.worker.consumer import Consumer
from kombu.common import ignore_errors
from kombu.transport import virtual
from kombu.transport.redis import QoS
from redis.exceptions import OutOfMemoryError, ResponseError

from customer_jobs.vocabulary import Kind

#: Between two tries to reach Redis. Celery leaves kombu its own pauses, which grow to 30 s: after an outage of a few
#: minutes a worker would notice half a minute late that it is over.
RECONNECT_SECONDS = 2.0
#: Task events gather for so long: one message for each of them would be an eighth of what a busy worker does.
GATHER_EVENTS_SECONDS = 0.1

#: In one message. At Celery's own limit of 24 the thread that has a job to do would publish, well before that.
EVENTS_AT_ONCE = 1000

NO_MESSAGE = "what was taken from the queue is no message"
_NO_MESSAGE = (ValueError, TypeError)  #: What kombu raises for one.

_KINDS = tuple(Kind)  #: The names of the tasks whose messages hold a job's id.


log = structlog.get_logger(__name__)


class Unacknowledged(QoS):
    """Redis's emulation of acknowledgements, without those of job ids.

    A job whose message was lost is dispatched again when its lease has run out, so nothing is written down about the
    message: that and its acknowledgement would be two round trips, a sixth of what a busy worker does. A message of
    customer.enqueue is all there is of its job, and is treated as ever.
    """

    def append(self, message: Any, delivery_tag: str) -> None:
        if not _is_job_id(message):
            try:
                super().append(message, delivery_tag)
            except OutOfMemoryError:
                # It has been taken out of Redis already: without a net it may be lost, and otherwise it is, with the
                # worker, which this would end.
                log.warning("Redis is full: a message is not kept until it is acknowledged")
            else:
                return
        # Kept in memory: a worker takes no more messages than it has threads.
        virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        (virtual.QoS if self._holds_job_id(delivery_tag) else QoS).ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        if self._holds_job_id(delivery_tag):
            self.ack(delivery_tag)
        else:
            super().reject(delivery_tag, requeue)

    def _holds_job_id(self, delivery_tag: str) -> bool:
        return _is_job_id(self._delivered.get(delivery_tag))


def _is_job_id(message: Any) -> bool:
    headers = getattr(message, "headers", None)
    return isinstance(headers, dict) and headers.get("task") in _KINDS


class PromptConsumer(Consumer):
    """Celery's consumer, which tries to reconnect at a steady pace, and sends the events of tasks in batches."""

    _flush_is_planned = False
    _called_by_loop: Set[Callable[[], None]] = frozenset()  #: For the connection there is.

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Celery would end the worker, and each that is started instead: for a Redis that refuses, as it is full or has
        # become a replica, and for what anybody puts into the queue that is no message.
        self.connection_errors = (*self.conninfo.connection_errors, ResponseError, *_NO_MESSAGE)

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        super().on_connection_error_before_connected(exc)
        _give_time(exc)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        if isinstance(exc, _NO_MESSAGE):
            exc = ValueError(f"{NO_MESSAGE}: {type(exc).__name__}")  # Its own words may show what was to be decoded.
        super().on_connection_error_after_connected(exc)
        _give_time(exc)

    def connect(self) -> Any:
        if not self.hub:  # As on Windows.
            return super().connect()
        # Kombu never takes back what it has the loop call for a connection: it would be called for each that was lost.
        self.hub.on_tick -= self._called_by_loop
        others = set(self.hub.on_tick)
        connection = self.connection_for_read(self.amqheartbeat)
        try:
            connection.transport.register_with_event_loop(connection.connection, self.hub)
        except BaseException:
            # As when Redis is full. Celery forgets the connection, and kombu's finalizers would keep it, and its
            # sockets, until the process ends.
            ignore_errors(connection, connection.close)
            raise
        finally:
            self._called_by_loop = self.hub.on_tick - others
        return connection

    def connection_for_read(self, heartbeat: Any = None) -> Any:
        connection = super().connection_for_read(heartbeat)
        connection.default_channel.QoS = Unacknowledged
        return connection

    def ensure_connected(self, conn: Any) -> Any:
        ensure = conn.ensure_connection

        def ensure_steadily(tell: Callable[[Exception, float], None], *arguments: Any, **options: Any) -> Any:
            def after_error(error: Exception, pause_seconds: float) -> None:
                tell(error, pause_seconds)
                # No channel came about, but each try keeps one of the 65,535 numbers that a transport has for them:
                # after an outage of days none would be left.
                del conn.transport._used_channel_ids[:]  # noqa: SLF001 - kombu itself never takes back these

            pauses = {"interval_start": RECONNECT_SECONDS, "interval_step": 0, "interval_max": RECONNECT_SECONDS}
            return ensure(after_error, *arguments, **pauses, **options)

        conn.ensure_connection = ensure_steadily
        return super().ensure_connected(conn)

    def on_send_event_buffered(self) -> None:
        # Called from every thread; only the loop's own may set its timers.
        # There is no dispatcher of events for a moment while Celery reconnects.
        if self.hub and self.event_dispatcher and not self._flush_is_planned:
            self._flush_is_planned = True
            self.event_dispatcher.buffer_limit = EVENTS_AT_ONCE
            self.hub.call_soon(self.hub.call_later, GATHER_EVENTS_SECONDS, self._flush_gathered)

    def _flush_gathered(self) -> None:
        self._flush_is_planned = False
        self._flush_events()


def _give_time(error: Exception) -> None:
    """Celery tries again at once; a Redis that answers, and refuses, would be asked without a pause."""
    if isinstance(error, ResponseError):
        time.sleep(RECONNECT_SECONDS)
