"""The changes of a job's state, each one guarded statement with what must be written beside it in the same transaction.

The caller owns the transaction. A change that comes too late (the lease was lost, the job is final) changes nothing and
says so. Who decides *which* change is due lives elsewhere: the runner for attempts, the dispatcher for leases.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from functools import cache
from itertools import takewhile
from typing import Any, NamedTuple

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Executable,
    FromClause,
    Insert,
    Table,
    Update,
    bindparam,
    case,
    exists,
    func,
    literal,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.sql.dml import ReturningInsert

from customer_jobs.customers import copy_of, keeping, link_copy
from customer_jobs.database import Transaction, given, inserting
from customer_jobs.events import completion_event
from customer_jobs.problems import Problem
from customer_jobs.schema import attempts, credentials, customers, events, is_in_flight, is_waiting, jobs
from customer_jobs.sql import now
from customer_jobs.vocabulary import KEY_REFUSED, WAITING_STATES, Kind, Outcome, State, Verdict

Row = dict[str, Any]  #: A row by the names of its columns.

LEASE_SECONDS = 15  #: A worker that was killed is noticed within this; it extends its leases every 5 s.


@dataclass(frozen=True)
class Claim:
    """The right to record one attempt at a job: whoever else holds another token is too late."""

    job: Row  #: The row as the claim left it.
    lease_token: str
    number: int  #: Of the attempt, in the ledger.
    started_at: datetime  #: Of the attempt.
    key_fingerprint: str | None = None  #: Of the Stripe key that the attempt is made with.


@dataclass(frozen=True)
class Sending:
    """What an attempt is about to send."""

    params: str  #: JSON text; kept only by the first attempt.
    sent_to: str  #: Stripe account id or key fingerprint.
    idempotency_key: str | None
    may_create: bool  #: Whether Stripe could make a customer of it.
    uses_attempt: bool = True  #: Looking for a customer uses none.


@dataclass(frozen=True)
class Entry:
    """What the ledger keeps of an attempt that came to an end."""

    verdict: Verdict
    ambiguous: bool = False
    http_status: int | None = None
    error_type: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    request_id: str | None = None
    rate_limited_reason: str | None = None
    replayed: bool = False
    duration_ms: float | None = None


@dataclass(frozen=True)
class Success:
    """How a job ends well."""

    outcome: Outcome
    customer: Mapping[str, Any]  #: Stripe's whole object.
    headers: Mapping[str, str]
    livemode: bool

    def result(self) -> dict[str, Any]:
        return {
            "customer_id": self.customer.get("id"),
            "customer_email": self.customer.get("email"),
            "response": dict(self.customer),
            "headers": dict(self.headers),
        }


def refusal(response: Mapping[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
    """The `result` of a job that Stripe refused: its parsed error body, and no customer."""
    return {"customer_id": None, "customer_email": None, "response": dict(response), "headers": dict(headers)}


def success_of(
    kind: str, customer: Mapping[str, Any], *, headers: Mapping[str, str], replayed: bool, key_is_live: bool
) -> Success:
    """How a job of a kind ends when Stripe answers with this customer."""
    if kind == Kind.CUSTOMER_CREATE:
        outcome = Outcome.REPLAYED if replayed else Outcome.CREATED
    else:
        outcome = Outcome.DELETED if customer.get("deleted") is True else Outcome.FOUND
    livemode = customer.get("livemode")
    # A deleted customer's stub does not say; the key does.
    return Success(outcome, customer, headers, livemode if isinstance(livemode, bool) else key_is_live)


def entry_of(verdict: Verdict, problem: Problem) -> Entry:
    """The end of an attempt that met a problem."""
    return Entry(
        verdict,
        http_status=problem.http_status,
        error_type=problem.type,
        error_code=problem.code,
        error_message=problem.message,
        request_id=problem.request_id,
    )


def read(transaction: Transaction, job_id: str) -> Row | None:
    """The row of a job, whatever its state.

    Beside its columns: `read_at`, by the database's clock, and of its credential `key_paused_at` and `key_fingerprint`.
    """
    return transaction.row(_reading(), {"jobs_id": job_id})


# The statements that every job passes are built once: building them anew took longer than executing them.
@cache
def _reading() -> Executable:
    of_credential = (credentials.c.paused_at.label("key_paused_at"), credentials.c.key_fingerprint)
    return (
        select(*jobs.c, now().label("read_at"), *of_credential)
        .outerjoin(credentials, credentials.c.name == jobs.c.credential)
        .where(jobs.c.id == given(jobs.c.id))
    )


def claim(transaction: Transaction, job_id: str, *, worker: str, sending: Sending | None) -> Claim | None:
    """Take a dispatched job for one attempt, or None: somebody else has it, or it is no longer to be done.

    What is about to be sent to Stripe is written down before it is sent; `sending` is None where nothing will be sent.
    """
    token = str(uuid.uuid4())
    job = {"id": job_id, "lease_token": token}
    if sending is None:
        how = _How(sends=False, may_create=False, uses_attempt=True)
    else:
        how = _How(sends=True, may_create=sending.may_create, uses_attempt=sending.uses_attempt)
        job |= {"params": sending.params, "sent_to": sending.sent_to}
    attempt = {
        "job_id": job_id,
        # Until its end is recorded a create may have been executed: a crash leaves the truth behind.
        "ambiguous": how.may_create,
        "idempotency_key": sending.idempotency_key if sending is not None else None,
        "worker": worker,
    }
    begun = _begin(transaction, how, _named(jobs, job), _named(attempts, attempt))
    if begun is None:
        return None
    number, began_at = begun.pop("number"), begun.pop("began_at")
    return Claim(begun, lease_token=token, number=number, started_at=began_at)


class _How(NamedTuple):
    sends: bool
    may_create: bool
    uses_attempt: bool


def _begin(transaction: Transaction, how: _How, job: Row, attempt: Row) -> Row | None:
    """The job's row and, beside its columns, `number` and `began_at` of the attempt."""
    if transaction.dialect_name != "sqlite":
        return transaction.row(_beginning_in_one(how), job | attempt)
    row = transaction.row(_claiming(how).returning(*jobs.c), job)
    return None if row is None else row | transaction.rows(_beginning("sqlite"), attempt)[0]


@cache
def _beginning_in_one(how: _How) -> Executable:
    claimed = _claiming(how).returning(*jobs.c).cte("claimed")
    begun = _beginning("postgresql", beside=claimed).cte("begun")
    return select(*claimed.c, *begun.c).join_from(claimed, begun, true())


@cache
def _claiming(how: _How) -> Update:
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
    return update(jobs).where(jobs.c.id == given(jobs.c.id), jobs.c.state == State.DISPATCHED).values(values)


@cache
def _beginning(dialect_name: str, *, beside: FromClause | None = None) -> ReturningInsert[Any]:
    of_job = attempts.c.job_id == given(attempts.c.job_id)
    number = select(func.coalesce(func.max(attempts.c.number), 0) + 1).where(of_job).scalar_subquery()
    names = ("job_id", "ambiguous", "idempotency_key", "worker")
    statement = inserting(dialect_name, attempts, names, computed={"number": number}, beside=beside)
    begun: ReturningInsert[Any] = statement.returning(attempts.c.number, attempts.c.started_at.label("began_at"))
    return begun


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
    return transaction.change(_back_to_waiting().where(jobs.c.id.in_(job_ids), jobs.c.lease_token == token))


def postpone(transaction: Transaction, job_id: str, *, delay_seconds: float) -> int:
    """Let a dispatched job that must not be tried yet wait again. No attempt is used."""
    return transaction.change(_back_to_waiting(delay_seconds).where(jobs.c.id == job_id))


def start_reconciling(transaction: Transaction, job_id: str) -> int:
    """Let a dispatched job look for its customer instead of sending the create. No attempt is used."""
    return transaction.change(_back_to_waiting().where(jobs.c.id == job_id).values(reconciling=True))


def looks_since_sent(transaction: Transaction, held: Claim, error_code: str) -> tuple[int, bool]:
    """How many attempts ended with this code of ours since the create was last sent, and whether it was ever sent."""
    of_job = (attempts.c.job_id == held.job["id"], attempts.c.number < held.number)
    sent = transaction.value(
        select(func.max(attempts.c.number)).where(*of_job, attempts.c.idempotency_key.is_not(None))
    )
    since = (attempts.c.number > (sent or 0), attempts.c.error_code == error_code)
    return int(transaction.value(select(func.count()).select_from(attempts).where(*of_job, *since))), sent is not None


def rescue_unclaimed(transaction: Transaction) -> int:
    """Let jobs wait again that nobody claimed within their lease; how many. No attempt is used."""
    return transaction.change(_rescuing())


@cache
def _rescuing() -> Executable:
    return _back_to_waiting().where(jobs.c.lease_expires_at < now())


def expired(transaction: Transaction, limit: int) -> list[Claim]:
    """The attempts whose worker fell silent, as claims: whoever ends one must be faster than the worker's return."""
    rows = transaction.rows(_expired(limit))
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
        .limit(limit)
        .with_for_update(skip_locked=True, of=jobs)
    )


def extend(transaction: Transaction, held: Sequence[Claim], *, longest_seconds: float) -> int:
    """Push back the end of leases still held; how many. None is extended `longest_seconds` after its claim."""
    began = select(func.max(attempts.c.started_at)).where(attempts.c.job_id == jobs.c.id).correlate(jobs)
    statement = update(jobs).where(
        jobs.c.id.in_([claim.job["id"] for claim in held]),
        jobs.c.lease_token.in_([claim.lease_token for claim in held]),
        jobs.c.state == State.RUNNING,
        began.scalar_subquery() > now(-longest_seconds),
    )
    return transaction.change(statement.values(lease_expires_at=now(LEASE_SECONDS)))


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
        select(attempts.c.number, attempts.c.verdict, attempts.c.ambiguous, attempts.c.started_at)
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


def succeed(transaction: Transaction, held: Claim, success: Success, entry: Entry) -> bool:
    """Record the end the job was made for; False if somebody else was faster."""
    ending = {
        "outcome": success.outcome,
        "customer_id": success.customer.get("id"),
        "livemode": success.livemode,
        "result": success.result(),
    }
    # Nothing else of a job changes while its lease is held.
    row = held.job | ending | {"state": State.SUCCEEDED, "error": None}
    from_copy = success.outcome in {Outcome.LINKED, Outcome.FRESH}
    copy = None if from_copy else copy_of(row, success.customer, asked_at=held.started_at)
    ended = _end_well(
        transaction,
        _named(jobs, {"id": held.job["id"], "lease_token": held.lease_token} | ending),
        _of_attempt(held, entry),
        _named(events, completion_event(row, State.SUCCEEDED)),
        copy,
    )
    if ended and from_copy:
        link_copy(transaction, row)
    return ended


def _end_well(transaction: Transaction, job: Row, attempt: Row, event: Row, copy: Row | None) -> bool:
    how = None if copy is None else _Copying(is_stub=copy["deleted"], links=copy["external_id"] is not None)
    copied = {} if copy is None else _named(customers, copy)
    if transaction.dialect_name != "sqlite":
        return transaction.row(_ending_well_in_one(how), job | attempt | event | copied) is not None
    transaction.change(_completing(), attempt)
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
    parts = [_completing().cte("completed"), _emitting("postgresql", beside=ended).cte("emitted")]
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
    row = _change(
        transaction,
        *_holds(held.job["id"], held.lease_token),
        state=State.RETRYING,
        lease_token=null(),
        lease_expires_at=null(),
        due_at=now(delay_seconds),
        attempt=jobs.c.attempt if attempt_used else jobs.c.attempt - 1,
        reconciling=jobs.c.reconciling if reconciling is None else reconciling,
        first_sent_at=_first_sent_at(stays=jobs.c.reconciling if reconciling is None else literal(reconciling)),
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
    """End a waiting job that cannot even be tried, such as a row that cannot be read."""
    return _fail(transaction, error, jobs.c.id == job_id, jobs.c.state.in_([State.QUEUED, State.RETRYING]))


def cancel(transaction: Transaction, job_id: str) -> bool:
    """Take a waiting job back; False once Stripe may have heard of it, or when it is not waiting."""
    row = _change(
        transaction,
        jobs.c.id == job_id,
        jobs.c.state.in_([State.QUEUED, State.RETRYING]),
        jobs.c.first_sent_at.is_(None),
        state=State.CANCELLED,
        finished_at=now(),
    )
    if row is not None:
        _emit(transaction, row)
    return row is not None


def retry_by_hand(transaction: Transaction, failed: Row, *, candidate_customer_id: str | None = None) -> Row | None:
    """The new job that takes a failed one's place, or None: it has one already, or its external_id went elsewhere.

    Where Stripe may have executed the old job, the new one begins by looking for the customer.
    """
    taken_over = (
        "kind", "payload", "context", "external_id", "credential", "stripe_account", "priority", "max_attempts",
        "first_sent_at", "sent_to", "traceparent",
    )  # fmt: skip
    unknown = failed["first_sent_at"] is not None
    values = {name: failed[name] for name in taken_over} | {
        "retry_of": failed["id"],
        "reconciling": unknown,
        # Frozen parameters hold the old job's id; what was certainly not executed is prepared anew.
        "params": failed["params"] if unknown else None,
        "candidate_customer_id": candidate_customer_id or failed["candidate_customer_id"],
        "customer_id": failed["customer_id"] if failed["kind"] == Kind.CUSTOMER_FETCH else None,
    }
    if (failed["error"] or {}).get("http_status") in {401, 403}:
        # Whoever tries again says that the key, for which the others wait, may do it now.
        refused = credentials.c.reason.startswith(KEY_REFUSED)
        of_job = update(credentials).where(credentials.c.name == failed["credential"], refused)
        transaction.change(of_job.values(paused_at=null(), reason=null()))
    transaction.change(update(jobs).where(jobs.c.id == failed["id"]).values(external_id=None))
    statement = transaction.insert(jobs).values(**values).on_conflict_do_nothing()
    made = transaction.row(statement.returning(*jobs.c))
    if made is None:
        transaction.change(update(jobs).where(jobs.c.id == failed["id"]).values(external_id=failed["external_id"]))
    return made


def latest_retry(transaction: Transaction, job_id: str) -> Row | None:
    """The row of a job, or of the last one that was made to retry it by hand."""
    row = read(transaction, job_id)
    while row is not None and (of := transaction.row(select(jobs.c.id).where(jobs.c.retry_of == row["id"]))):
        row = read(transaction, of["id"])
    return row


def suggest(transaction: Transaction, job_id: str, customer_id: str) -> int:
    """Let a job that looks for its customer begin with this one, at once."""
    # A retry by hand of a job that may have been executed is one, too, before its first attempt.
    waiting = (is_waiting(), jobs.c.first_sent_at.is_not(None))
    values = {"candidate_customer_id": customer_id, "due_at": now(), "reconciling": True}
    return transaction.change(update(jobs).where(jobs.c.id == job_id, *waiting).values(**values))


def complete_attempt(transaction: Transaction, held: Claim, entry: Entry) -> None:
    """Finish the ledger's row. A late writer does so too: the ledger holds every answer that Stripe gave."""
    transaction.change(_completing(), _of_attempt(held, entry))


def _of_attempt(held: Claim, entry: Entry) -> Row:
    return _named(attempts, {"job_id": held.job["id"], "number": held.number} | asdict(entry))


@cache
def _completing() -> Update:
    of_attempt = (attempts.c.job_id == given(attempts.c.job_id), attempts.c.number == given(attempts.c.number))
    values = {each.name: given(attempts.c[each.name]) for each in fields(Entry)}
    return update(attempts).where(*of_attempt).values(finished_at=now(), **values)


def _named(table: Table, values: Mapping[str, Any]) -> Row:
    return {f"{table.name}_{name}": value for name, value in values.items()}


def _back_to_waiting(delay_seconds: float = 0) -> Update:
    return (
        update(jobs)
        .where(jobs.c.state == State.DISPATCHED)
        .values(state=State.RETRYING, due_at=now(delay_seconds), lease_token=null(), lease_expires_at=null())
    )


def _fail(
    transaction: Transaction,
    error: Mapping[str, Any],
    *conditions: ColumnElement[bool],
    result: Mapping[str, Any] | None = None,
) -> bool:
    row = _change(
        transaction,
        *conditions,
        state=State.FAILED,
        lease_token=null(),
        lease_expires_at=null(),
        finished_at=now(),
        first_sent_at=_first_sent_at(stays=jobs.c.reconciling),
        result=null() if result is None else dict(result),
        error=dict(error),
    )
    if row is not None:
        _emit(transaction, row)
    return row is not None


def _change(transaction: Transaction, *conditions: ColumnElement[bool], **values: Any) -> Row | None:
    statement = update(jobs).where(*conditions).values(**values).returning(*jobs.c)
    return transaction.row(statement)


def _emit(transaction: Transaction, row: Row) -> None:
    event = _named(events, completion_event(row, State(row["state"])))
    transaction.change(_emitting(transaction.dialect_name), event)


@cache
def _emitting(dialect_name: str, *, beside: FromClause | None = None) -> Insert:
    statement: Insert = inserting(dialect_name, events, ("type", "subject", "data"), beside=beside)
    return statement


def _holds(job_id: str | BindParameter[Any], lease_token: str | BindParameter[Any]) -> tuple[ColumnElement[bool], ...]:
    return jobs.c.id == job_id, jobs.c.state == State.RUNNING, jobs.c.lease_token == lease_token


def _first_sent_at(stays: ColumnElement[bool]) -> ColumnElement[Any]:
    """Unchanged while something is still to be found out about an attempt, null once certainly none was executed."""
    unknown = exists().where(attempts.c.job_id == jobs.c.id, attempts.c.ambiguous).correlate(jobs)
    return case((or_(unknown, stays), jobs.c.first_sent_at), else_=null())
