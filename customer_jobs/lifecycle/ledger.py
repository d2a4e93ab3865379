"""The ledger of a job's attempts: how one ended, and what all of them say about the next."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import timedelta
from functools import cache
from itertools import takewhile
from typing import Any

from sqlalchemy import ColumnElement, Update, and_, case, exists, func, null, or_, select, update

from customer_jobs.database import Transaction, given, named
from customer_jobs.lifecycle.attempt import Claim, Entry, Row
from customer_jobs.schema import attempts, jobs
from customer_jobs.sql import now
from customer_jobs.vocabulary import Verdict


def complete_attempt(transaction: Transaction, held: Claim, entry: Entry) -> None:
    """Finish the ledger's row. A late writer does so too: the ledger holds every answer that Stripe gave."""
    transaction.change(completing(), of_attempt(held, entry))


def of_attempt(held: Claim, entry: Entry) -> Row:
    return named(attempts, {"job_id": held.job["id"], "number": held.number} | vars(entry))


@cache
def completing() -> Update:
    of_attempt = (attempts.c.job_id == given(attempts.c.job_id), attempts.c.number == given(attempts.c.number))
    values = {each.name: given(attempts.c[each.name]) for each in fields(Entry)}
    return update(attempts).where(*of_attempt).values(finished_at=now(), **values)


@dataclass(frozen=True)
class Past:
    """What the ledger says of a job so far, the attempt just completed included."""

    ambiguous: bool  #: Some attempt may have been executed.
    abandoned: int
    rate_limited: int  #: Rate-limited attempts in a row, up to the latest.
    rate_limited_for: timedelta  #: Since the first of that row.
    since_first_sent: timedelta | None


def past(transaction: Transaction, held: Claim, entry: Entry) -> Past:
    """What a decision about another attempt depends on, with `entry` as the end of the attempt held."""
    rows = transaction.rows(
        select(attempts.c.number, attempts.c.verdict, may_be_executed().label("ambiguous"), attempts.c.started_at)
        .where(attempts.c.job_id == held.job["id"], attempts.c.number <= held.number)
        .order_by(attempts.c.number)
    )
    if rows:
        rows[-1] |= {"verdict": entry.verdict, "ambiguous": entry.ambiguous}
    present = transaction.value(select(now()))
    limited = list(takewhile(lambda row: row["verdict"] == Verdict.RATE_LIMITED, reversed(rows)))
    first_sent_at = held.job["first_sent_at"]
    return Past(
        ambiguous=any(row["ambiguous"] for row in rows) or held.job["reconciling"],
        abandoned=sum(row["verdict"] == Verdict.ABANDONED for row in rows),
        rate_limited=len(limited),
        rate_limited_for=present - limited[-1]["started_at"] if limited else timedelta(0),
        since_first_sent=present - first_sent_at if first_sent_at is not None else None,
    )


def looks_since_sent(transaction: Transaction, held: Claim, error_code: str) -> tuple[int, bool]:
    """How many attempts ended with this code of ours since the create was last sent, and whether it was ever sent."""
    sent = _last_sent(transaction, held)
    these = (*_before(held), attempts.c.number > (sent or 0), attempts.c.error_code == error_code)
    return int(transaction.value(select(func.count()).select_from(attempts).where(*these))), sent is not None


def tries_since_sent(transaction: Transaction, held: Claim) -> int:
    """How many attempts have led to another since the create was last sent, but for those that a limit turned away."""
    these = (*_before(held), attempts.c.number > (_last_sent(transaction, held) or 0))
    retried = select(func.count()).select_from(attempts).where(*these, attempts.c.verdict == Verdict.RETRY.value)
    return int(transaction.value(retried))


def _last_sent(transaction: Transaction, held: Claim) -> int | None:
    sent = select(func.max(attempts.c.number)).where(*_before(held), attempts.c.idempotency_key.is_not(None))
    number: int | None = transaction.value(sent)
    return number


def _before(held: Claim) -> tuple[ColumnElement[bool], ...]:
    return attempts.c.job_id == held.job["id"], attempts.c.number < held.number


def may_be_executed() -> ColumnElement[bool]:
    """Whether an attempt may have made a customer: its answer is unknown, or it is known and came too late to count."""
    # Only a create has a key. One that succeeded ended its job, unless somebody else had taken the job over.
    succeeded = and_(attempts.c.verdict == Verdict.SUCCEEDED, attempts.c.idempotency_key.is_not(None))
    return or_(attempts.c.ambiguous, succeeded)


def first_sent_at(stays: ColumnElement[bool]) -> ColumnElement[Any]:
    """Unchanged while something is still to be found out about an attempt, null once certainly none was executed."""
    unknown = exists().where(attempts.c.job_id == jobs.c.id, may_be_executed()).correlate(jobs)
    return case((or_(unknown, stays), jobs.c.first_sent_at), else_=null())
