"""CustomerJobs: how an app puts jobs into the table and looks at them; it speaks to the database and nothing else."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import groupby, islice
from typing import Any

from sqlalchemy import Connection, Engine, Select, and_, desc, literal_column, or_, select, update
from sqlalchemy.engine import URL
from sqlalchemy.orm import Session

from customer_jobs import lifecycle, payload
from customer_jobs.database import (
    Transaction,
    database_url,
    in_our_schema,
    open_engine,
    reading,
    writing,
)
from customer_jobs.environment import setting
from customer_jobs.errors import ConflictError, InvalidJob, InvalidSetting, NotRetryable, UnknownJob
from customer_jobs.job import Customer, Job, attempt_from_row, customer_from_row, job_from_row
from customer_jobs.schema import HOLDS_EXTERNAL_ID, attempts, customers, job_account, jobs
from customer_jobs.sql import Unreadable, is_one_of, now
from customer_jobs.vocabulary import Kind, State

BATCH_SIZE = 500  #: Rows in one INSERT; PostgreSQL takes 65,535 parameters.
FIRST_LOOK_SECONDS = 0.01  #: `wait` looks often at first, for the person who waits, …
LAST_LOOK_SECONDS = 0.25  #: … and then four times a second, for the database that has to answer.
LONGEST_LIST = 10_000  #: What `list` returns at most; a page of the table, not the table.

Row = dict[str, Any]


class CustomerJobs:
    """Enqueues, shows, retries and cancels jobs.

    Give it the app's SQLAlchemy engine, a URL, or nothing: then DATABASE_URL says where the table is. With `session=`
    (a SQLAlchemy Session or Connection) everything a call does goes through it: no second connection, no commit, and
    a rollback takes the job along. Without it each call is a transaction of its own.

    Raises InvalidJob, which names the field, before anything is written; Unavailable when the database is out of reach.
    """

    def __init__(self, engine_or_url: Engine | str | URL | None = None, *, schema: str | None = None) -> None:
        if isinstance(engine_or_url, Engine):
            self.engine = in_our_schema(engine_or_url, schema)
        else:
            self.engine = open_engine(engine_or_url or database_url(), schema=schema)
        self._schema = schema

    def create_customer(
        self,
        body: Mapping[str, Any],
        *,
        external_id: str | None = None,
        credential: str = "default",
        stripe_account: str | None = None,
        priority: str | int = "default",
        due_at: datetime | None = None,
        context: Any = None,
        session: Session | Connection | None = None,
    ) -> Job:
        """The job that will create a customer with Stripe's parameters in `body`.

        `external_id`, the app's own id for the customer, is unique per credential and account: the same id with the
        same body is the same job, another body raises ConflictError and leaves the caller's transaction usable.

        Source: https://docs.stripe.com/api/customers/create
        """
        row = _create_row(
            body,
            external_id=external_id,
            credential=credential,
            stripe_account=stripe_account,
            priority=priority,
            due_at=due_at,
            context=context,
        )
        with self._transaction(session) as transaction:
            return self._insert(transaction, [row])[0]

    def create_customers(
        self, rows: Iterable[Mapping[str, Any]], *, session: Session | Connection | None = None
    ) -> list[Job]:
        """The jobs of many creates, in their order, all or none.

        Each row is a mapping with `body` and, if wanted, the other arguments of `create_customer`.
        """
        checked = [_row_of(index, row) for index, row in enumerate(rows)]
        with self._transaction(session) as transaction, transaction.savepoint():
            return list(self._insert(transaction, checked))

    def fetch_customer(
        self,
        customer_id: str,
        *,
        expand: Sequence[str] = (),
        max_age_seconds: float | None = None,
        external_id: str | None = None,
        credential: str = "default",
        stripe_account: str | None = None,
        priority: str | int = "default",
        due_at: datetime | None = None,
        context: Any = None,
        session: Session | Connection | Transaction | None = None,
    ) -> Job:
        """The job that will fetch a customer; an equal one that is still waiting is that job.

        With `max_age_seconds` a local copy that young is answer enough. An `external_id` links: a later create with it
        succeeds without a call.

        Source: https://docs.stripe.com/api/customers/retrieve
        """
        row = _row(
            Kind.CUSTOMER_FETCH,
            payload.check_fetch(customer_id, expand, max_age_seconds),
            external_id=external_id,
            credential=credential,
            stripe_account=stripe_account,
            priority=priority,
            due_at=due_at,
            context=context,
        )
        with self._transaction(session) as transaction:
            return self._equal_waiting_fetch(transaction, row) or self._insert(transaction, [row])[0]

    def enqueue(
        self,
        kind: str,
        job_payload: Any,
        *,
        job_id: str | uuid.UUID | None = None,
        session: Session | Connection | None = None,
        **options: Any,
    ) -> Job:
        """The job of a kind and payload as the table has them, for doors that carry both unseen.

        With `job_id` it happens once: the same id again is the same job. `options` are those of `create_customer`.
        """
        if job_id is not None and (job_id := as_uuid(job_id)) is None:
            raise InvalidJob("job_id", "must be a UUID")
        checked = payload.check_payload(kind, job_payload)
        row = _row(Kind(kind), checked, job_id=job_id, **options)
        with self._transaction(session) as transaction:
            return self._insert(transaction, [row])[0]

    def get(self, job_id: str | uuid.UUID, *, session: Session | Connection | None = None) -> Job | None:
        """The job with its attempts, or None."""
        if (known := as_uuid(job_id)) is None:
            return None
        with self._transaction(session, only_reads=True) as transaction:
            found = transaction.rows(select(*jobs.c).where(jobs.c.id == known))
            if not found:
                return None
            calls = transaction.rows(select(*attempts.c).where(attempts.c.job_id == known).order_by(attempts.c.number))
        return job_from_row(found[0], tuple(attempt_from_row(call) for call in calls))

    def list(
        self,
        *,
        state: str | Iterable[str] | None = None,
        kind: str | None = None,
        credential: str | None = None,
        stripe_account: str | None = None,
        external_id: str | None = None,
        customer_id: str | None = None,
        request_id: str | None = None,
        limit: int = 50,
        before: Job | None = None,
        session: Session | Connection | None = None,
    ) -> list[Job]:
        """The latest jobs first, without their attempts; pass the last one as `before` for the next page.

        `customer_id` finds by cus_…, `request_id` by req_….
        """
        query: Select[Any] = select(*jobs.c).order_by(desc(jobs.c.created_at), desc(jobs.c.id))
        if state is not None:
            query = query.where(is_one_of(jobs.c.state, _states(state)))
        equal = {"kind": kind, "credential": credential, "stripe_account": stripe_account}
        for name, value in (equal | {"external_id": external_id, "customer_id": customer_id}).items():
            if value is not None:
                query = query.where(jobs.c[name] == value)
        if request_id is not None:
            query = query.where(jobs.c.id.in_(select(attempts.c.job_id).where(attempts.c.request_id == request_id)))
        if before is not None:
            older = and_(jobs.c.created_at == before.created_at, jobs.c.id < before.id)
            query = query.where(or_(jobs.c.created_at < before.created_at, older))
        if not 1 <= limit <= LONGEST_LIST:
            raise InvalidJob("limit", f"must be 1 to {LONGEST_LIST:,}, not {limit}")
        with self._transaction(session, only_reads=True) as transaction:
            return [job_from_row(row) for row in transaction.rows(query.limit(limit))]

    def retry(self, job_id: str | uuid.UUID, *, session: Session | Connection | None = None) -> Job:
        """The new job that tries a failed one again, with `retry_of` set; asked twice, the same one.

        It takes over external_id and context. If Stripe may have executed the old one, the new one first looks for the
        customer. Raises UnknownJob, or NotRetryable for a job that did not fail.
        """
        with self._transaction(session) as transaction:
            old = self._one(transaction, job_id)
            if old["state"] != State.FAILED:
                raise NotRetryable(f"job {old['id']} is {old['state']}; only a failed job can be retried")
            successor = transaction.rows(select(*jobs.c).where(jobs.c.retry_of == old["id"]))
            if successor:
                return job_from_row(successor[0])
            if old["body_digest"] is not None or old["payload"] == {}:
                raise NotRetryable(
                    f"job {old['id']} was emptied, by `forget` or after RETENTION_DAYS; look at Stripe for a customer "
                    "whose metadata customer_jobs_id is its id, and link it: "
                    "`customer-jobs fetch <customer id> --external-id <id>`"
                )
            if isinstance(old["payload"], Unreadable):
                raise NotRetryable(
                    f"the payload of job {old['id']} cannot be read ({old['payload'].problem}); "
                    "enqueue a job with what it should have said"
                )
            with transaction.savepoint():
                made = lifecycle.retry_by_hand(transaction, old)
                if made is None:
                    raise NotRetryable(
                        f"the external_id of job {old['id']} has gone to another job since; "
                        f"`customer-jobs list --external-id {old['external_id']}` shows it"
                    )
                return job_from_row(made)

    def cancel(self, job_id: str | uuid.UUID, *, session: Session | Connection | None = None) -> bool:
        """Whether the job was taken back: only while it waits and Stripe cannot have heard of it. Raises UnknownJob."""
        with self._transaction(session) as transaction:
            job = self._one(transaction, job_id)
            return lifecycle.cancel(transaction, job["id"])

    def wait(self, job_id: str | uuid.UUID, timeout_seconds: float = 60) -> Job:
        """The job once it is final, or as it stands when the time is up: read `state`.

        Never raises for a failed job; raises UnknownJob where there is none.
        """
        deadline = time.monotonic() + timeout_seconds
        pause = FIRST_LOOK_SECONDS
        while True:
            job = self.get(job_id)
            if job is None:
                raise UnknownJob(job_id)
            left = deadline - time.monotonic()
            if job.final or left <= 0:
                return job
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, LAST_LOOK_SECONDS)

    def customer(
        self,
        customer_id: str | None = None,
        *,
        external_id: str | None = None,
        credential: str = "default",
        stripe_account: str | None = None,
        session: Session | Connection | None = None,
    ) -> Customer | None:
        """The local copy of a customer, by Stripe's id or by the app's own, or None."""
        if (customer_id is None) == (external_id is None):
            raise InvalidJob("customer_id", "give either a customer id or an external_id")
        wanted = customers.c.id == customer_id if customer_id else customers.c.external_id == external_id
        account = stripe_account or ""
        query = (
            select(*customers.c)
            .where(wanted, customers.c.credential == credential, customers.c.stripe_account == account)
            .order_by(desc(customers.c.fetched_at))
            .limit(1)
        )
        with self._transaction(session, only_reads=True) as transaction:
            found = transaction.rows(query)
        return customer_from_row(found[0]) if found else None

    def _insert(self, transaction: Transaction, rows: Sequence[Row]) -> Sequence[Job]:
        made: dict[str, Row] = {}
        statement = transaction.insert(jobs).on_conflict_do_nothing().returning(*jobs.c)
        # One INSERT fills the same columns in every row; a column that a row leaves out gets the table's default.
        for _, alike in groupby(sorted(rows, key=sorted), key=sorted):
            while batch := list(islice(alike, BATCH_SIZE)):
                made |= {row["id"]: row for row in transaction.rows(statement, batch)}
        return [self._job(transaction, row, made.get(row["id"])) for row in rows]

    def _job(self, transaction: Transaction, row: Row, made: Row | None) -> Job:
        """The job made of `row`, or the one that already stands in its place if it is the same; else ConflictError."""
        if made is not None:
            return job_from_row(made)
        found = transaction.rows(select(*jobs.c).where(_holds_external_id(row))) if row.get("external_id") else []
        found = found or transaction.rows(select(*jobs.c).where(jobs.c.id == row["id"]))
        if not found:
            # It was released between the two statements: the way is free now.
            return self._insert(transaction, [row])[0]
        if payload.payload_digest(row["payload"]) != (
            found[0]["body_digest"] or payload.payload_digest(found[0]["payload"])
        ):
            raise ConflictError(job_from_row(found[0]))
        return job_from_row(found[0])

    def _equal_waiting_fetch(self, transaction: Transaction, row: Row) -> Job | None:
        waiting = select(*jobs.c).where(
            jobs.c.customer_id == row["customer_id"],
            is_one_of(jobs.c.state, [State.QUEUED]),
            is_one_of(jobs.c.kind, [Kind.CUSTOMER_FETCH]),
        )
        same = ("credential", "stripe_account", "payload", "context", "external_id")
        for found in transaction.rows(waiting.order_by(jobs.c.due_at).limit(20)):
            # Compared as JSON: to Python, 1 and true are equal.
            if payload.payload_digest([found[name] for name in same]) == payload.payload_digest(
                [row.get(name) for name in same]
            ):
                return self._hurry(transaction, found, row)
        return None

    def _hurry(self, transaction: Transaction, found: Row, row: Row) -> Job | None:
        """The waiting job made as urgent and as early as `row`; None if it left or is locked in the meantime."""
        wanted_at = row.get("due_at") or transaction.value(select(now()))
        if found["priority"] <= row["priority"] and found["due_at"] <= wanted_at:
            return job_from_row(found)
        still_waiting = select(jobs.c.id).where(jobs.c.id == found["id"], jobs.c.state == State.QUEUED)
        if not transaction.rows(still_waiting.with_for_update(skip_locked=True)):
            return None
        earlier = {
            "priority": min(found["priority"], row["priority"]),
            "due_at": min(found["due_at"], wanted_at),
        }
        statement = update(jobs).where(jobs.c.id == found["id"], jobs.c.state == State.QUEUED)
        changed = transaction.rows(statement.values(**earlier).returning(*jobs.c))
        return job_from_row(changed[0]) if changed else None

    def _one(self, transaction: Transaction, job_id: str | uuid.UUID) -> Row:
        known = as_uuid(job_id)
        found = transaction.rows(select(*jobs.c).where(jobs.c.id == known).with_for_update()) if known else []
        if not found:
            raise UnknownJob(job_id)
        return found[0]

    @contextmanager
    def _transaction(
        self, session: Session | Connection | Transaction | None, *, only_reads: bool = False
    ) -> Iterator[Transaction]:
        if isinstance(session, Transaction):
            yield session  # Of another call of ours, which this one is a part of.
        elif session is None:
            with (reading if only_reads else writing)(self.engine, self._schema) as transaction:
                yield transaction
        elif isinstance(session, Session | Connection):
            connection = session.connection() if isinstance(session, Session) else session
            yield Transaction(connection, self._schema)
        else:
            raise TypeError(
                f"session must be a SQLAlchemy Session or Connection, not {type(session).__name__}; "
                "with an AsyncSession: await session.run_sync(lambda s: jobs.create_customer(body, session=s))"
            )


def _create_row(body: Any, **options: Any) -> Row:
    return _row(Kind.CUSTOMER_CREATE, payload.check_create(body), **options)


def _row(
    kind: Kind,
    checked: dict[str, Any],
    *,
    job_id: str | None = None,
    external_id: Any = None,
    credential: Any = "default",
    stripe_account: Any = None,
    priority: Any = "default",
    due_at: Any = None,
    context: Any = None,
) -> Row:
    row = {
        "id": job_id or str(uuid.uuid4()),
        "kind": kind.value,
        "payload": checked,
        "external_id": payload.check_external_id(external_id),
        "credential": payload.check_credential(credential),
        "stripe_account": payload.check_stripe_account(stripe_account),
        "priority": payload.check_priority(priority),
        "context": payload.check_context(context),
        "customer_id": checked.get("customer_id"),
    }
    if due_at is not None:
        row["due_at"] = payload.check_due_at(due_at)
    if (most := max_attempts()) is not None:
        row["max_attempts"] = most
    return row


def _row_of(index: int, row: Any) -> Row:
    if not isinstance(row, Mapping):
        raise InvalidJob(f"rows[{index}]", f"must be a mapping with a body, not {type(row).__name__}")
    known = {"body", "external_id", "credential", "stripe_account", "priority", "due_at", "context"}
    if unknown := sorted(map(str, row.keys() - known)):
        members = ", ".join(sorted(known))
        raise InvalidJob(f"rows[{index}]", f"has an unknown member {unknown[0]!r}; known are {members}")
    if "body" not in row:
        raise InvalidJob(f"rows[{index}]", "has no body")
    try:
        return _create_row(**row)
    except InvalidJob as error:
        raise InvalidJob(f"rows[{index}].{error.field}", error.problem) from error


def max_attempts() -> int | None:
    """MAX_ATTEMPTS, if it is set; raises InvalidSetting."""
    value = setting("MAX_ATTEMPTS")
    if value is None:
        return None
    if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= 1000:
        raise InvalidSetting(f"MAX_ATTEMPTS must be a number of attempts from 1 to 1000, not {value!r}")
    return int(value)


def _states(state: str | Iterable[str]) -> list[str]:
    wanted = [state] if isinstance(state, str) else list(state)
    if unknown := [each for each in wanted if each not in set(State)]:
        raise InvalidJob("state", f"unknown state {unknown[0]!r}; known are {', '.join(State)}")
    return wanted


def _holds_external_id(row: Row) -> Any:
    """The rows that the unique index `jobs_external_id` compares `row` with."""
    return and_(
        jobs.c.credential == row["credential"],
        job_account == str(row["stripe_account"] or ""),
        jobs.c.external_id == row["external_id"],
        literal_column(f"({HOLDS_EXTERNAL_ID})"),
    )


def as_uuid(job_id: str | uuid.UUID) -> str | None:
    """The id in its canonical spelling, or None for what is none."""
    try:
        return str(job_id if isinstance(job_id, uuid.UUID) else uuid.UUID(job_id))
    except (ValueError, AttributeError, TypeError):
        return None
