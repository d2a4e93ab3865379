"""Publishes the outbox: unpublished events, in order, into the Redis Stream; at least once, each under its own id."""

from __future__ import annotations

from functools import cache
from typing import Any

import redis
import structlog
from redis.backoff import NoBackoff
from redis.exceptions import ReadOnlyError
from redis.retry import Retry
from sqlalchemy import ColumnElement, Engine, Select, Update, bindparam, select, update

from customer_jobs.database import alone, reading
from customer_jobs.events import stream_entry
from customer_jobs.schema import events
from customer_jobs.sql import now
from worker.dispatcher.leader import leads

BATCH_SIZE = 200  #: Events in one statement and one round trip to Redis.
#: Events that are committed so many numbers late are found at once all the same; how many still wait for their
#: transaction to end is not known.
LATE_EVENTS = 1000
REDIS_TIMEOUT_SECONDS = 2  #: A Redis that hangs costs the relay this long, and nobody else anything.

log = structlog.get_logger(__name__)


def connect(url: str) -> redis.Redis:
    """A client that gives up quickly and repeats nothing by itself: what was not sent is still in the table."""
    return redis.Redis.from_url(
        url,
        socket_timeout=REDIS_TIMEOUT_SECONDS,
        socket_connect_timeout=REDIS_TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 0),
        retry_on_error=[ReadOnlyError],  # Not tried again, but left: its name may lead to the new primary by now.
    )


class Relay:
    """Moves events from the table to the stream."""

    def __init__(self, engine: Engine, client: redis.Redis, stream: str, *, holder: str) -> None:
        self._engine = engine
        self._client = client
        self._stream = stream
        self._holder = holder
        #: Where to begin: an open transaction keeps the entries of what was published in the index, and from the first
        #: entry every batch would walk over all of them.
        self._since = 0

    def start_over(self) -> None:
        """Begin the next batch at the first entry: something may have been passed by that was committed late."""
        self._since = 0

    def run_once(self) -> int:
        """Publish the oldest unpublished events; how many. Raises RedisError when they could not be."""
        since = self._since
        with reading(self._engine) as transaction:
            rows = transaction.rows(_oldest(), {"of_holder": self._holder, "since": since})
        if not rows:
            return 0
        if self._since == since:  # Otherwise it has been told to start over meanwhile.
            self._since = rows[0]["seq"] - LATE_EVENTS
        pipeline = self._client.pipeline(transaction=False)
        for row in rows:
            pipeline.xadd(self._stream, stream_entry(row))  # type: ignore[arg-type]
        answers = pipeline.execute(raise_on_error=False)
        refusals = [answer for answer in answers if isinstance(answer, redis.RedisError)]
        # What was taken by a Redis that became full meanwhile would fill it once more.
        taken = [row["seq"] for row, answer in zip(rows, answers, strict=True) if isinstance(answer, bytes | str)]
        count = self._mark(taken) if taken else 0
        if refusals:
            if isinstance(refusals[0], ReadOnlyError):
                self._client.connection_pool.disconnect()  # As above, which is not for pipelines.
            raise refusals[0]
        return count

    def _mark(self, published: list[int]) -> int:
        with alone(self._engine) as transaction:
            # One that was stopped since leaves them to whoever leads now: twice on the stream is better than never.
            return transaction.change(_publishing(), {"of_holder": self._holder, "published": published})


# Built once: every job passes here.
@cache
def _oldest() -> Select[Any]:
    of_leader = leads(bindparam("of_holder"))
    these = (_unpublished(), events.c.seq >= bindparam("since"), of_leader)
    return select(*events.c).where(*these).order_by(events.c.seq).limit(BATCH_SIZE)


@cache
def _publishing() -> Update:
    these = events.c.seq.in_(bindparam("published", expanding=True))
    return update(events).where(these, _unpublished(), leads(bindparam("of_holder"))).values(published_at=now())


def _unpublished() -> ColumnElement[bool]:
    return events.c.published_at.is_(None)
