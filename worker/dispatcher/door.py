"""Takes in the messages of apps that know our queue and not our key prefix: moved whole, each by one atomic command."""

from __future__ import annotations

import redis

from customer_jobs.broker import PREFIX, QUEUE

BLOCK_SECONDS = 1  #: Shorter than the client's patience, so that an empty queue is no error.


class Door:
    """The queue `customer-jobs` without the prefix, as `send_task(..., queue="customer-jobs")` fills it."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def run_once(self) -> bool:
        """Wait a moment for a message and let it in; whether there was one. Raises RedisError."""
        moved = self._client.blmove(QUEUE, PREFIX + QUEUE, BLOCK_SECONDS, src="RIGHT", dest="LEFT")
        return moved is not None
