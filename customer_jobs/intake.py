"""What a consumer is to handle next, through every trouble with Redis; the handling itself is the consumer's."""

from __future__ import annotations

import heapq
import json
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Literal

import redis
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from customer_jobs.database import database_url, open_engine
from customer_jobs.errors import InvalidSetting, Unavailable
from customer_jobs.events import Event, is_wanted
from customer_jobs.group import FOR_GROUP, Delivery, Group, GroupIsGone, order
from customer_jobs.republish import CLOCKS_DIFFER_SECONDS, restore
from customer_jobs.stream import Client

SWEEP_SECONDS = 5.0  #: How often the group is looked at for what others left, at the latest.
FIRST_PAUSE_SECONDS = 0.05  #: After an outage, or a second failure in a row; doubled each time, up to …
LAST_PAUSE_SECONDS = 10.0
SLICE_SECONDS = 0.1  #: How soon a pause notices that it shall end.
#: Source: https://www.postgresql.org/docs/current/errcodes-appendix.html
NO_SUCH_TABLE = {"42P01", "3F000"}

log = logging.getLogger("customer_jobs.consumer")

Start = Literal["beginning", "now"]


class Intake:
    """The events of one member of a group; knows what was handed to it and is not settled yet."""

    def __init__(
        self,
        client: Client,
        stream: str,
        group: str,
        name: str,
        *,
        types: Sequence[str],
        engine: Engine | None,
        start: Start,
        max_deliveries: int,
        takeover_seconds: float,
    ) -> None:
        self.stopped = False
        self._client = client
        self._stream = stream
        self._name = group
        self._group = Group(client, stream, group, name)
        self._types = types
        self._engine = engine
        self._opened: Engine | None = None  #: The one of DATABASE_URL, once it was needed.
        self._start = start
        self._max_deliveries = max_deliveries
        self._takeover_seconds = takeover_seconds
        self._unsure = True  #: Whether the group and the stream must be looked at before anything is read.
        self._lost = False  #: Whether that is because something happened to Redis.
        self._unchecked = False  #: Whether the database was away when the stream was to be compared with it.
        self._mark: str | None = None  #: Every entry up to this one has been acknowledged by the group.
        self._left_over: list[str] = []  #: Delivered to this name before, and to be handled first.
        self._retries: list[tuple[float, str, float]] = []  #: When, which entry, how long that is after its delivery.
        self._handled: set[str] = set()  #: Entries whose acknowledgement Redis may not have got.
        self._sweep_at = 0.0

    def deliveries(self) -> Iterator[tuple[Delivery, Event]]:
        """What is to be handled, one after the other, until stopped."""
        outages = 0
        while not self.stopped:
            try:
                if self._unsure:
                    self._make_sure()
                delivery = self._next()
                found = None if delivery is None else self._event(delivery)
            except GroupIsGone:
                self._unsure = self._lost = True
            except (redis.RedisError, OSError, Unavailable, SQLAlchemyError) as error:
                self._unsure = self._lost = True
                outages += 1
                log.warning("waiting, trying again soon: %s", error)
                self.pause(pause_after(outages))
            else:
                outages = 0
                if delivery is not None and found is not None:
                    yield delivery, found

    def acknowledge(self, delivery: Delivery) -> None:
        """The event has been handled; if Redis cannot be told now, it is told later."""
        self._handled.add(delivery.entry_id)
        if self._ask_redis(lambda: self._group.acknowledge(delivery.entry_id)):
            self._handled.discard(delivery.entry_id)

    def again_later(self, delivery: Delivery, seconds: float, *, counts: bool = True) -> None:
        """Hand the event out once more, after a while."""
        if not counts:
            self._ask_redis(lambda: self._group.do_not_count(delivery))
        heapq.heappush(self._retries, (time.monotonic() + seconds, delivery.entry_id, seconds))

    def give_up(self, delivery: Delivery, error: str) -> None:
        """Put the event among the dead letters."""
        self._ask_redis(lambda: self._group.bury(delivery, error))

    def pause(self, seconds: float) -> None:
        """Wait, unless stopped."""
        until = time.monotonic() + seconds
        # No threading.Event: a signal handler that sets one can wait for ever for the thread that it interrupted.
        while not self.stopped and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, SLICE_SECONDS))

    def close(self) -> None:
        """Sign off if nothing is left to settle, and close the connections."""
        if self.stopped:
            with suppress(redis.RedisError, OSError, GroupIsGone):
                self._group.leave()
        self._client.close()
        if self._opened is not None:
            self._opened.dispose()
            self._opened = None
        self._unsure = True

    def _next(self) -> Delivery | None:
        """What comes next: what this name had before, what is due again, what others left, what is new."""
        if self._left_over:
            return self._group.again(self._left_over.pop(0))
        present = time.monotonic()
        if self._retries and self._retries[0][0] <= present:
            _, entry_id, seconds = heapq.heappop(self._retries)
            # Less than that since its delivery: another member has taken it over.
            return self._group.again(entry_id, idle_seconds=seconds * 0.9)
        if present >= self._sweep_at:
            if (taken := self._group.take_over(self._takeover_seconds)) is not None:
                return taken
            self._sweep_at = present + min(SWEEP_SECONDS, self._takeover_seconds / 2)
            if self._unchecked:
                self._compare(lost=False)
            else:
                self._mark = self._group.low_water() or self._mark
        soon = min([self._sweep_at, *(due for due, *_ in self._retries[:1])])
        return self._group.new(max(0.0, soon - present))

    def _event(self, delivery: Delivery) -> Event | None:
        """The event of an entry that is to be handled; anything else is settled here."""
        if delivery.fields.get(FOR_GROUP, self._name) != self._name:
            self.acknowledge(delivery)
            return None
        try:
            event = Event.from_dict(json.loads(delivery.fields["event"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            log.warning("entry %s of the stream is no event; it goes to the dead letters", delivery.entry_id)
            self._group.bury(delivery, "not an event")
            return None
        if self._types and not is_wanted(event.type, self._types):
            self.acknowledge(delivery)
            return None
        if delivery.count > self._max_deliveries:
            log.error("event %s goes to the dead letters: delivered %d times", event.id, delivery.count - 1)
            self._group.bury(delivery, "never acknowledged: whoever had it raised, stopped or was killed")
            return None
        return event

    def _ask_redis(self, call: Callable[[], object]) -> bool:
        """Whether Redis did it; if not, the next look begins by finding out how things stand."""
        try:
            call()
        except (redis.RedisError, OSError, GroupIsGone) as error:
            log.warning("Redis cannot be told: %s", error)
            self._unsure = self._lost = True
            return False
        return True

    def _make_sure(self) -> None:
        """See that the group is there, and that the stream has whatever the group may still have to get."""
        low = self._group.low_water()
        if low is None and self._mark is None:
            if self._start == "beginning":
                self._compare(lost=False, at_once=True)
            self._group.create("0" if self._start == "beginning" else "$")
        elif low is None:
            log.warning("group %s is gone; Redis may have lost events", self._name)
            self._compare(lost=True, at_once=True)
            # Not the very beginning: where only the group was deleted, the entries before have been handled.
            assert self._mark is not None  # noqa: S101 - said to the type checker
            self._group.create(f"{max(0, order(self._mark)[0] - CLOCKS_DIFFER_SECONDS * 1000)}-0")
        else:
            self._mark = low if self._mark is None else min(low, self._mark, key=order)
            self._compare(lost=self._lost)
        mine = self._group.own()
        for entry_id in self._handled.intersection(mine):
            self._group.acknowledge(entry_id)
        waiting = {entry_id for _, entry_id, _ in self._retries}
        self._left_over = [each for each in mine if each not in self._handled and each not in waiting]
        self._handled.clear()
        self._unsure = self._lost = False
        self._sweep_at = 0.0

    def _compare(self, *, lost: bool, at_once: bool = False) -> None:
        """Publish again what the table has and the stream has not; if the database is away, later or `at_once`."""
        self._unchecked = False
        engine = self._outbox()
        if engine is None:
            if lost and self._mark is not None:
                log.warning("without a database nothing is published again: customer-jobs events replay --since …")
            return
        since = None if self._mark is None else datetime.fromtimestamp(order(self._mark)[0] / 1000, UTC)
        try:
            again = restore(engine, self._client, self._stream, since, lost=lost)
        except (Unavailable, SQLAlchemyError) as error:
            if _has_no_such_table(error):
                log.warning("the database cannot say what Redis lost, it has no events: customer-jobs migrate")
            elif at_once:
                raise
            else:
                self._unchecked = True
        else:
            if again:
                log.warning("published %d events again that the stream had lost", again)

    def _outbox(self) -> Engine | None:
        if self._engine is None and self._opened is None:
            with suppress(InvalidSetting):
                self._opened = open_engine(database_url())
        return self._engine or self._opened


def _has_no_such_table(error: Exception) -> bool:
    refused = error.__cause__ if isinstance(error, Unavailable) else error
    said = getattr(refused, "orig", None)
    return getattr(said, "sqlstate", None) in NO_SUCH_TABLE or str(said).startswith("no such table")


def pause_after(failures: int) -> float:
    """Seconds: twice as long after each failure, at random within the second half, so that many do not come at once."""
    longest: float = min(FIRST_PAUSE_SECONDS * 2 ** min(failures, 16), LAST_PAUSE_SECONDS)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
