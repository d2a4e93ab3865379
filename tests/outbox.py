"""Events for tests: rows of the outbox, entries of a stream, and programs that consume them."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from typing import Any

import redis
from sqlalchemy import Engine, insert

from customer_jobs.database import writing
from customer_jobs.events import completion_event, stream_entry
from customer_jobs.schema import events
from customer_jobs.vocabulary import State

Row = dict[str, Any]


def new_event(kind: str = "customer.create", state: State = State.SUCCEEDED, **columns: Any) -> Row:
    """The `events` row that a job leaves when it becomes final."""
    names = ("outcome", "stripe_account", "livemode", "customer_id", "external_id", "context", "error")
    job: Row = dict.fromkeys(names) | {"id": str(uuid.uuid4()), "kind": kind, "credential": "default", "attempt": 1}
    row = completion_event(job | columns, state)
    return row | {"id": str(uuid.uuid4()), "created_at": datetime.now(UTC)}


def add_events(engine: Engine, count: int, **columns: Any) -> list[str]:
    """The ids of new rows of the outbox, not published yet."""
    rows = [new_event(**columns) for _ in range(count)]
    with writing(engine) as transaction:
        transaction.change(insert(events), rows)
    return [row["id"] for row in rows]


def publish(client: redis.Redis, stream: str, count: int = 1, **columns: Any) -> list[str]:
    """The ids of new events on the stream, which no table knows of."""
    rows = [new_event(**columns) for _ in range(count)]
    for row in rows:
        client.xadd(stream, stream_entry(row))  # type: ignore[arg-type]
    return [row["id"] for row in rows]


def ids_on(client: redis.Redis, stream: str) -> list[str]:
    """The ids of the events on the stream, oldest first."""
    entries: Any = client.xrange(stream)
    return [json.loads(fields["event"])["id"] for _, fields in entries]
