"""Taking a job for one attempt: it is read, and then claimed by whoever is first."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Executable, FromClause, bindparam, case, func, select, true, update
from sqlalchemy.sql.dml import ReturningInsert, ReturningUpdate

from customer_jobs.database import Transaction, given, inserting, named
from customer_jobs.lifecycle.attempt import Claim, Row, Sending
from customer_jobs.schema import attempts, credentials, jobs
from customer_jobs.sql import now
from customer_jobs.vocabulary import State

LEASE_SECONDS = 15  #: A worker that was killed is noticed within this; it extends its leases every 5 s.


def read(transaction: Transaction, job_id: str) -> Row | None:
    """The row of a job, whatever its state.

    Beside its columns: `read_at`, by the database's clock, and of its credential `key_paused_at`, `key_fingerprint` and
    `account_id`.
    """
    return transaction.row(_reading(), {"jobs_id": job_id})


# The statements that every job passes are built once: building them anew took longer than executing them.
@cache
def _reading() -> Executable:
    of_credential = (
        credentials.c.paused_at.label("key_paused_at"),
        credentials.c.key_fingerprint,
        credentials.c.account_id,
    )
    return (
        select(*jobs.c, now().label("read_at"), *of_credential)
        .outerjoin(credentials, credentials.c.name == jobs.c.credential)
        .where(jobs.c.id == given(jobs.c.id))
    )


def claim(transaction: Transaction, job: Mapping[str, Any], *, worker: str, sending: Sending | None) -> Claim | None:
    """Take a dispatched job for one attempt, or None: somebody else has it, or it is no longer to be done.

    `job` is its row as it was read: what was decided then no longer holds once the job, meanwhile, has been on its way
    again, under another lease token. One without a token, which only plain SQL writes, is rescued instead. What is
    about to be sent to Stripe is written down before it is sent; `sending` is None where nothing will be sent.
    """
    token = str(uuid.uuid4())
    claimed = {"id": job["id"], "lease_token": token, "dispatched_as": job["lease_token"]}
    how = _How()
    if sending is not None:
        how = _How(sends=True, may_create=sending.may_create, uses_attempt=sending.uses_attempt)
        claimed |= {"params": sending.params, "sent_to": sending.sent_to}
    attempt = {
        "job_id": job["id"],
        # Until its end is recorded a create may have been executed: a crash leaves the truth behind.
        "ambiguous": how.may_create,
        "idempotency_key": sending.idempotency_key if sending is not None else None,
        "worker": worker,
    }
    begun = _begin(transaction, how, named(jobs, claimed), named(attempts, attempt))
    if begun is None:
        return None
    number, began_at = begun.pop("number"), begun.pop("began_at")
    return Claim({**job, **begun}, lease_token=token, number=number, started_at=began_at)


class _How(NamedTuple):
    sends: bool = False
    may_create: bool = False
    uses_attempt: bool = True


def _begin(transaction: Transaction, how: _How, job: Row, attempt: Row) -> Row | None:
    """What the claim changed of the job and, beside it, `number` and `began_at` of the attempt."""
    if transaction.dialect_name != "sqlite":
        return transaction.row(_beginning_in_one(how), job | attempt)
    row = transaction.row(_claiming(how), job)
    return None if row is None else row | transaction.rows(_beginning("sqlite"), attempt)[0]


@cache
def _beginning_in_one(how: _How) -> Executable:
    claimed = _claiming(how).cte("claimed")
    begun = _beginning("postgresql", beside=claimed).cte("begun")
    return select(*claimed.c, *begun.c).join_from(claimed, begun, true())


@cache
def _claiming(how: _How) -> ReturningUpdate[Any]:
    """Returns the columns that it changes, and the one that webhooks change in a job that is dispatched or running."""
    values: dict[str, Any] = {
        "state": State.RUNNING,
        "lease_token": given(jobs.c.lease_token),
        "lease_expires_at": now(LEASE_SECONDS),
        # Never beyond what it may use up, which plain SQL may have written to be all that the column can hold.
        "attempt": case(
            (jobs.c.attempt < jobs.c.max_attempts, jobs.c.attempt + int(how.uses_attempt)), else_=jobs.c.attempt
        ),
        "started_at": func.coalesce(jobs.c.started_at, now()),
    }
    if how.sends:
        values["params"] = func.coalesce(jobs.c.params, given(jobs.c.params))
        values["sent_to"] = case((jobs.c.first_sent_at.is_(None), given(jobs.c.sent_to)), else_=jobs.c.sent_to)
    if how.may_create:
        values["first_sent_at"] = func.coalesce(jobs.c.first_sent_at, now())
    is_as_read = jobs.c.lease_token == bindparam("jobs_dispatched_as", type_=jobs.c.lease_token.type)
    conditions = (jobs.c.id == given(jobs.c.id), jobs.c.state == State.DISPATCHED, is_as_read)
    claiming = update(jobs).where(*conditions).values(values)
    returning: ReturningUpdate[Any] = claiming.returning(
        *(jobs.c[name] for name in values), jobs.c.candidate_customer_id
    )
    return returning


@cache
def _beginning(dialect_name: str, *, beside: FromClause | None = None) -> ReturningInsert[Any]:
    of_job = attempts.c.job_id == given(attempts.c.job_id)
    number = select(func.coalesce(func.max(attempts.c.number), 0) + 1).where(of_job).scalar_subquery()
    names = ("job_id", "ambiguous", "idempotency_key", "worker")
    statement = inserting(dialect_name, attempts, names, computed={"number": number}, beside=beside)
    begun: ReturningInsert[Any] = statement.returning(attempts.c.number, attempts.c.started_at.label("began_at"))
    return begun
