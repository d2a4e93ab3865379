"""How a worker gets back to a broker that was away; what it does there is Celery's business."""

from __future__ import annotations

from functools import partial
from typing import Any

from celery.worker.consumer import Consumer

#: Between two tries to reach Redis. Celery leaves kombu its own pauses, which grow to 30 s: after an outage of a few
#: minutes a worker would notice half a minute late that it is over.
RECONNECT_SECONDS = 2.0


class PromptConsumer(Consumer):
    """Celery's consumer, which tries to reconnect at a steady pace."""

    def ensure_connected(self, conn: Any) -> Any:
        pauses = {"interval_start": RECONNECT_SECONDS, "interval_step": 0, "interval_max": RECONNECT_SECONDS}
        conn.ensure_connection = partial(conn.ensure_connection, **pauses)
        return super().ensure_connected(conn)
