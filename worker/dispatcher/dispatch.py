"""Takes due jobs out of the table: as many as live workers have free threads and Stripe's limits allow, in order."""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any

import structlog
from sqlalchemy import Engine, Select, bindparam, func, select

from customer_jobs import lifecycle
from customer_jobs.database import Transaction, reading, writing
from customer_jobs.lanes import Endpoint, Lane, add, by_endpoint, in_flight, is_alive, is_leased
from customer_jobs.problems import INVALID_PAYLOAD, Problem
from customer_jobs.schema import credentials, jobs, workers
from customer_jobs.sql import now
from customer_jobs.vocabulary import Kind
from worker.dispatcher.allowance import Allowance
from worker.dispatcher.ceilings import Ceilings
from worker.dispatcher.due import LONG_AGO, Candidate, next_jobs
from worker.dispatcher.front import NOTHING_DUE, SHORTEST_PAUSE_SECONDS, Front
from worker.dispatcher.leader import leads
from worker.dispatcher.limits import slowing
from worker.dispatcher.turned_away import limited_lately
from worker.dispatcher.turns import choose_lanes, own_accounts
from worker.settings import Settings

DISPATCH_LEASE_SECONDS = 5  #: A message that nobody took by then is taken for lost.
SPARE_JOBS = 4  #: Beyond the free threads, so that a thread that comes free need not wait for the next look.
#: One of them for so many jobs that left within the last moments: where calls take long a thread that comes free can
#: wait for a look, and urgent work does not stand behind what was handed out in advance.
JOBS_PER_SPARE = 20
COUNTED_FOR = timedelta(seconds=2)  #: These moments.
PUBLISH_PAUSE_SECONDS = 1.0  #: After a failed publish, before the next try.
ADAPT_EVERY_SECONDS = 0.2  #: How often Stripe's answers are looked at for limits.
SLOWING_CONCERNS = timedelta(minutes=5)  #: No call takes longer that left before a slowing.
SLOW_EVERY_SECONDS = 1.0  #: What Stripe says of a slower rate is heard before it is slowed again.
UNKNOWN_AT_ONCE = 100  #: Jobs of an unknown kind that are ended in one look, of so many lanes.
PAUSED_LANE_RESTS_SECONDS = 0.5  #: A pause that was lifted is noticed within a second.

log = structlog.get_logger(__name__)

#: Sends jobs to Celery, each as (kind, job id); raises what the broker raises, after which some may have arrived.
Publish = Callable[[Sequence[tuple[str, str]]], None]


@dataclass(frozen=True)
class Look:
    """What one look at the table came to."""

    dispatched: int
    #: From its end until a limit lets the next job leave; None: nothing waits for one.
    again_in_seconds: float | None = None
    full: bool = False  #: A job that ends lets the next one leave.
    leads: bool = True
    broker_away: bool = False  #: Publishing failed.


@dataclass(frozen=True)
class _Taken:
    """What a look took out of the table."""

    jobs: list[dict[str, Any]]
    next_in_seconds: float | None  #: From the time at its beginning.
    full: bool


class _LeadLost(Exception):
    """The lead went to another while this look was under way: nothing of it is written."""


class Dispatch:
    """Takes jobs out of the table and hands them to Celery."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        publish: Publish,
        *,
        holder: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._publish = publish
        self._holder = holder
        self._clock = clock
        self._late_seconds: dict[Endpoint, float] = {}  #: See `Allowance`.
        self._front = Front(clock)
        self._places: dict[Endpoint, str | None] = {}  #: Of the rows in `lanes`, see `Allowance`.
        self._left: deque[tuple[datetime, int]] = deque()  #: When looks were, and how many jobs left.
        self._adapted_at: datetime | None = None
        self._slowed_at: dict[Endpoint, datetime] = {}
        self._ceilings = Ceilings(settings.max_in_flight)

    def run_once(self) -> Look:
        """Dispatch what is due and allowed now."""
        began = self._clock()
        late_seconds, self._late_seconds = self._late_seconds, {}
        # Nearly always there is nothing to do, and nothing to lock: two statements say so.
        with reading(self._engine) as transaction:
            survey = _survey(transaction, self._holder)
            if not survey["leads"]:
                return Look(0, leads=False)
            room = self._room(survey)
            if not room:
                return Look(0, full=True)  # A job that ends rings; what was passed by could not leave either.
            paused = (survey["paused"] or "").split(",")
            waiting = [lane for lane in self._front.lanes(transaction) if lane.credential not in paused]
        if not waiting:
            return Look(0, self._front.seconds_until_whole or None)
        token = str(uuid.uuid4())
        try:
            with writing(self._engine) as transaction:
                allowance = Allowance(self._settings, survey["present"], self._slowed_at, self._places, late_seconds)
                taken = self._take(transaction, token, waiting, room, survey["present"], allowance)
        except _LeadLost:
            log.warning("look undone: the lead was lost meanwhile", holder=self._holder)
            return Look(0, leads=False)
        if taken.jobs and not self._publish_all(taken.jobs):
            # One whose message arrived may be claimed by now, and stays with its worker.
            with writing(self._engine) as transaction:
                lifecycle.take_back(transaction, [job["id"] for job in taken.jobs], token=token)
            return Look(0, PUBLISH_PAUSE_SECONDS, taken.full, broker_away=True)
        return Look(len(taken.jobs), self._pause_after(taken, allowance, self._clock() - began), taken.full)

    def _pause_after(self, taken: _Taken, allowance: Allowance, took_seconds: float) -> float | None:
        """Until the next look, after one that took so long: buckets filled meanwhile."""
        pauses = [self._front.seconds_until_whole] if self._front.seconds_until_whole else []
        if taken.next_in_seconds is not None:
            pauses.append(max(taken.next_in_seconds - took_seconds, 0.0))
            if taken.next_in_seconds < took_seconds:
                until = allowance.emptied()
                self._late_seconds = {key: max(took_seconds - seconds, 0.0) for key, seconds in until.items()}
        return min(pauses, default=None)

    def _room(self, survey: Mapping[str, Any]) -> int:
        """How many jobs the threads of live workers can take."""
        spare = spare_jobs(self._left, survey["present"])
        most = min(self._settings.max_in_flight, survey["slots"] + spare) if survey["slots"] else 0
        room: int = most - survey["in_flight"]
        return max(room, 0)

    def _take(
        self,
        transaction: Transaction,
        token: str,
        waiting: Sequence[Lane],
        room: int,
        present: datetime,
        allowance: Allowance,
    ) -> _Taken:
        """Mark the jobs that leave now."""
        kinds = set(Kind)
        for lane in [lane for lane in waiting if lane.kind not in kinds][:UNKNOWN_AT_ONCE]:
            _end_unknown(transaction, lane)
        known = [lane for lane in waiting if lane.kind in kinds]
        allowance.read(transaction, [key for lane in own_accounts(known) for key in (lane.endpoint, lane.account)])
        self._adapt(transaction, allowance, present)
        flying = by_endpoint(in_flight(transaction)) if self._ceilings.any() else {}
        asked, left_out = choose_lanes(
            sorted(known, key=lambda lane: self._front.urgency(lane, present)),
            allowance,
            room,
            may_fly=lambda lane: not self._ceilings.any() or self._ceilings.room(lane, flying) > 0,
        )
        allowance.read(transaction, [lane.endpoint for lane in asked])
        self._let_rest(asked, allowance, present)
        wanted = {lane: min(allowance.calls(lane), room, self._ceilings.room(lane, flying)) for lane in asked}
        found = self._front.next_jobs(transaction, wanted, present)
        chosen = self._choose(found, room, allowance, flying)
        marked = (
            lifecycle.mark_dispatched(transaction, list(chosen), token=token, lease_seconds=DISPATCH_LEASE_SECONDS)
            if chosen
            else []
        )
        if not allowance.keep(transaction, self._holder):
            raise _LeadLost
        self._left.append((present, len(marked)))
        taken = {job["id"]: job for job in marked}
        self._front.note_left(lane for job_id, lane in chosen.items() if job_id in taken)
        # A lane that gave all it was asked for may have more. One that did not has nothing due: the clock looks after
        # its later jobs, or one that waits an hour for its retry would keep the dispatcher spinning.
        unserved = {lane for lane, jobs_of in found.items() if any(job.job_id not in chosen for job in jobs_of)}
        limited = [lane for lane in asked if lane in unserved or len(found.get(lane, ())) == wanted[lane]]
        pauses = [allowance.seconds_until_next(lane) for lane in limited]
        for lane in left_out.values():
            seconds = allowance.buckets[lane.account].seconds_until()
            # Those that were asked had less than they might have sent: others are asked at once.
            ask_others = len(chosen) < room and self._front.urgency(lane, present) < NOTHING_DUE
            pauses.append(SHORTEST_PAUSE_SECONDS if not seconds and ask_others else seconds)
        # None where a call might leave at once: what it waits for is a thread, a lock or a person.
        next_in_seconds = min((seconds for seconds in pauses if seconds > 0), default=None)
        full = len(chosen) == room or (self._ceilings.any() and any(self._ceilings.concern(lane) for lane in known))
        return _Taken([taken[job_id] for job_id in chosen if job_id in taken], next_in_seconds, full)

    def _let_rest(self, asked: Sequence[Lane], allowance: Allowance, present: datetime) -> None:
        """Pass by for a while those that may send nothing now."""
        for lane in asked:
            if not allowance.calls(lane):
                seconds = allowance.seconds_until_next(lane) or PAUSED_LANE_RESTS_SECONDS
                self._front.let_rest(lane, present + timedelta(seconds=seconds))

    def _choose(
        self, found: Mapping[Lane, Sequence[Candidate]], room: int, allowance: Allowance, flying: dict[Endpoint, int]
    ) -> dict[str, Lane]:
        """The jobs that leave now, in order, and the lane of each: by priority, then one of each lane in turn."""
        order = [
            (job.priority, rank, place, job.job_id, lane)
            for place, (lane, candidates) in enumerate(found.items())
            for rank, job in enumerate(candidates)
        ]
        chosen: dict[str, Lane] = {}
        for *_, job_id, lane in sorted(order):
            # Lanes of one credential share its account's bucket and ceiling.
            if len(chosen) < room and allowance.calls(lane) > 0 and self._ceilings.room(lane, flying) > 0:
                chosen[job_id] = lane
                allowance.spend(lane)
                add(flying, lane)
        return chosen

    def _adapt(self, transaction: Transaction, allowance: Allowance, present: datetime) -> None:
        """Slow down what Stripe's answers of the last second say is too fast; each limit once a second at most."""
        elapsed = ADAPT_EVERY_SECONDS if self._adapted_at is None else (present - self._adapted_at).total_seconds()
        if 0 <= elapsed < ADAPT_EVERY_SECONDS:
            return
        self._adapted_at = present
        self._ceilings.recover(max(elapsed, 0.0))  # The database's clock may have been set back.
        # A slowing that lies ahead would leave every answer uncounted until then; an old one concerns none.
        self._slowed_at = {
            key: at for key, at in self._slowed_at.items() if timedelta(0) <= present - at < SLOWING_CONCERNS
        }
        for limited in limited_lately(transaction, self._slowed_at):
            since_slowed = (present - self._slowed_at.get(limited.key, LONG_AGO)).total_seconds()
            if 0 <= since_slowed < SLOW_EVERY_SECONDS:
                continue
            if limited.key not in allowance.buckets:
                allowance.read(transaction, [limited.key])
            is_slowed = not limited.concerns_concurrency and allowance.is_slowed(limited.key)
            rate = allowance.buckets[limited.key].rate
            factor = slowing(limited.answers, limited.rate_limited, rate=rate, is_slowed=is_slowed)
            if factor is None:
                continue
            if limited.concerns_concurrency:
                self._ceilings.lower(limited.key, by_endpoint(in_flight(transaction)))
            else:
                allowance.slow(limited.key, factor)
            self._slowed_at[limited.key] = present
            log.warning("slowed", credential=limited.key.credential, endpoint=limited.key.kind, reason=limited.reason)

    def _publish_all(self, taken: Sequence[Mapping[str, Any]]) -> bool:
        """Publish in order; True if all messages have arrived."""
        try:
            self._publish([(job["kind"], job["id"]) for job in taken])
        except Exception as error:  # noqa: BLE001 - whatever the broker raises, these jobs go back into the table
            log.warning("publishing failed", job_ids=[job["id"] for job in taken], error=type(error).__name__)
            return False
        return True


def spare_jobs(left: deque[tuple[datetime, int]], present: datetime) -> int:
    """How many jobs may leave beyond the free threads, after so many left at these times; forgets the older ones."""
    while left and not timedelta(0) <= present - left[0][0] < COUNTED_FOR:
        left.popleft()
    return min(sum(count for _, count in left) // JOBS_PER_SPARE, SPARE_JOBS)


def _survey(transaction: Transaction, holder: str) -> dict[str, Any]:
    """Whether `holder` leads, the threads of live workers, the jobs under way, the paused credentials, and the time."""
    return transaction.rows(_survey_query(), {"holder": holder})[0]


@cache
def _survey_query() -> Select[Any]:
    alive = select(func.coalesce(func.sum(workers.c.slots), 0)).where(is_alive())
    paused = select(func.aggregate_strings(credentials.c.name, ",")).where(credentials.c.paused_at.is_not(None))
    under_way = select(func.count()).select_from(jobs).where(is_leased())
    return select(
        leads(bindparam("holder")).label("leads"),
        alive.scalar_subquery().label("slots"),
        under_way.scalar_subquery().label("in_flight"),
        paused.scalar_subquery().label("paused"),
        now().label("present"),
    )


def _end_unknown(transaction: Transaction, lane: Lane) -> None:
    """End jobs of a kind that plain SQL made up."""
    message = f"unknown kind {lane.kind!r}; known are {', '.join(Kind)}"
    problem = Problem("invalid_request_error", INVALID_PAYLOAD, message, param="kind")
    error = problem.envelope(credential=lane.credential, transient=False)
    for job in next_jobs(transaction, {lane: UNKNOWN_AT_ONCE})[lane]:
        lifecycle.fail_unclaimed(transaction, job.job_id, error=error)
        log.warning("unknown kind", job_id=job.job_id)
