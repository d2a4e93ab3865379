"""The lanes: what Stripe's limits apply to, found in the table at a cost that does not grow with the jobs in it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Select,
    and_,
    bindparam,
    func,
    lateral,
    literal,
    select,
    true,
    tuple_,
    type_coerce,
    union_all,
)
from sqlalchemy.types import NullType

from customer_jobs.database import Transaction
from customer_jobs.schema import is_in_flight, is_waiting, job_account, jobs, workers
from customer_jobs.sql import now
from customer_jobs.vocabulary import WORKER_SILENT_SECONDS, Priority

RECONCILE = "customer.list"  #: The endpoint that reconciling jobs call.
LEASE_COUNTS_SECONDS = 3  #: A lease that ran out longer ago should have been rescued; nobody is at work on its job.
#: Ours run out within 15 s. One that is to last longer than this was written by plain SQL, or before the database's
#: clock was set back, and would hold a place, and its job, until then.
LONGEST_LEASE_SECONDS = 60
WHOLE_ACCOUNT = "*"  #: The `kind` of the row that stands for everything a credential does.


class Lane(NamedTuple):
    """What one of Stripe's endpoint limits applies to, as the index `jobs_dispatch` orders it."""

    credential: str
    stripe_account: str  #: '' is the key's own account.
    reconciling: bool
    kind: str

    @property
    def endpoint(self) -> Endpoint:
        """Its row in `lanes`."""
        return Endpoint(self.credential, self.stripe_account, RECONCILE if self.reconciling else self.kind)

    @property
    def own(self) -> Endpoint:
        """The same endpoint of the key's own account: a pause of it is one for connected accounts, too."""
        return self.endpoint._replace(stripe_account="")

    @property
    def account(self) -> Endpoint:
        """The row of the whole credential."""
        return account_of(self.credential)


class Head(NamedTuple):
    """What is due first in a lane, of one priority."""

    lane: Lane
    priority: int
    due_at: datetime


class Endpoint(NamedTuple):
    """The key of a row in `lanes`."""

    credential: str
    stripe_account: str
    kind: str


def account_of(credential: str) -> Endpoint:
    """The key of the row that stands for everything a credential does."""
    return Endpoint(credential, "", WHOLE_ACCOUNT)


LANE_COLUMNS = (jobs.c.credential, job_account, jobs.c.reconciling, jobs.c.kind)


def lanes_with_work(transaction: Transaction) -> list[Lane]:
    """The lanes in which something waits: one look into the index for each, however many jobs there are."""
    if transaction.dialect_name == "sqlite":
        return _hop_by_hop(transaction)
    return list(dict.fromkeys(head.lane for head in heads_of_lanes(transaction)))


def heads_of_lanes(transaction: Transaction) -> list[Head]:
    """The heads of all lanes in which something waits: one look into the index for each."""
    if transaction.dialect_name == "sqlite":
        return [head for lane in _hop_by_hop(transaction) for head in _heads_of(transaction, lane)]
    rows = (tuple(row.values()) for row in transaction.rows(_heads_query()))
    return [Head(Lane(*lane), priority, due_at) for *lane, priority, due_at in rows]


# The statements of a look are built once: building them anew took longer than executing them.
@cache
def _heads_query() -> Select[Any]:
    columns = (*LANE_COLUMNS, jobs.c.priority)
    names = (*Lane._fields, "priority", "due_at")
    first = (
        select(*(column.label(name) for column, name in zip((*columns, jobs.c.due_at), names, strict=True)))
        .where(is_waiting())
        .order_by(*columns, jobs.c.due_at)
        .limit(1)
    )
    head = first.cte("head", recursive=True)
    behind = tuple_(*columns) > tuple_(*(head.c[name] for name in names[:-1]))
    following = lateral(first.where(behind), name="following")
    return select(*head.union_all(select(*following.c).select_from(head.join(following, true()))).c)


def _hop_by_hop(transaction: Transaction) -> list[Lane]:
    """The same on SQLite, which has no LATERAL."""
    found: dict[Lane, None] = {}
    row = transaction.row(_first_place())
    while row is not None:
        credential, stripe_account, reconciling, kind = place = tuple(row.values())
        found[Lane(credential, stripe_account, bool(reconciling), kind)] = None
        row = _next_place(transaction, place)
    return list(found)


#: As SQLite orders them: it takes anything for a boolean, and whoever reads 2 as true would go on behind 1, at the 2.
_PLACE_COLUMNS: tuple[ColumnElement[Any], ...] = tuple(type_coerce(column, NullType()) for column in LANE_COLUMNS)


@cache
def _first_place() -> Select[Any]:
    return select(*_PLACE_COLUMNS).where(is_waiting()).order_by(*_PLACE_COLUMNS).limit(1)


def _next_place(transaction: Transaction, place: tuple[Any, ...]) -> dict[str, Any] | None:
    """The first one behind another; in parts, since SQLite compares rows that hold an expression without the index."""
    for same in reversed(range(len(place))):
        pairs = list(zip(_PLACE_COLUMNS, place, strict=True))
        equal = [column == literal(value) for column, value in pairs[:same]]
        column, value = pairs[same]
        if row := transaction.row(_first_place().where(*equal, column > literal(value))):
            return row
    return None


def _heads_of(transaction: Transaction, lane: Lane) -> list[Head]:
    rows = transaction.rows(_heads_of_lane_query(), lane._asdict())
    return [Head(lane, row["priority"], row["due_at"]) for row in rows if row["due_at"] is not None]


@cache
def _heads_of_lane_query() -> CompoundSelect[Any]:
    of_lane = [
        column == bindparam(name, type_=column.type) for column, name in zip(LANE_COLUMNS, Lane._fields, strict=True)
    ]
    firsts = {
        priority: select(func.min(jobs.c.due_at)).where(is_waiting(), *of_lane, jobs.c.priority == priority.value)
        for priority in Priority
    }
    return union_all(
        *(
            select(literal(priority.value).label("priority"), first.scalar_subquery().label("due_at"))
            for priority, first in firsts.items()
        )
    )


def in_flight(transaction: Transaction) -> dict[Lane, int]:
    """How many jobs of each lane somebody holds a lease on."""
    rows = (tuple(row.values()) for row in transaction.rows(_in_flight_query()))
    return {Lane(*lane): count for *lane, count in rows}


@cache
def _in_flight_query() -> Select[Any]:
    return select(*LANE_COLUMNS, func.count()).where(is_leased()).group_by(*LANE_COLUMNS)


def by_endpoint(counts: Mapping[Lane, int]) -> dict[Endpoint, int]:
    """What the lanes count, summed up for each endpoint and for each whole account."""
    summed: dict[Endpoint, int] = {}
    for lane, count in counts.items():
        add(summed, lane, count)
    return summed


def add(summed: dict[Endpoint, int], lane: Lane, count: int = 1) -> None:
    """Count more jobs of a lane."""
    for key in (lane.endpoint, lane.account):
        summed[key] = summed.get(key, 0) + count


def is_leased() -> ColumnElement[bool]:
    """Jobs on which somebody holds a lease.

    With a bound: while a transaction stays open, even one that only reads, PostgreSQL keeps an entry in the index
    `jobs_in_flight` for each lease there was since, and a count without one walks over all of them.
    """
    return and_(is_in_flight(), jobs.c.lease_expires_at.between(now(-LEASE_COUNTS_SECONDS), now(LONGEST_LEASE_SECONDS)))


def is_alive() -> ColumnElement[bool]:
    """Workers that have lately shown a sign of life; one that lies ahead is older than a clock that was set back."""
    return workers.c.seen_at.between(now(-WORKER_SILENT_SECONDS), now(WORKER_SILENT_SECONDS))


def is_leased_for_too_long() -> ColumnElement[bool]:
    """Jobs in flight whose lease ends later than any of ours."""
    return and_(is_in_flight(), jobs.c.lease_expires_at > now(LONGEST_LEASE_SECONDS))
