"""Who may work on a job, and until when: handed over, taken back, rescued, kept. No attempt is used by any of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Executable, Update, bindparam, func, null, select, update

from customer_jobs.database import Transaction, given
from customer_jobs.lanes import is_leased_for_too_long
from customer_jobs.lifecycle.attempt import Claim, Row
from customer_jobs.lifecycle.claims import LEASE_SECONDS
from customer_jobs.schema import attempts, is_in_flight, jobs
from customer_jobs.sql import now
from customer_jobs.vocabulary import WAITING_STATES, State


def mark_dispatched(transaction: Transaction, job_ids: Sequence[str], *, token: str, lease_seconds: float) -> list[Row]:
    """Hand waiting jobs over to Celery under a short lease; those that were still waiting and not locked."""
    return transaction.rows(_dispatching(lease_seconds), {"given_ids": list(job_ids), "jobs_lease_token": token})


@cache
def _dispatching(lease_seconds: float) -> Executable:
    wanted = jobs.c.id.in_(bindparam("given_ids", expanding=True, type_=jobs.c.id.type))
    waiting = select(jobs.c.id).where(wanted, jobs.c.state.in_(WAITING_STATES)).with_for_update(skip_locked=True)
    leased = {"lease_token": given(jobs.c.lease_token), "lease_expires_at": now(lease_seconds)}
    values = {"state": State.DISPATCHED, **leased}
    return update(jobs).where(jobs.c.id.in_(waiting)).values(values).returning(jobs.c.id, jobs.c.kind)


def take_back(transaction: Transaction, job_ids: Sequence[str], *, token: str) -> int:
    """Let jobs that could not be published wait again at once; how many were still unclaimed. No attempt is used."""
    dispatched = jobs.c.state == State.DISPATCHED
    theirs = _not_locked(dispatched, jobs.c.id.in_(job_ids), jobs.c.lease_token == token)
    return transaction.change(_back_to_waiting().where(theirs))


def postpone(transaction: Transaction, job: Mapping[str, Any], *, delay_seconds: float) -> int:
    """Let a dispatched job that must not be tried yet wait again, as it was read. No attempt is used."""
    return transaction.change(_back_to_waiting(delay_seconds).where(*_as_read(job)))


def start_reconciling(transaction: Transaction, job: Mapping[str, Any]) -> int:
    """Let a dispatched job look for its customer instead of sending the create. No attempt is used."""
    return transaction.change(_back_to_waiting().where(*_as_read(job)).values(reconciling=True))


def _as_read(job: Mapping[str, Any]) -> tuple[ColumnElement[bool], ...]:
    # A row that plain SQL made to be dispatched may have no token.
    return jobs.c.id == job["id"], jobs.c.lease_token.is_not_distinct_from(job["lease_token"])


def rescue_unclaimed(transaction: Transaction) -> int:
    """Let jobs wait again that nobody claimed within their lease; how many. No attempt is used."""
    return transaction.change(_rescuing())


@cache
def _rescuing() -> Executable:
    overdue = is_in_flight(), jobs.c.state == State.DISPATCHED, jobs.c.lease_expires_at < now()
    return _back_to_waiting().where(_not_locked(*overdue))


def cut_short(transaction: Transaction) -> int:
    """Let the leases run out that nobody of ours can have taken; how many."""
    # A second ago: SQLite's clock counts milliseconds, and what runs out now has not run out yet.
    return transaction.change(update(jobs).where(is_leased_for_too_long()).values(lease_expires_at=now(-1)))


def expired(transaction: Transaction, limit: int, *, besides: Sequence[str] = ()) -> list[Claim]:
    """The attempts whose worker fell silent, as claims: whoever ends one must be faster than the worker's return.

    Without those at the jobs `besides`.
    """
    rows = transaction.rows(_expired(limit), {"besides": list(besides)})
    # Plain SQL may write a running job that never had an attempt.
    return [Claim(row, row["lease_token"], row["number"] or 0, row["began_at"]) for row in rows]


@cache
def _expired(limit: int) -> Executable:
    last = [
        select(func.max(column)).where(attempts.c.job_id == jobs.c.id).correlate(jobs).scalar_subquery().label(name)
        for column, name in ((attempts.c.number, "number"), (attempts.c.started_at, "began_at"))
    ]
    return (
        select(*jobs.c, *last)
        .where(is_in_flight(), jobs.c.state == State.RUNNING, jobs.c.lease_expires_at < now())
        .where(jobs.c.id.not_in(bindparam("besides", expanding=True, type_=jobs.c.id.type)))
        .limit(limit)
        .with_for_update(skip_locked=True, of=jobs)
    )


def extend(transaction: Transaction, held: Sequence[Claim], *, longest_seconds: float) -> int:
    """Push back the end of leases still held; how many. None is extended `longest_seconds` after its claim."""
    began = select(func.max(attempts.c.started_at)).where(attempts.c.job_id == jobs.c.id).correlate(jobs)
    theirs = _not_locked(
        jobs.c.id.in_([claim.job["id"] for claim in held]),
        jobs.c.lease_token.in_([claim.lease_token for claim in held]),
        jobs.c.state == State.RUNNING,
        began.scalar_subquery() > now(-longest_seconds),
    )
    return transaction.change(update(jobs).where(theirs).values(lease_expires_at=now(LEASE_SECONDS)))


def _not_locked(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """Those of these jobs that no open transaction holds: one that an app cancels must not keep all others waiting."""
    return jobs.c.id.in_(select(jobs.c.id).where(*conditions).with_for_update(skip_locked=True))


def _back_to_waiting(delay_seconds: float = 0) -> Update:
    return (
        update(jobs)
        .where(jobs.c.state == State.DISPATCHED)
        .values(state=State.RETRYING, due_at=now(delay_seconds), lease_token=null(), lease_expires_at=null())
    )
