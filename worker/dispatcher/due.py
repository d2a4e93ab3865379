"""Which jobs are due, lane by lane, in the order in which they leave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

from sqlalchemy import CompoundSelect, Integer, Select, bindparam, literal, select, union_all

from customer_jobs.database import Transaction
from customer_jobs.lanes import LANE_COLUMNS, Lane
from customer_jobs.schema import is_waiting, jobs
from customer_jobs.sql import now
from customer_jobs.vocabulary import Priority

AGEING_SECONDS = 15 * 60  #: A job due for longer counts one priority higher.
LANES_AT_ONCE = 8  #: In one statement, four parts each: building a longer one holds a look up for too long.
LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Candidate:
    """A due job, in the order in which jobs leave."""

    priority: int  #: With its age counted in.
    due_at: datetime
    job_id: str
    written_priority: int  #: As it stands in the row.


def next_jobs(transaction: Transaction, wanted: Mapping[Lane, int]) -> dict[Lane, list[Candidate]]:
    """The due jobs of each lane, at most as many as wanted, in the order in which they leave."""
    return first_of(due_jobs(transaction, wanted, {}), wanted)


def due_jobs(
    transaction: Transaction, wanted: Mapping[Lane, int], since: Mapping[tuple[Lane, Priority], datetime]
) -> dict[Lane, list[Candidate]]:
    """The due jobs of each lane, of each priority at most as many as wanted of all, in no order.

    `since` says where in a lane to begin; what is due earlier is passed by.
    """
    in_place = [lane for lane, most in wanted.items() if most > 0]
    found: dict[Lane, list[Candidate]] = {lane: [] for lane in in_place}
    for start in range(0, len(in_place), LANES_AT_ONCE):
        some = in_place[start : start + LANES_AT_ONCE]
        parameters: dict[str, Any] = {}
        for place, lane in enumerate(some):
            of_lane = {**lane._asdict(), "most": wanted[lane]}
            of_lane |= {f"since_{priority}": since.get((lane, priority), LONG_AGO) for priority in Priority}
            parameters |= {f"{name}_{place}": value for name, value in of_lane.items()}
        for row in transaction.rows(_next_query(len(some)), parameters):
            priority = max(row["priority"] - row["aged"], Priority.URGENT)
            found[some[row["place"]]].append(Candidate(priority, row["due_at"], row["id"], row["priority"]))
    return found


def first_of(due: Mapping[Lane, list[Candidate]], wanted: Mapping[Lane, int]) -> dict[Lane, list[Candidate]]:
    """Those of each lane that leave first, in order."""
    return {
        lane: sorted(each, key=lambda job: (job.priority, job.due_at, job.job_id))[: wanted[lane]]
        for lane, each in due.items()
    }


@cache
def _next_query(lanes_count: int) -> CompoundSelect[Any]:
    return union_all(*(_next_of(place, priority) for place in range(lanes_count) for priority in Priority))


def _next_of(place: int, priority: Priority) -> Select[Any]:
    of_lane = (
        column == bindparam(f"{name}_{place}", type_=column.type)
        for column, name in zip(LANE_COLUMNS, Lane._fields, strict=True)
    )
    since = bindparam(f"since_{priority}_{place}", type_=jobs.c.due_at.type)
    look = (
        select(
            jobs.c.id,
            jobs.c.due_at,
            jobs.c.priority,
            (jobs.c.due_at < now(-AGEING_SECONDS)).label("aged"),
            literal(place).label("place"),
        )
        .where(is_waiting(), *of_lane, jobs.c.priority == priority.value, jobs.c.due_at.between(since, now()))
        .order_by(jobs.c.due_at)
        .limit(bindparam(f"most_{place}", type_=Integer))
        # A job that somebody's open transaction holds is passed by, or its lane would wait behind it.
        .with_for_update(skip_locked=True)
    )
    # SQLite allows no ORDER BY within a UNION, but in a subquery of one.
    return select(look.subquery())
