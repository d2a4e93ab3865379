"""How a worker gets back to a broker that was away, and how often it tells of tasks; the rest is Celery's business."""

from __future__ import annotations

from functools import partial
from typing import Any

from celery.worker.consumer import Consumer

#: Between two tries to reach Redis. Celery leaves kombu its own pauses, which grow to 30 s: after an outage of a few
#: minutes a worker would notice half a minute late that it is over.
RECONNECT_SECONDS = 2.0
#: Task events gather for so long: one message for each of them was an eighth of what a busy worker did.
GATHER_EVENTS_SECONDS = 0.1


class PromptConsumer(Consumer):
    """Celery's consumer, which tries to reconnect at a steady pace, and sends the events of tasks in batches."""

    _flush_is_planned = False

    def ensure_connected(self, conn: Any) -> Any:
        pauses = {"interval_start": RECONNECT_SECONDS, "interval_step": 0, "interval_max": RECONNECT_SECONDS}
        conn.ensure_connection = partial(conn.ensure_connection, **pauses)
        return super().ensure_connected(conn)

    def on_send_event_buffered(self) -> None:
        # Called from every thread; only the loop's own may set its timers.
        if self.hub and not self._flush_is_planned:
            self._flush_is_planned = True
            self.hub.call_soon(self.hub.call_later, GATHER_EVENTS_SECONDS, self._flush_gathered)

    def _flush_gathered(self) -> None:
        self._flush_is_planned = False
        self._flush_events()
