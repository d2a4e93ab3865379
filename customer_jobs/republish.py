"""Publishes events of the table once more, under the same ids: what Redis lost, or what a consumer is to see again."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Engine, or_, select, update

from customer_jobs.database import reading, writing
from customer_jobs.events import is_wanted, stream_entry
from customer_jobs.schema import events
from customer_jobs.sql import now
from customer_jobs.stream import BATCH_SIZE, Client, connect, redis_url, stream_name, translating_outages

#: The clocks of the database and of Redis may differ by so much; what is looked at once too often costs little.
CLOCKS_DIFFER_SECONDS = 600
LOCK_MS = 30_000  #: Renewed with every batch; a process that died while it published holds up the next for so long.
LOCK_LOOK_SECONDS = 0.1  #: Between two tries to get the lock.


def replay(
    engine: Engine,
    *,
    since: datetime,
    types: Sequence[str] = (),
    missing_only: bool = False,
    url: str | None = None,
    stream: str | None = None,
) -> int:
    """Publish the events from `since` on again, in their order; how many.

    Each keeps its id, so consumers that remember what they have handled handle nothing twice; all others do.
    `missing_only` publishes what the stream does not have. `types` are patterns as in `EventConsumer`. Redis and stream
    come from REDIS_URL and EVENT_STREAM unless they are given.

    Raises Unavailable when the database or Redis is out of reach; what was published by then stays published.
    """
    client = connect(url or redis_url())
    wanted = [events.c.created_at >= since]
    if not missing_only:
        wanted.append(events.c.published_at.is_not(None))  # The others' turn comes anyway.
    with translating_outages():
        try:
            return _publish(engine, client, stream or stream_name(), wanted, types, since if missing_only else None)
        finally:
            client.close()


def restore(engine: Engine, client: Client, stream: str, published_since: datetime | None, *, lost: bool) -> int:
    """Publish again what was published since then, or ever, and is not in the stream; how many.

    Raises what redis raises. `lost` includes rows not marked as published: the relay may have sent one just before
    Redis lost it. It may also be sending one just now, so this can double an event: for when something was lost.
    """
    since = datetime.fromtimestamp(0, UTC)
    if published_since is not None:
        since = published_since - timedelta(seconds=CLOCKS_DIFFER_SECONDS)
    published = events.c.published_at >= since
    if lost:
        return _publish(engine, client, stream, [or_(published, events.c.published_at.is_(None))], (), since)
    with reading(engine) as transaction:
        present = transaction.value(select(now()))
    # What was published by now is in the stream by the time that is read, unless it was lost.
    return _publish(engine, client, stream, [published, events.c.published_at <= present], (), since)


def _publish(
    engine: Engine,
    client: Client,
    stream: str,
    wanted: Sequence[ColumnElement[bool]],
    types: Sequence[str],
    missing_since: datetime | None,
) -> int:
    """Publish the rows, all of them or those that the stream since then lacks; how many."""
    published = last = 0
    with _alone(client, stream) as renew:
        present = _ids(client, stream, missing_since) if missing_since is not None else set()
        with reading(engine) as transaction:
            newest = transaction.row(select(events.c.seq).order_by(events.c.seq.desc()).limit(1))
        # Rows that are inserted from now on are the relay's.
        while newest is not None:
            renew()
            query = select(*events.c).where(events.c.seq > last, events.c.seq <= newest["seq"], *wanted)
            with reading(engine) as transaction:
                rows = transaction.rows(query.order_by(events.c.seq).limit(BATCH_SIZE))
            if not rows:
                break
            last = rows[-1]["seq"]
            chosen = [row for row in rows if row["id"] not in present and (not types or is_wanted(row["type"], types))]
            _publish_batch(engine, client, stream, chosen)
            published += len(chosen)
    return published


def _publish_batch(engine: Engine, client: Client, stream: str, rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        return
    pipeline = client.pipeline(transaction=False)
    for row in rows:
        pipeline.xadd(stream, stream_entry(row))  # type: ignore[arg-type]
    pipeline.execute()
    # The next loss is looked for by when they were published last.
    with writing(engine) as transaction:
        transaction.change(
            update(events).where(events.c.seq.in_([row["seq"] for row in rows])).values(published_at=now())
        )


def _ids(client: Client, stream: str, since: datetime) -> set[str]:
    """The ids of the events in the stream."""
    after = str(max(0, int((since.timestamp() - CLOCKS_DIFFER_SECONDS) * 1000)))
    found: set[str] = set()
    while True:
        batch: Any = client.xrange(stream, min=after, count=BATCH_SIZE)
        for _, fields in batch:
            with suppress(ValueError, KeyError, TypeError, RecursionError):  # Somebody else's entry.
                found.add(str(json.loads((fields or {})["event"])["id"]))
        if len(batch) < BATCH_SIZE:
            return found
        after = f"({batch[-1][0]}"


@contextmanager
def _alone(client: Client, stream: str) -> Iterator[Callable[[], object]]:
    """Let nobody else publish again meanwhile: each would miss what the other is about to publish."""
    key, token = f"{stream}:replay", uuid.uuid4().hex
    while not client.set(key, token, nx=True, px=LOCK_MS):
        time.sleep(LOCK_LOOK_SECONDS)
    try:
        yield lambda: client.set(key, token, px=LOCK_MS)
    finally:
        if client.get(key) == token:
            client.delete(key)
