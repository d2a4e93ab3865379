"""What a dispatcher does beside dispatching: shows that its worker lives, rescues what others left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import structlog
from sqlalchemy import Engine, Executable, Select, delete, exists, false, or_, select

from customer_jobs import __version__, lifecycle
from customer_jobs.database import Transaction, insert_of, reading, writing
from customer_jobs.lanes import is_leased_for_too_long
from customer_jobs.lifecycle import Claim
from customer_jobs.schema import events, is_in_flight, jobs, workers
from customer_jobs.sql import now
from worker.dispatcher.leader import still_leads
from worker.logs import frames
from worker.record import LATE

RESCUE_AT_ONCE = 100  #: Attempts ended in one transaction; the next follows at once.
LATELY_SECONDS = 30  #: A lease that ran out is seen to within seconds; longer ago, it was seen before.
FORGET_WORKER_SECONDS = 3600  #: A worker that was not seen for longer is gone, not late.

log = structlog.get_logger(__name__)


def show_life(engine: Engine, worker: str, slots: int) -> None:
    """Tell the dispatcher that leads how many threads this worker has."""
    with writing(engine) as transaction:
        here = {"name": worker, "slots": slots, "version": __version__}
        transaction.change(_showing(transaction.dialect_name), here)


@cache
def _showing(dialect_name: str) -> Executable:
    statement = insert_of(dialect_name, workers).values(seen_at=now())
    new = {name: statement.excluded[name] for name in ("slots", "version", "seen_at")}
    showing: Executable = statement.on_conflict_do_update(index_elements=[workers.c.name], set_=new)
    return showing


def say_goodbye(engine: Engine, worker: str) -> None:
    """Let nothing more be dispatched for this worker's threads."""
    with writing(engine) as transaction:
        long_gone = workers.c.seen_at < now(-FORGET_WORKER_SECONDS)
        transaction.change(delete(workers).where(or_(workers.c.name == worker, long_gone)))


@dataclass(frozen=True)
class Overdue:
    """What should have happened by now, in one statement: nearly always nothing."""

    leases: bool  #: Of jobs whose message was lost or whose worker fell silent, or that nobody of ours has taken.
    events: bool  #: That are not published.


def overdue(engine: Engine, *, lately: bool = False) -> Overdue:
    """What the leader has to see to; `lately` passes by what ran out long ago, and by all events."""
    with reading(engine) as transaction:
        return Overdue(**transaction.rows(_overdue_query(lately=lately))[0])


@cache
def _overdue_query(*, lately: bool) -> Select[bool, bool]:
    # While a transaction is open, an index keeps the entries of all leases there were, and of all published events.
    since = [jobs.c.lease_expires_at > now(-LATELY_SECONDS)] if lately else []
    unpublished = exists().where(events.c.published_at.is_(None))
    ran_out = exists().where(is_in_flight(), jobs.c.lease_expires_at < now(), *since)
    return select(
        # Two looks into the index; one for either would walk over all of it.
        or_(ran_out, exists().where(is_leased_for_too_long())).label("leases"),
        (false() if lately else unpublished).label("events"),
    )


def rescue(engine: Engine, holder: str, abandon: Callable[[Transaction, Claim], object]) -> int:
    """Let the jobs go on whose message was lost or whose worker fell silent; how many."""
    rescued = 0
    not_ended: list[str] = []  # Passed by from now on, or as many as are taken at once would keep all others from it.
    while True:
        with writing(engine) as transaction:
            if not still_leads(transaction, holder):
                return rescued
            lifecycle.cut_short(transaction)
            unclaimed = lifecycle.rescue_unclaimed(transaction)
            silent = lifecycle.expired(transaction, RESCUE_AT_ONCE, besides=not_ended)
            ended = [_end_abandoned(transaction, held, abandon) for held in silent]
        for held, is_ended in zip(silent, ended, strict=True):
            if is_ended:
                log.warning("attempt abandoned", job_id=held.job["id"], attempt=held.number)
            else:
                not_ended.append(held.job["id"])
        if unclaimed:
            log.info("rescued unclaimed jobs", jobs=unclaimed)
        rescued += unclaimed + sum(ended)
        if len(silent) < RESCUE_AT_ONCE:
            return rescued


def _end_abandoned(transaction: Transaction, held: Claim, abandon: Callable[[Transaction, Claim], object]) -> bool:
    try:
        with transaction.savepoint():
            return abandon(transaction, held) is not LATE
    except Exception as error:  # noqa: BLE001 - one job that cannot be ended must not keep all the others from it
        seen = {"error": type(error).__name__, "frames": frames(error)}
        log.error("attempt not ended", job_id=held.job["id"], attempt=held.number, **seen)  # noqa: TRY400 - its message may quote a row
        return False
