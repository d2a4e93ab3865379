"""The events that a consumer could not handle: what lies beside the stream, and how it gets back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from customer_jobs.events import Event
from customer_jobs.group import FOR_GROUP
from customer_jobs.stream import BATCH_SIZE, Client, Fields, dead_stream_name

_OF_THE_EVENT = ("event", "type", "subject")


@dataclass(frozen=True)
class DeadLetter:
    """An event that one group has given up."""

    id: str  #: Of the entry among the dead letters.
    group: str
    error: str  #: Class and place of the exception; its words are in the consumer's log.
    deliveries: int
    died_at: datetime
    event: Event | None  #: None for an entry that is none.
    fields: Fields = field(repr=False, hash=False)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "id": self.id,
            "group": self.group,
            "error": self.error,
            "deliveries": self.deliveries,
            "died_at": self.died_at.isoformat().replace("+00:00", "Z"),
            "event": self.event.to_dict() if self.event else None,
        }


def dead_letters(client: Client, stream: str) -> Iterator[DeadLetter]:
    """All of them, the oldest first. Raises what redis raises."""
    after = "-"
    while True:
        batch: Any = client.xrange(dead_stream_name(stream), min=after, count=BATCH_SIZE)
        yield from (_letter(entry_id, fields) for entry_id, fields in batch)
        if len(batch) < BATCH_SIZE:
            return
        after = f"({batch[-1][0]}"


def give_back(client: Client, stream: str, letter: DeadLetter) -> None:
    """Put the event on the stream again, for the group that gave it up; both, or neither."""
    entry = {name: letter.fields[name] for name in _OF_THE_EVENT if name in letter.fields}
    pipeline = client.pipeline(transaction=True)
    pipeline.xadd(stream, {**entry, FOR_GROUP: letter.group})  # type: ignore[dict-item]
    pipeline.xdel(dead_stream_name(stream), letter.id)
    pipeline.execute()


def _letter(entry_id: str, fields: Fields) -> DeadLetter:
    event = None
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        event = Event.from_dict(json.loads(fields["event"]))
    return DeadLetter(
        id=entry_id,
        group=fields.get("group", ""),
        error=fields.get("error", ""),
        deliveries=int(fields["deliveries"]) if fields.get("deliveries", "").isdigit() else 0,
        died_at=datetime.fromtimestamp(int(entry_id.partition("-")[0]) / 1000, UTC),
        event=event,
        fields=fields,
    )
