"""What stands in for Redis and for the thread that extends leases, where one operation runs at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis

from customer_jobs.lifecycle import Claim
from tests.chaos.operation import seam


class Stream:
    """As much of Redis as the relay and prune use; may be away, before or after it did what it was asked."""

    def __init__(self) -> None:
        self.entries: list[dict[str, str]] = []
        self.away: str | None = None  #: "before" or "after", for the next request.

    def pipeline(self, **_: Any) -> Pipeline:
        return Pipeline(self)


class Pipeline:
    """What is asked of the stream in one request."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._asked: list[dict[str, str]] = []

    def xadd(self, _: str, fields: dict[str, str]) -> None:
        self._asked.append(fields)

    def execute(self, **_: Any) -> list[str]:
        seam("before XADD")
        away, self._stream.away = self._stream.away, None
        if away != "before":
            self._stream.entries += self._asked
        if away is not None:
            raise redis.ConnectionError("away")
        seam("after XADD")
        return [f"{number}-0" for number, _ in enumerate(self._asked)]


class Leases:
    """Who holds what, by its token; nobody extends it unasked."""

    def __init__(self) -> None:
        self.held: dict[str, Claim] = {}

    @contextmanager
    def holding(self, claim: Claim) -> Iterator[None]:
        self.held[claim.lease_token] = claim
        try:
            yield
        finally:
            del self.held[claim.lease_token]
