"""Where the event stream is and how to speak to its Redis; what is read or written there is decided elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import ReadOnlyError
from redis.retry import Retry

from customer_jobs.environment import setting
from customer_jobs.errors import InvalidSetting, Unavailable
from customer_jobs.events import DEFAULT_STREAM

CONNECT_TIMEOUT_SECONDS = 2.0  #: Together with the next: an unreachable Redis is reported within five seconds.
SOCKET_TIMEOUT_SECONDS = 2.5  #: Longer than the longest BLOCK, or waiting for news would look like an outage.
BLOCK_MS = 500  #: One look at the stream waits so long for news, unless REDIS_URL sets a shorter socket timeout.
BATCH_SIZE = 500  #: Entries of at most 64 KiB each in one answer.

Client = redis.Redis
Fields = dict[str, str]


def redis_url() -> str:
    """REDIS_URL, or an InvalidSetting that says how to set it."""
    url = setting("REDIS_URL")
    if url is None:
        raise InvalidSetting("REDIS_URL is not set; for example: export REDIS_URL=redis://localhost:6379/0")
    return url


def stream_name() -> str:
    """The stream of completion events."""
    return setting("EVENT_STREAM") or DEFAULT_STREAM


def dead_stream_name(stream: str) -> str:
    """Where the events lie that a consumer could not handle."""
    return f"{stream}:dead"


def connect(url: str) -> Client:
    """A client that speaks text, reports an outage soon and repeats nothing by itself; it connects when first used.

    Raises InvalidSetting for a URL that no Redis can be reached by.
    """
    try:
        client = redis.Redis.from_url(
            url,
            decode_responses=True,
            encoding_errors="replace",
            protocol=2,
            socket_timeout=SOCKET_TIMEOUT_SECONDS,
            socket_connect_timeout=CONNECT_TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),  # The default of ten retries would hide an outage for a minute.
            retry_on_error=[ReadOnlyError],  # Not tried again, but left: its name may lead to the new primary by now.
        )
        # What the URL's query says is understood only here.
        client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
    except (ValueError, TypeError, redis.RedisError) as error:
        raise InvalidSetting("REDIS_URL is not a Redis URL; it looks like redis://localhost:6379/0") from error
    return client


def block_ms(client: Client) -> int:
    """How long this client may wait for news: whatever REDIS_URL says of timeouts, the answer must come before."""
    timeout = client.connection_pool.connection_kwargs.get("socket_timeout")
    return BLOCK_MS if timeout is None else max(1, min(BLOCK_MS, int(timeout * 500)))


def entries_of(answer: Any) -> list[tuple[str, Fields | None]]:
    """The entries in what XREAD or XREADGROUP answered for one stream, in either version of Redis's protocol."""
    found: list[Any] = []
    for held in answer.values() if isinstance(answer, dict) else (entries for _, entries in answer or ()):
        for each in held:
            # In RESP3 redis-py packs the entries into one more list, unless REDIS_URL says legacy_responses=False.
            found += each if isinstance(each, list) and not isinstance(each[0], str) else [each]
    return [(entry_id, fields) for entry_id, fields in found]


@contextmanager
def translating_outages() -> Iterator[None]:
    """Turn whatever Redis or the network says into Unavailable."""
    try:
        yield
    except redis.ResponseError as error:
        raise Unavailable(f"the Redis of REDIS_URL refused: {error}") from error
    except (redis.RedisError, OSError) as error:
        raise Unavailable(f"the Redis of REDIS_URL cannot be reached: {error}") from error
