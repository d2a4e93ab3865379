"""The event stream as people read it: the latest entries, and those that arrive; nothing is acknowledged or changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from customer_jobs.stream import BATCH_SIZE, BLOCK_MS, connect, entries_of, redis_url, stream_name, translating_outages


@dataclass(frozen=True)
class Entry:
    """One entry of the stream; `event` is None where somebody else wrote what is no event."""

    id: str
    event: dict[str, Any] | None

    @property
    def type(self) -> str:
        return str((self.event or {}).get("type", ""))


class Stream:
    """A Redis Stream of events, by the URL of its Redis and its name."""

    def __init__(self, url: str, name: str) -> None:
        self.name = name
        self._redis = connect(url)

    def close(self) -> None:
        self._redis.close()

    def ping(self) -> None:
        """Return if Redis answers. Raises Unavailable."""
        with translating_outages():
            self._redis.ping()

    def last_id(self) -> str:
        """The id after which the next entry will come."""
        with translating_outages():
            newest: Any = self._redis.xrevrange(self.name, count=1)
        return str(newest[0][0]) if newest else "0-0"

    def latest(
        self, count: int | None, *, since: datetime | None = None, wanted: Callable[[Entry], bool] = lambda _: True
    ) -> list[Entry]:
        """The newest entries that are wanted, oldest first; all of them where no count is given."""
        oldest = "-" if since is None else str(max(0, int(since.timestamp() * 1000)))
        found: list[Entry] = []
        before = "+"
        while count is None or len(found) < count:
            with translating_outages():
                batch: Any = self._redis.xrevrange(self.name, max=before, min=oldest, count=BATCH_SIZE)
            found += [entry for entry in map(_entry, batch) if wanted(entry)]
            if len(batch) < BATCH_SIZE:
                break
            before = f"({batch[-1][0]}"
        return found[:count][::-1]

    def after(self, last_id: str, *, block_ms: int = BLOCK_MS) -> list[Entry]:
        """The entries after that one; waits for news at most `block_ms`."""
        with translating_outages():
            answer: Any = self._redis.xread({self.name: last_id}, count=BATCH_SIZE, block=block_ms)
        return [_entry(each) for each in entries_of(answer)]


def open_stream() -> Stream:
    """The stream named by REDIS_URL and EVENT_STREAM."""
    return Stream(redis_url(), stream_name())


def _entry(answer: tuple[str, dict[str, str] | None]) -> Entry:
    entry_id, fields = answer
    try:
        event = json.loads((fields or {}).get("event", ""))
    except (ValueError, RecursionError):
        event = None
    return Entry(entry_id, event if isinstance(event, dict) else None)
