"""A consumer group of the stream, one entry at a time: what is new, what came back, what is given up; handles nothing.

One at a time, so that Redis's count of deliveries is true: of a batch that a crash takes along, every entry would count
as tried, and the harmless ones would follow the poisonous one into the dead letters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import redis

from customer_jobs.stream import Client, Fields, block_ms, dead_stream_name, entries_of

#: Who may see an entry that came back from the dead letters; without the field every group does.
FOR_GROUP = "for_group"


class GroupIsGone(Exception):
    """Redis knows no such group: it was flushed, restarted without its data, or the group was deleted."""


@dataclass(frozen=True)
class Delivery:
    """An entry that was handed to us and waits for its acknowledgement."""

    entry_id: str
    fields: Fields
    count: int  #: How often it has been delivered, this time included.


class Group:
    """One consumer's view of its group. Raises what redis raises, and GroupIsGone."""

    def __init__(self, client: Client, stream: str, name: str, consumer: str) -> None:
        self._client = client
        self._stream = stream
        self._name = name
        self._consumer = consumer
        self._block_ms = block_ms(client)
        self._cursor = "0-0"

    def exists(self) -> bool:
        return self._info() is not None

    def create(self, start: str) -> None:
        """Make the group, to begin after the entry `start`; nothing happens if it is there."""
        try:
            self._client.xgroup_create(self._stream, self._name, id=start, mkstream=True)
        except redis.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
        self._cursor = "0-0"

    def low_water(self) -> str | None:
        """The id up to which every entry has been acknowledged; None where there is no group."""
        info = self._info()
        if info is None:
            return None
        last = str(info["last-delivered-id"])
        try:
            oldest: Any = self._client.xpending(self._stream, self._name)
        except redis.ResponseError as error:
            raise _translated(error) from error
        return min(last, str(oldest["min"]), key=order) if oldest["pending"] else last

    def new(self, wait_seconds: float) -> Delivery | None:
        """The next entry that nobody in the group has seen; waits for it so long, half a second at most."""
        wait_ms = max(1, min(self._block_ms, int(wait_seconds * 1000)))
        try:
            answer = self._client.xreadgroup(self._name, self._consumer, {self._stream: ">"}, count=1, block=wait_ms)
        except redis.ResponseError as error:
            raise _translated(error) from error
        for entry_id, fields in entries_of(answer):
            return Delivery(entry_id, fields or {}, 1)
        return None

    def own(self) -> list[str]:
        """What was delivered to this consumer and not acknowledged."""
        try:
            pending: Any = self._client.xpending_range(
                self._stream, self._name, "-", "+", 1000, consumername=self._consumer
            )
        except redis.ResponseError as error:
            raise _translated(error) from error
        return [each["message_id"] for each in pending]

    def again(self, entry_id: str, *, idle_seconds: float = 0) -> Delivery | None:
        """An entry once more; None if somebody else has had it meanwhile, or the stream has it no longer."""
        try:
            claimed: Any = self._client.xclaim(
                self._stream, self._name, self._consumer, int(idle_seconds * 1000), [entry_id]
            )
        except redis.ResponseError as error:
            raise _translated(error) from error
        return self._delivery(claimed)

    def take_over(self, idle_seconds: float) -> Delivery | None:
        """An entry that a consumer got so long ago and did not acknowledge; None when there are no more."""
        while True:
            try:
                answer: Any = self._client.xautoclaim(
                    self._stream, self._name, self._consumer, int(idle_seconds * 1000), self._cursor, count=1
                )
            except redis.ResponseError as error:
                raise _translated(error) from error
            self._cursor, claimed = answer[0], answer[1]
            if (delivery := self._delivery(claimed)) is not None or self._cursor == "0-0":
                return delivery

    def acknowledge(self, entry_id: str) -> None:
        self._client.xack(self._stream, self._name, entry_id)

    def do_not_count(self, delivery: Delivery) -> None:
        """Let this delivery count for nothing."""
        self._client.xclaim(
            self._stream,
            self._name,
            self._consumer,
            0,
            [delivery.entry_id],
            retrycount=delivery.count - 1,
            justid=True,
        )

    def bury(self, delivery: Delivery, error: str) -> None:
        """Put an entry among the dead letters and acknowledge it: both, or neither."""
        letter = {**delivery.fields, "group": self._name, "error": error, "deliveries": str(delivery.count)}
        pipeline = self._client.pipeline(transaction=True)
        pipeline.xadd(dead_stream_name(self._stream), letter)  # type: ignore[arg-type]
        pipeline.xack(self._stream, self._name, delivery.entry_id)
        pipeline.execute()

    def leave(self) -> None:
        """Sign this consumer off, unless something waits for its acknowledgement: that would be lost with its name."""
        if self.exists() and not self.own():
            self._client.xgroup_delconsumer(self._stream, self._name, self._consumer)

    def _info(self) -> dict[str, Any] | None:
        try:
            groups: Any = self._client.xinfo_groups(self._stream)
        except redis.ResponseError as error:
            if "no such key" in str(error).lower():
                return None
            raise
        return next((each for each in groups if each["name"] == self._name), None)

    def _delivery(self, claimed: Any) -> Delivery | None:
        for entry_id, fields in claimed:
            if not fields:  # Trimmed meanwhile; Redis before 7 hands out its id all the same.
                self.acknowledge(entry_id)
                continue
            pending: Any = self._client.xpending_range(self._stream, self._name, entry_id, entry_id, 1)
            return Delivery(entry_id, fields, pending[0]["times_delivered"] if pending else 1)
        return None


def order(entry_id: str) -> tuple[int, ...]:
    """What sorts entry ids: milliseconds, then a number."""
    return tuple(int(part) for part in entry_id.split("-"))


def _translated(error: redis.ResponseError) -> Exception:
    return GroupIsGone(str(error)) if str(error).startswith("NOGROUP") else error
