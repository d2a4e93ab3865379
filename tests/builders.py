"""Rows and jobs for tests: defaults for everything, so that a test shows only what matters to it."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Engine, Table, insert, select, update

from customer_jobs import lifecycle
from customer_jobs.database import reading, writing
from customer_jobs.lifecycle import Claim, Entry, Sending, Success
from customer_jobs.schema import attempts, events, jobs, workers
from customer_jobs.sql import now
from customer_jobs.vocabulary import WAITING_STATES, Kind, Outcome, State, Verdict
from worker.dispatcher.leader import take_lead

Row = dict[str, Any]

EMAIL = "jenny.rosen@example.com"
CUSTOMER_ID = "cus_Jh3d8yZi678c2"
KEY = "sk_test_shop_0123456789"
SENT_TO = "key_0123456789abcdef01234567"

CREATE = {"kind": Kind.CUSTOMER_CREATE.value, "payload": {"body": {"email": EMAIL}}}
FETCH = {
    "kind": Kind.CUSTOMER_FETCH.value,
    "payload": {"customer_id": CUSTOMER_ID, "expand": []},
    "customer_id": CUSTOMER_ID,
}


def add_job(engine: Engine, **columns: Any) -> str:
    """The id of a new `jobs` row; a waiting create unless the columns say otherwise."""
    values = {**(FETCH if columns.get("kind") == Kind.CUSTOMER_FETCH else CREATE), **columns}
    state = values.get("state", State.QUEUED)
    if state in WAITING_STATES:
        pass
    elif state in {State.DISPATCHED, State.RUNNING}:
        values = {"lease_token": str(uuid.uuid4()), "lease_expires_at": now(60)} | values
    else:
        values = {"finished_at": now()} | values
        if state == State.FAILED:
            values = {"error": {"type": "api_error", "code": "gone"}} | values
        if state == State.SUCCEEDED:
            values = {"outcome": Outcome.CREATED} | values
    with writing(engine) as transaction:
        job_id = str(transaction.value(insert(jobs).values(values).returning(jobs.c.id)))
        if state == State.RUNNING:
            transaction.change(insert(attempts).values(job_id=job_id, number=1))
    return job_id


def add_fetch(engine: Engine, **columns: Any) -> str:
    """The id of a new, waiting fetch."""
    return add_job(engine, **{**FETCH, **columns})


def dispatched(engine: Engine, job_id: str | None = None, *, lease_seconds: float = 60) -> str:
    """The id of a job that has been handed to Celery."""
    job_id = job_id or add_job(engine)
    with writing(engine) as transaction:
        marked = lifecycle.mark_dispatched(transaction, [job_id], token=str(uuid.uuid4()), lease_seconds=lease_seconds)
    assert [row["id"] for row in marked] == [job_id]
    return job_id


def claimed(engine: Engine, job_id: str | None = None, *, may_create: bool = True, worker: str = "w1") -> Claim:
    """The claim of an attempt that is under way."""
    job_id = dispatched(engine, job_id)
    key = f"customer-jobs-{job_id}" if may_create else None
    sending = Sending('{"email": "jenny.rosen@example.com"}', SENT_TO, key, may_create)
    with writing(engine) as transaction:
        held = lifecycle.claim(transaction, job_id, worker=worker, sending=sending)
    assert held is not None
    return held


def success(customer_id: str = CUSTOMER_ID, outcome: Outcome = Outcome.CREATED, **customer: Any) -> Success:
    """What Stripe's answer comes to."""
    body = {"id": customer_id, "object": "customer", "email": EMAIL, "livemode": False} | customer
    return Success(outcome, body, {"Request-Id": "req_1"}, livemode=False)


def entry(verdict: Verdict = Verdict.SUCCEEDED, **fields: Any) -> Entry:
    return Entry(verdict, **fields)


def job_row(engine: Engine, job_id: str) -> Row:
    """The row of a job."""
    (row,) = rows(engine, jobs, id=job_id)
    return row


def rows(engine: Engine, table: Table, **equal: Any) -> list[Row]:
    """The rows of a table, those with these values, in the order of its key."""
    query = select(*table.c).where(*(table.c[name] == value for name, value in equal.items()))
    with reading(engine) as transaction:
        return transaction.rows(query.order_by(*table.primary_key.columns))


def ledger(engine: Engine, job_id: str) -> list[Row]:
    """The attempts at a job."""
    return rows(engine, attempts, job_id=job_id)


def events_of(engine: Engine, job_id: str) -> list[Row]:
    """The completion events of a job."""
    return rows(engine, events, subject=job_id)


def change(engine: Engine, job_id: str, **values: Any) -> None:
    """Write into a job's row what nobody would write there."""
    with writing(engine) as transaction:
        transaction.change(update(jobs).where(jobs.c.id == job_id).values(**values))


def later(engine: Engine, seconds: float, job_id: str | None = None) -> None:
    """Let time pass for one job and its attempts, or for all: their rows look as they will by then."""
    _age(engine, seconds, jobs, *([jobs.c.id == job_id] if job_id else []))
    _age(engine, seconds, attempts, *([attempts.c.job_id == job_id] if job_id else []))


def age(engine: Engine, seconds: float, table: Table) -> None:
    """Let time pass for the rows of another table."""
    _age(engine, seconds, table)


def _age(engine: Engine, seconds: float, table: Table, *conditions: ColumnElement[bool]) -> None:
    with writing(engine) as transaction:
        for row in transaction.rows(select(*table.c).where(*conditions)):
            earlier = {
                name: value - timedelta(seconds=seconds)
                for name, value in row.items()
                if name.endswith("_at") and value is not None
            }
            same = [column == row[column.name] for column in table.primary_key.columns]
            transaction.change(update(table).where(*same).values(**earlier))


def lead(engine: Engine, holder: str = "holder") -> str:
    """The holder, which leads now."""
    with writing(engine) as transaction:
        assert take_lead(transaction, holder)
    return holder


def add_worker(engine: Engine, slots: int = 16, name: str = "w1") -> None:
    """A live worker with so many threads."""
    with writing(engine) as transaction:
        transaction.change(insert(workers).values(name=name, slots=slots, version="1", seen_at=now()))


def raw(engine: Engine, statement: str) -> None:
    """Run plain SQL, as any producer may; `jobs` is our table."""
    if engine.dialect.name == "postgresql":
        statement = statement.replace(" jobs ", " customer_jobs.jobs ")
    with engine.begin() as connection:
        connection.exec_driver_sql(statement.replace("%", "%%"))
