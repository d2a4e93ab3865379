"""Where a look at the table begins: behind what left before, whose entries an open transaction keeps in the index."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta

from customer_jobs.database import Transaction
from customer_jobs.lanes import Lane, heads_of_lanes
from customer_jobs.vocabulary import Priority
from worker.dispatcher.due import AGEING_SECONDS, LONG_AGO, Candidate, due_jobs, first_of

LEFT_UNNOTICED = 100  #: What so few jobs leave behind in the index costs a look nothing.
#: A look from the beginning comes so many times later as the last one took: where much lies behind, this is the part
#: of the dispatcher's time that it costs, and how long a job may wait that was committed late or in an idle lane.
PAUSE_FACTOR = 20
LATE = timedelta(seconds=10)  #: A job that is committed at most so long after it was due is seen at once all the same.
SHORTEST_PAUSE_SECONDS = 0.001  #: 0 would say that nothing was passed by.
LONGEST_PAUSE_SECONDS = 10.0  #: However long one took: the process or the database may have been stopped meanwhile.
IDLE_LANES = 25  #: So many in which nothing waits at present are looked at, too.
FEW_LANES = 25  #: Of so many each look knows what is due in them; of more, looks from the beginning do.
NOTHING_DUE = max(Priority) + 1  #: The urgency of a lane of which no due job is known: behind all others.


def whole_again_at(began: float, ended: float) -> float:
    """When to begin at the first entry once more, after a look from there that took so long."""
    return ended + min(PAUSE_FACTOR * (ended - began), LONGEST_PAUSE_SECONDS)


class Front:
    """What earlier looks found, so that the next need not walk over all that left.

    PostgreSQL can take the entry of a job that left out of an index only once no transaction is open that began before.
    Only a hint: what a look passes by is seen by the next one from the beginning.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._left = 0  #: Jobs, since the beginning; few are not counted on.
        #: Those that waited longest for their turn first; when the first job of each priority is due there.
        self._lanes: dict[Lane, dict[int, datetime]] = {}
        self._rests_until: dict[Lane, datetime] = {}
        self._since: dict[tuple[Lane, Priority], datetime] = {}  #: Where a look begins there.
        self._whole_again_at = 0.0
        self._whole = True
        self._took_seconds = 0.0

    def lanes(self, transaction: Transaction) -> list[Lane]:
        """The lanes in which something may wait, in turn."""
        began = self._clock()
        # SQLite keeps no entries of what left.
        unnoticed = self._left < LEFT_UNNOTICED or transaction.dialect_name == "sqlite"
        self._whole = (unnoticed and len(self._lanes) <= FEW_LANES) or began >= self._whole_again_at
        if not self._whole:
            return list(self._lanes)
        found: dict[Lane, dict[int, datetime]] = {}
        for lane, priority, due_at in heads_of_lanes(transaction):
            found.setdefault(lane, {})[priority] = due_at
        idle = [lane for lane in self._lanes if lane not in found][-IDLE_LANES:]
        busy = [lane for lane in self._lanes if lane in found]
        self._lanes = {lane: found.get(lane, {}) for lane in (*idle, *busy, *found)}
        self._rests_until.clear()
        # Of the lanes that are asked for nothing now, too: the next look at one of them begins at its first entry.
        self._since.clear()
        self._took_seconds = self._clock() - began
        return [lane for lane in self._lanes if lane in found]

    def urgency(self, lane: Lane, present: datetime) -> int:
        """The priority of the job that leaves a lane next, as far as is known: `NOTHING_DUE` if none may."""
        if present < self._rests_until.get(lane, LONG_AGO):
            return NOTHING_DUE
        aged = present - timedelta(seconds=AGEING_SECONDS)
        due = ((priority, at) for priority, at in self._lanes[lane].items() if at <= present)
        return min((max(priority - (at < aged), Priority.URGENT) for priority, at in due), default=NOTHING_DUE)

    def let_rest(self, lane: Lane, until: datetime) -> None:
        """No job may leave a lane before: others are asked in its place."""
        self._rests_until[lane] = until

    def next_jobs(
        self, transaction: Transaction, wanted: Mapping[Lane, int], present: datetime
    ) -> dict[Lane, list[Candidate]]:
        """The due jobs of each lane, at most as many as wanted, in the order in which they leave."""
        began = self._clock()
        due = due_jobs(transaction, wanted, self._since)
        for lane, candidates in due.items():
            for priority in Priority:
                first = min((job.due_at for job in candidates if job.written_priority == priority), default=None)
                self._since[lane, priority] = min(first or present, present - LATE)
                if first is not None:
                    self._lanes[lane][priority] = first
                elif self._lanes[lane].get(priority, present) < present:
                    del self._lanes[lane][priority]
        if self._whole:
            self._whole_again_at = whole_again_at(began - self._took_seconds, self._clock())
        return first_of(due, wanted)

    def note_left(self, lanes: Iterable[Lane]) -> None:
        """A job has left each of these; their next turn is behind all others'."""
        for lane in lanes:
            self._left += 1
            self._lanes[lane] = self._lanes.pop(lane)

    @property
    def seconds_until_whole(self) -> float:
        """When what this look may have passed by can be seen; 0 if it has seen all."""
        return 0.0 if self._whole else max(self._whole_again_at - self._clock(), SHORTEST_PAUSE_SECONDS)
