"""Rows and jobs for tests: defaults for everything, so that a test shows only what matters to it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Engine, Interval, Table, func, insert, literal, select, type_coerce, update

from customer_jobs import lifecycle
from customer_jobs.database import Transaction, reading, writing
from customer_jobs.lifecycle import Claim, Entry, Sending, Success
from customer_jobs.request import Request
from customer_jobs.sandbox import Sandbox
from customer_jobs.schema import attempts, events, jobs, lanes
from customer_jobs.sql import now
from customer_jobs.vocabulary import WAITING_STATES, Kind, Outcome, State, Verdict
from worker.answers import Answer
from worker.credentials import Key, bind
from worker.dispatcher.dispatch import Dispatch
from worker.dispatcher.front import LONGEST_PAUSE_SECONDS
from worker.dispatcher.leader import take_lead
from worker.dispatcher.upkeep import show_life
from worker.gateway import Gateway
from worker.leases import CLOCKS
from worker.leases import Clock as OfMachine
from worker.record import Recorded
from worker.retry import CREATE_WINDOW, RetryPolicy
from worker.runner import Runner
from worker.settings import Settings

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


def as_read(transaction: Transaction, job_id: str) -> Row:
    """The job as a worker reads it before it claims it."""
    row = lifecycle.read(transaction, job_id)
    assert row is not None
    return row


def claimed(engine: Engine, job_id: str | None = None, *, may_create: bool = True, worker: str = "w1") -> Claim:
    """The claim of an attempt that is under way."""
    job_id = dispatched(engine, job_id)
    key = f"customer-jobs-{job_id}" if may_create else None
    sending = Sending('{"email": "jenny.rosen@example.com"}', SENT_TO, key, may_create)
    with writing(engine) as transaction:
        held = lifecycle.claim(transaction, as_read(transaction, job_id), worker=worker, sending=sending)
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
    times = [column for column in table.c if column.name.endswith("_at")]
    earlier: dict[Any, ColumnElement[Any]]
    if engine.dialect.name == "sqlite":
        earlier = {each: func.strftime("%Y-%m-%d %H:%M:%f000", each, f"-{seconds:f} seconds") for each in times}
    else:
        earlier = {each: each - literal(timedelta(seconds=seconds), Interval) for each in times}
    values = {column.name: type_coerce(expression, column.type) for column, expression in earlier.items()}
    with writing(engine) as transaction:
        transaction.change(update(table).where(*conditions).values(values))


def lead(engine: Engine, holder: str = "holder") -> str:
    """The holder, which leads now."""
    with writing(engine) as transaction:
        assert take_lead(transaction, holder)
    return holder


def add_worker(engine: Engine, slots: int = 16, name: str = "w1") -> None:
    """A live worker with so many threads."""
    show_life(engine, name, slots)


def settings_for(**fields: Any) -> Settings:
    """A worker's settings; the limits are out of the way unless they are the point."""
    return Settings(
        **{
            "database_url": "sqlite://",
            "redis_url": "redis://127.0.0.1:1/0",
            "stripe_api_keys": {"default": KEY},
            "rate_limit_create": 10_000,
            "rate_limit_fetch": 10_000,
            "rate_limit_account": 10_000,
            **fields,
        }
    )


def create(stripe: Gateway, request: Request) -> Answer:
    """The call of the task that creates."""
    return stripe.create_customer(
        request.params,
        idempotency_key=request.idempotency_key,
        credential=request.credential,
        stripe_account=request.stripe_account,
    )


def fetch(stripe: Gateway, request: Request) -> Answer:
    """The call of the task that fetches."""
    return stripe.fetch_customer(
        request.params["customer_id"],
        expand=request.params["expand"],
        credential=request.credential,
        stripe_account=request.stripe_account,
    )


class Clock:
    """It stands still but for what passes with every question."""

    def __init__(self, step_seconds: float = 0.0) -> None:
        self.seconds = 0.0
        self.step_seconds = step_seconds

    def __call__(self) -> float:
        self.seconds += self.step_seconds
        return self.seconds


class Worker:
    """The parts of a worker without Celery: what the dispatcher publishes is attempted at once, one after the other."""

    def __init__(
        self,
        engine: Engine,
        sandbox: Sandbox,
        *,
        draw: float = 0.0,
        clocks: Sequence[OfMachine] = CLOCKS,
        **fields: Any,
    ) -> None:
        self.engine = engine
        self.settings = settings_for(**{"stripe_api_base": sandbox.url} | fields)
        self.gateway = Gateway(self.settings)
        with writing(engine) as transaction:
            bind(transaction, [Key(*_key(self.gateway, name)) for name in self.settings.stripe_api_keys])
        self.runner = Runner(engine, self.gateway, draw=lambda: draw, clocks=clocks)
        self.published: list[tuple[str, str]] = []
        self.holder = lead(engine)
        add_worker(engine)
        self._waited_seconds = 0.0
        self.dispatch = Dispatch(engine, self.settings, self._publish, holder=self.holder, clock=self._clock)

    def attempt(self, job_id: str) -> Recorded | None:
        """Make one attempt at a job that has been dispatched."""
        creates = job_row(self.engine, job_id)["kind"] == Kind.CUSTOMER_CREATE
        call, window = (create, CREATE_WINDOW) if creates else (fetch, None)
        return self.runner.attempt(job_id, call, RetryPolicy(window=window), worker="w1")

    def dispatch_and_attempt(self, job_id: str) -> Recorded | None:
        """Make one attempt at a job that waits, whether it is due or not."""
        return self.attempt(dispatched(self.engine, job_id))

    def work(self, looks: int = 20) -> None:
        """Dispatch and attempt until nothing is due any more."""
        for _ in range(looks):
            age(self.engine, 1, lanes)
            # `later` may have put a job where earlier looks have been: none of them says where this one begins.
            self._waited_seconds += LONGEST_PAUSE_SECONDS
            lead(self.engine, self.holder)
            add_worker(self.engine)
            self.dispatch.run_once()
            if not self.published:
                return
            while self.published:
                self.attempt(self.published.pop(0)[1])
        raise AssertionError(f"something is still due after {looks} looks")

    def _publish(self, jobs: Sequence[tuple[str, str]]) -> None:
        self.published += jobs

    def _clock(self) -> float:
        return time.monotonic() + self._waited_seconds


def _key(gateway: Gateway, name: str) -> tuple[str, str, bool, None]:
    return name, gateway.fingerprint(name), gateway.is_live(name), None


def raw(engine: Engine, statement: str) -> None:
    """Run plain SQL, as any producer may; `jobs` is our table."""
    if engine.dialect.name == "postgresql":
        statement = statement.replace(" jobs ", " customer_jobs.jobs ")
    with engine.begin() as connection:
        connection.exec_driver_sql(statement.replace("%", "%%"))
