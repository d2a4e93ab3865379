"""The event stream as people read it: the latest entries, and those that arrive; nothing is acknowledged or changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from customer_jobs.environment import setting
from customer_jobs.errors import InvalidSetting, Unavailable
from customer_jobs.events import DEFAULT_STREAM

CONNECT_TIMEOUT_SECONDS = 2.0  #: Together with the next: an unreachable Redis is reported within five seconds.
SOCKET_TIMEOUT_SECONDS = 2.5  #: Longer than the longest BLOCK, or waiting for news would look like an outage.
BLOCK_MS = 1000  #: One look at the stream waits so long for news.
BATCH_SIZE = 500  #: Entries of at most 64 KiB each in one answer.


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
        try:
            self._redis = redis.Redis.from_url(
                url,
                decode_responses=True,
                encoding_errors="replace",
                protocol=2,
                socket_timeout=SOCKET_TIMEOUT_SECONDS,
                socket_connect_timeout=CONNECT_TIMEOUT_SECONDS,
                retry=Retry(NoBackoff(), 0),  # The default of ten retries would hide an outage for a minute.
            )
        except (ValueError, TypeError) as error:
            raise InvalidSetting("REDIS_URL is not a Redis URL; it looks like redis://localhost:6379/0") from error

    def close(self) -> None:
        self._redis.close()

    def ping(self) -> None:
        """Return if Redis answers. Raises Unavailable."""
        with _translating_outages():
            self._redis.ping()

    def last_id(self) -> str:
        """The id after which the next entry will come."""
        with _translating_outages():
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
            with _translating_outages():
                batch: Any = self._redis.xrevrange(self.name, max=before, min=oldest, count=BATCH_SIZE)
            found += [entry for entry in map(_entry, batch) if wanted(entry)]
            if len(batch) < BATCH_SIZE:
                break
            before = f"({batch[-1][0]}"
        return found[:count][::-1]

    def after(self, last_id: str, *, block_ms: int = BLOCK_MS) -> list[Entry]:
        """The entries after that one; waits for news at most `block_ms`."""
        with _translating_outages():
            answer: Any = self._redis.xread({self.name: last_id}, count=BATCH_SIZE, block=block_ms)
        return [_entry(each) for _, entries in answer or () for each in entries]


def open_stream() -> Stream:
    """The stream named by REDIS_URL and EVENT_STREAM."""
    url = setting("REDIS_URL")
    if url is None:
        raise InvalidSetting("REDIS_URL is not set; for example: export REDIS_URL=redis://localhost:6379/0")
    return Stream(url, setting("EVENT_STREAM") or DEFAULT_STREAM)


def _entry(answer: tuple[str, dict[str, str]]) -> Entry:
    entry_id, fields = answer
    try:
        event = json.loads((fields or {}).get("event", ""))
    except (ValueError, RecursionError):
        event = None
    return Entry(entry_id, event if isinstance(event, dict) else None)


@contextmanager
def _translating_outages() -> Iterator[None]:
    try:
        yield
    except redis.ResponseError as error:
        raise Unavailable(f"the Redis of REDIS_URL refused: {error}") from error
    except (redis.RedisError, OSError) as error:
        raise Unavailable(f"the Redis of REDIS_URL cannot be reached: {error}") from error
