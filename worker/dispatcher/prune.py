"""Removes what is older than RETENTION_DAYS, a little at a time; a create that holds an external_id is only emptied."""

from __future__ import annotations

from typing import Any

import redis
import structlog
from sqlalchemy import Engine, Tuple, and_, delete, literal_column, select, tuple_, update

from customer_jobs.database import Transaction, writing
from customer_jobs.forget import emptied
from customer_jobs.payload import payload_digest
from customer_jobs.schema import HOLDS_EXTERNAL_ID, attempts, consumed_events, events, jobs, webhook_events
from customer_jobs.sql import now
from customer_jobs.stream import dead_stream_name
from customer_jobs.vocabulary import FINAL_STATES
from worker.dispatcher.leader import still_leads

BATCH_SIZE = 200  #: Rows in one transaction: short enough that nobody waits for it.
SECONDS_PER_DAY = 86_400.0

log = structlog.get_logger(__name__)


class Prune:
    """Forgets what nobody needs any more."""

    def __init__(self, engine: Engine, client: redis.Redis, stream: str, retention_days: float, *, holder: str) -> None:
        self._engine = engine
        self._client = client
        self._stream = stream
        self._seconds = retention_days * SECONDS_PER_DAY
        self._holder = holder

    def run_once(self) -> int:
        """Remove one batch of each kind; how many rows were removed or emptied."""
        with writing(self._engine) as transaction:
            if not still_leads(transaction, self._holder):
                return 0
            old = and_(jobs.c.finished_at < now(-self._seconds), jobs.c.body_digest.is_(None))
            removed = _delete_jobs(transaction, old) + _empty_jobs(transaction, old)
            removed += _delete_oldest(
                transaction, events, events.c.seq, events.c.created_at < now(-self._seconds), events.c.published_at
            )
            received = webhook_events.c.received_at
            removed += _delete_oldest(transaction, webhook_events, webhook_events.c.id, received < now(-self._seconds))
            # An event published again on its last day in the table then stays in the stream for as long once more.
            consumed = tuple_(consumed_events.c.consumer_group, consumed_events.c.source, consumed_events.c.id)
            long_ago = consumed_events.c.consumed_at < now(-2 * self._seconds - SECONDS_PER_DAY)
            removed += _delete_oldest(transaction, consumed_events, consumed, long_ago)
        if removed:
            log.info("pruned", rows=removed)
        return removed

    def trim_stream(self) -> None:
        """Drop entries of the same age, dead letters too; the table outlives them. Raises RedisError."""
        with writing(self._engine) as transaction:
            if not still_leads(transaction, self._holder):
                return
            oldest = transaction.value(select(now(-self._seconds)))
        oldest_ms = max(0, int(oldest.timestamp() * 1000))  # RETENTION_DAYS may reach back before 1970.
        for stream in (self._stream, dead_stream_name(self._stream)):
            self._client.xtrim(stream, minid=f"{oldest_ms}-0", approximate=True)


def _holds_external_id() -> Any:
    return literal_column(f"({HOLDS_EXTERNAL_ID})")


def _delete_jobs(transaction: Transaction, old: Any) -> int:
    """Delete final jobs with their attempts, but for those that keep an external_id from being used twice."""
    oldest = select(jobs.c.id).where(jobs.c.state.in_(FINAL_STATES), old, ~_holds_external_id())
    chosen = oldest.order_by(jobs.c.finished_at).limit(BATCH_SIZE).with_for_update(skip_locked=True)
    # Chosen first: as part of the DELETE, PostgreSQL may choose more than once, and so more than a batch.
    ids = [row["id"] for row in transaction.rows(chosen)]
    return transaction.change(delete(jobs).where(jobs.c.id.in_(ids))) if ids else 0


def _empty_jobs(transaction: Transaction, old: Any) -> int:
    """Take everything personal out of a job that holds an external_id; a digest tells the same body from another."""
    oldest = (
        select(jobs.c.id, jobs.c.kind, jobs.c.payload, jobs.c.error)
        .where(jobs.c.state.in_(FINAL_STATES), old, _holds_external_id())
        .order_by(jobs.c.finished_at)
        .limit(BATCH_SIZE)
        .with_for_update(skip_locked=True)
    )
    rows = transaction.rows(oldest)
    for row in rows:
        values = {**emptied(row), "payload": {}, "body_digest": payload_digest(row["payload"])}
        transaction.change(update(jobs).where(jobs.c.id == row["id"]).values(**values))
        transaction.change(delete(attempts).where(attempts.c.job_id == row["id"]))
    return len(rows)


def _delete_oldest(transaction: Transaction, table: Any, key: Any, old: Any, published: Any = None) -> int:
    condition = old if published is None else old & published.is_not(None)
    columns = key.clauses if isinstance(key, Tuple) else [key]
    return transaction.change(delete(table).where(key.in_(select(*columns).where(condition).limit(BATCH_SIZE))))
