"""How an attempt leaves its job: done, failed, or waiting for the next; with all that is written beside it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Executable,
    FromClause,
    Insert,
    Update,
    literal,
    null,
    select,
    update,
)

from customer_jobs.customers import copy_of, keeping, link_copy
from customer_jobs.database import Transaction, given, inserting, named
from customer_jobs.events import completion_event
from customer_jobs.lifecycle.attempt import Claim, Entry, Row, Success
from customer_jobs.lifecycle.ledger import complete_attempt, completing, first_sent_at, of_attempt
from customer_jobs.schema import customers, events, jobs
from customer_jobs.sql import now
from customer_jobs.vocabulary import Outcome, State


def succeed(transaction: Transaction, held: Claim, success: Success, entry: Entry) -> bool:
    """Record the end the job was made for; False if somebody else was faster.

    One statement on PostgreSQL, but for a job answered from the copy: that needs a transaction around it.
    """
    ending = {
        "outcome": success.outcome,
        "customer_id": success.customer.get("id"),
        "livemode": success.livemode,
        "result": success.result(),
    }
    # Nothing else that is told of a job changes while its lease is held.
    row = held.job | ending | {"state": State.SUCCEEDED, "error": None}
    from_copy = success.outcome in {Outcome.LINKED, Outcome.FRESH}
    copy = None if from_copy else copy_of(row, success.customer, asked_at=held.started_at)
    ended = _end_well(
        transaction,
        named(jobs, {"id": held.job["id"], "lease_token": held.lease_token} | ending),
        of_attempt(held, entry),
        named(events, completion_event(row, State.SUCCEEDED)),
        copy,
    )
    if ended and from_copy:
        link_copy(transaction, row)
    return ended


def _end_well(transaction: Transaction, job: Row, attempt: Row, event: Row, copy: Row | None) -> bool:
    how = None if copy is None else _Copying(is_stub=copy["deleted"], links=copy["external_id"] is not None)
    copied = {} if copy is None else named(customers, copy)
    if transaction.dialect_name != "sqlite":
        return transaction.row(_ending_well_in_one(how), job | attempt | event | copied) is not None
    transaction.change(completing(), attempt)
    if not transaction.change(_succeeding(), job):
        return False
    transaction.change(_emitting("sqlite"), event)
    if how is not None:
        transaction.change(keeping("sqlite", **how._asdict()), copied)
    return True


class _Copying(NamedTuple):
    is_stub: bool
    links: bool


@cache
def _ending_well_in_one(how: _Copying | None) -> Executable:
    ended = _succeeding().returning(jobs.c.id).cte("ended")
    parts = [completing().cte("completed"), _emitting("postgresql", beside=ended).cte("emitted")]
    if how is not None:
        parts.append(keeping("postgresql", **how._asdict(), beside=ended).cte("kept"))
    return select(ended.c.id).add_cte(*parts)


@cache
def _succeeding() -> Update:
    values = {"state": State.SUCCEEDED, "lease_token": null(), "lease_expires_at": null(), "error": null()}
    held = _holds(given(jobs.c.id), given(jobs.c.lease_token))
    ending = {name: given(jobs.c[name]) for name in ("outcome", "customer_id", "livemode", "result")}
    return update(jobs).where(*held).values(finished_at=now(), **values, **ending)


def retry_later(
    transaction: Transaction,
    held: Claim,
    entry: Entry,
    *,
    delay_seconds: float,
    error: Mapping[str, Any],
    attempt_used: bool = True,
    reconciling: bool | None = None,
    prepared_anew: bool = False,
) -> bool:
    """Record an attempt that is worth another, due in `delay_seconds`; False if the lease was lost."""
    complete_attempt(transaction, held, entry)
    row = change_job(
        transaction,
        *_holds(held.job["id"], held.lease_token),
        state=State.RETRYING,
        lease_token=null(),
        lease_expires_at=null(),
        due_at=now(delay_seconds),
        attempt=jobs.c.attempt if attempt_used else jobs.c.attempt - 1,
        reconciling=jobs.c.reconciling if reconciling is None else reconciling,
        first_sent_at=first_sent_at(stays=jobs.c.reconciling if reconciling is None else literal(reconciling)),
        error=dict(error),
        params=null() if prepared_anew else jobs.c.params,
    )
    return row is not None


def fail(
    transaction: Transaction,
    held: Claim,
    entry: Entry,
    *,
    error: Mapping[str, Any],
    result: Mapping[str, Any] | None = None,
) -> bool:
    """Record that the job cannot be done, with Stripe's refusal if there was one; False if the lease was lost."""
    complete_attempt(transaction, held, entry)
    return _fail(transaction, error, *_holds(held.job["id"], held.lease_token), result=result)


def fail_unclaimed(transaction: Transaction, job_id: str, *, error: Mapping[str, Any]) -> bool:
    """End a waiting job that cannot even be tried, such as one of an unknown kind."""
    return _fail(transaction, error, jobs.c.id == job_id, jobs.c.state.in_([State.QUEUED, State.RETRYING]))


def _fail(
    transaction: Transaction,
    error: Mapping[str, Any],
    *conditions: ColumnElement[bool],
    result: Mapping[str, Any] | None = None,
) -> bool:
    row = change_job(
        transaction,
        *conditions,
        state=State.FAILED,
        lease_token=null(),
        lease_expires_at=null(),
        finished_at=now(),
        first_sent_at=first_sent_at(stays=jobs.c.reconciling),
        result=null() if result is None else dict(result),
        error=dict(error),
    )
    if row is not None:
        emit_completion(transaction, row)
    return row is not None


def change_job(transaction: Transaction, *conditions: ColumnElement[bool], **values: Any) -> Row | None:
    statement = update(jobs).where(*conditions).values(**values).returning(*jobs.c)
    return transaction.row(statement)


def emit_completion(transaction: Transaction, row: Row) -> None:
    event = named(events, completion_event(row, State(row["state"])))
    transaction.change(_emitting(transaction.dialect_name), event)


@cache
def _emitting(dialect_name: str, *, beside: FromClause | None = None) -> Insert:
    statement: Insert = inserting(dialect_name, events, ("type", "subject", "data"), beside=beside)
    return statement


def _holds(job_id: str | BindParameter[Any], lease_token: str | BindParameter[Any]) -> tuple[ColumnElement[bool], ...]:
    return jobs.c.id == job_id, jobs.c.state == State.RUNNING, jobs.c.lease_token == lease_token
