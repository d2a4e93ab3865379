"""Takes due jobs out of the table: as many as live workers have free threads and Stripe's limits allow, in order."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import structlog
from sqlalchemy import Engine, and_, func, literal, select, tuple_, update

from customer_jobs import lifecycle
from customer_jobs.database import Transaction, writing
from customer_jobs.problems import INVALID_PAYLOAD, Problem
from customer_jobs.schema import is_in_flight, is_waiting, jobs, lanes, workers
from customer_jobs.sql import now
from customer_jobs.vocabulary import Kind, Priority
from worker.credentials import paused
from worker.dispatcher.leader import still_leads
from worker.dispatcher.limits import Bucket
from worker.settings import Settings

DISPATCH_LEASE_SECONDS = 5  #: A message that nobody took by then is taken for lost.
SPARE_JOBS = 4  #: Beyond the free threads, so that a thread that comes free need not wait for the next look.
WORKER_SILENT_SECONDS = 10  #: A worker that was not seen for longer gets nothing.
AGEING_SECONDS = 15 * 60  #: A job due for longer counts one priority higher.
PUBLISH_PAUSE_SECONDS = 1.0  #: After a failed publish, before the next try.
RECONCILE = "customer.list"  #: The endpoint that reconciling jobs call.

log = structlog.get_logger(__name__)

Publish = Callable[[str, str], None]  #: Sends (kind, job id) to Celery; raises what the broker raises.


class Lane(NamedTuple):
    """What one of Stripe's endpoint limits applies to, as the index `jobs_dispatch` orders it."""

    credential: str
    stripe_account: str  #: '' is the key's own account.
    reconciling: bool
    kind: str

    @property
    def endpoint(self) -> str:
        """The `kind` of its row in `lanes`."""
        return RECONCILE if self.reconciling else self.kind


_LANE_COLUMNS = (jobs.c.credential, func.coalesce(jobs.c.stripe_account, ""), jobs.c.reconciling, jobs.c.kind)


@dataclass(frozen=True)
class Look:
    """What one look at the table came to."""

    dispatched: int
    again_in_seconds: float | None = None  #: When a limit lets the next job leave; None: nothing waits for one.
    leads: bool = True


class Dispatch:
    """Takes jobs out of the table and hands them to Celery."""

    def __init__(self, engine: Engine, settings: Settings, publish: Publish, *, holder: str) -> None:
        self._engine = engine
        self._settings = settings
        self._publish = publish
        self._holder = holder
        self._looks = 0

    def run_once(self) -> Look:
        """Dispatch what is due and allowed now."""
        token = str(uuid.uuid4())
        with writing(self._engine) as transaction:
            if not still_leads(transaction, self._holder):
                return Look(0, leads=False)
            taken, again_in_seconds = self._take(transaction, token)
        if unpublished := self._publish_all(taken):
            with writing(self._engine) as transaction:
                lifecycle.take_back(transaction, unpublished, token=token)
            again_in_seconds = PUBLISH_PAUSE_SECONDS
        return Look(len(taken) - len(unpublished), again_in_seconds)

    def _take(self, transaction: Transaction, token: str) -> tuple[list[dict[str, Any]], float | None]:
        """Mark the jobs that leave now; them, and when a limit lets the next one leave."""
        room = _room(transaction, self._settings.max_in_flight)
        held_back = paused(transaction)
        lanes_with_work = (lane for lane in _lanes_with_work(transaction) if lane.credential not in held_back)
        known = [lane for lane in lanes_with_work if _is_known(transaction, lane)]
        if room <= 0 or not known:
            return [], None  # A thread that comes free wakes the dispatcher, as a new job does.
        self._looks += 1
        turn = self._looks % len(known)
        in_turn = known[turn:] + known[:turn]
        present = transaction.value(select(now()))
        buckets = {lane: self._bucket(transaction, lane, present) for lane in in_turn}
        order: list[tuple[int, int, int, str, Lane]] = []
        for place, lane in enumerate(in_turn):
            for rank, (priority, job_id) in enumerate(_next_jobs(transaction, lane, min(buckets[lane].calls, room))):
                order.append((priority, rank, place, job_id, lane))
        chosen = {job_id: lane for *_, job_id, lane in sorted(order)[:room]}
        taken: dict[str, dict[str, Any]] = {}
        if chosen:
            marked = lifecycle.mark_dispatched(
                transaction, list(chosen), token=token, lease_seconds=DISPATCH_LEASE_SECONDS
            )
            taken = {job["id"]: job for job in marked}
        for lane in in_turn:
            spent = sum(chosen[job_id] == lane for job_id in taken)
            buckets[lane] = buckets[lane].spent(spent)
            _keep_bucket(transaction, lane, buckets[lane], present)
        again = min(bucket.seconds_until() for bucket in buckets.values()) if len(taken) < room else None
        return [taken[job_id] for job_id in chosen if job_id in taken], again

    def _publish_all(self, taken: Sequence[Mapping[str, Any]]) -> list[str]:
        """Publish in order; the ids that could not be."""
        for index, job in enumerate(taken):
            try:
                self._publish(job["kind"], job["id"])
            except Exception as error:  # noqa: BLE001 - whatever the broker raises, these jobs go back into the table
                left = [each["id"] for each in taken[index:]]
                log.warning("publishing failed", job_id=job["id"], jobs=len(left), error=type(error).__name__)
                return left
        return []

    def _bucket(self, transaction: Transaction, lane: Lane, present: datetime) -> Bucket:
        rate = self._settings.rate_limit_create
        if lane.reconciling or lane.kind == Kind.CUSTOMER_FETCH:
            rate = self._settings.rate_limit_fetch
        row = transaction.row(select(*lanes.c).where(*_is_lane(lane)).with_for_update())
        if row is None:
            values = {"credential": lane.credential, "stripe_account": lane.stripe_account, "kind": lane.endpoint}
            transaction.change(transaction.insert(lanes).values(**values, tokens=1, rate=rate).on_conflict_do_nothing())
            return Bucket(tokens=1, rate=rate)
        return Bucket(row["tokens"], rate).refilled((present - row["refilled_at"]).total_seconds())


def _room(transaction: Transaction, max_in_flight: int) -> int:
    """How many jobs may leave: free threads of live workers and a few to spare."""
    alive = select(func.coalesce(func.sum(workers.c.slots), 0)).where(workers.c.seen_at > now(-WORKER_SILENT_SECONDS))
    slots = transaction.value(alive)
    in_flight = transaction.value(select(func.count()).select_from(jobs).where(is_in_flight()))
    return min(max_in_flight, slots + SPARE_JOBS) - in_flight if slots else 0


def _lanes_with_work(transaction: Transaction) -> list[Lane]:
    """The lanes in which something waits: one look into the index for each, however many jobs there are."""
    found: list[Lane] = []
    query = select(*_LANE_COLUMNS).where(is_waiting()).order_by(*_LANE_COLUMNS).limit(1)
    behind = query
    while row := transaction.row(behind):
        lane = Lane._make(row.values())
        found.append(lane)
        behind = query.where(tuple_(*_LANE_COLUMNS) > tuple_(*map(literal, lane)))
    return found


def _is_known(transaction: Transaction, lane: Lane) -> bool:
    """Whether there is a task for the lane's jobs; the jobs of one that plain SQL made up are ended here."""
    if lane.kind in set(Kind):
        return True
    message = f"unknown kind {lane.kind!r}; known are {', '.join(Kind)}"
    problem = Problem("invalid_request_error", INVALID_PAYLOAD, message, param="kind")
    error = problem.envelope(credential=lane.credential, transient=False)
    for _, job_id in _next_jobs(transaction, lane, 100):
        lifecycle.fail_unclaimed(transaction, job_id, error=error)
        log.warning("unknown kind", job_id=job_id)
    return False


def _next_jobs(transaction: Transaction, lane: Lane, most: int) -> Iterator[tuple[int, str]]:
    """The lane's due jobs as (effective priority, id), in the order in which they leave."""
    if most <= 0:
        return iter(())
    of_lane = and_(is_waiting(), *(column == value for column, value in zip(_LANE_COLUMNS, lane, strict=True)))
    due: list[tuple[int, datetime, str]] = []
    aged = (jobs.c.due_at < now(-AGEING_SECONDS)).label("aged")
    for priority in Priority:
        query = (
            select(jobs.c.id, jobs.c.due_at, aged)
            .where(of_lane, jobs.c.priority == priority.value, jobs.c.due_at <= now())
            .order_by(jobs.c.due_at)
            .limit(most)
        )
        rows = transaction.rows(query)
        due += [(max(priority - row["aged"], Priority.URGENT), row["due_at"], row["id"]) for row in rows]
    return ((priority, job_id) for priority, _, job_id in sorted(due)[:most])


def _is_lane(lane: Lane) -> tuple[Any, ...]:
    return (
        lanes.c.credential == lane.credential,
        lanes.c.stripe_account == lane.stripe_account,
        lanes.c.kind == lane.endpoint,
    )


def _keep_bucket(transaction: Transaction, lane: Lane, bucket: Bucket, present: datetime) -> None:
    values = {"tokens": bucket.tokens, "rate": bucket.rate, "refilled_at": present}
    transaction.change(update(lanes).where(*_is_lane(lane)).values(**values))
