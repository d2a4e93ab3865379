"""The only definitions of the tables: every column with its meaning, every index with the query it serves.

On PostgreSQL they live in the schema `customer_jobs`, so that an app's own `jobs` or `customers` never meet ours;
SQLite knows no schemas. Anybody who may INSERT is a producer: what it may leave out has a default in the database.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    Float,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    false,
    func,
    literal_column,
    text,
)

from customer_jobs.sql import ForeignText, JobId, Json, UtcTime, default_id, default_now, is_one_of
from customer_jobs.vocabulary import FINAL_STATES, IN_FLIGHT_STATES, WAITING_STATES, Priority, State, Verdict

SCHEMA = "customer_jobs"  #: The default on PostgreSQL; DATABASE_SCHEMA changes it.

metadata = MetaData(
    schema=SCHEMA,
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "pk": "%(table_name)s_pkey",
    },
)


def _quoted(values: Iterable[str]) -> str:
    return ", ".join(f"'{value}'" for value in values)


#: Any other spelling of an id would never be found again; PostgreSQL has a type for it.
_UUID_GLOB = "-".join("[0-9a-f]" * digits for digits in (8, 4, 4, 4, 12))


def _readable_time(name: str) -> tuple[CheckConstraint, ...]:
    """Python knows no year 10,000 and no infinity; SQLite compares times as text and takes any."""
    seconds = f"substr({name}, 1, 19)"
    fraction = f"substr({name}, 20, 1) = '.' AND substr({name}, 21) NOT GLOB '*[^0-9]*'"
    of_one_form = (
        f"datetime({seconds}, '+0 days') IS {seconds} AND {name} >= '0001-01-02' AND {name} < '9999-12-31' "
        f"AND (length({name}) = 19 OR (length({name}) BETWEEN 21 AND 26 AND {fraction}))"
    )
    within_reach = f"{name} >= '0001-01-02 00:00:00+00' AND {name} < '9999-12-31 00:00:00+00'"
    return (
        CheckConstraint(of_one_form, name=f"{name}_format").ddl_if(dialect="sqlite"),
        CheckConstraint(within_reach, name=f"{name}_range").ddl_if(dialect="postgresql"),
    )


def _is_ascii(expression: str) -> str:
    return f"typeof({expression}) = 'text' AND {expression} NOT GLOB '*[^' || char(1) || '-' || char(127) || ']*'"


_seq = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by itself in an INTEGER primary key only.
_account: ColumnElement[str] = func.coalesce(literal_column("stripe_account"), literal_column("''"))

jobs = Table(
    "jobs",
    metadata,
    Column("id", JobId, primary_key=True, server_default=default_id(), comment="also the Celery task id"),
    Column("kind", String(64), nullable=False, comment="customer.create or customer.fetch"),
    Column("state", String(16), nullable=False, server_default=State.QUEUED.value, comment="see State"),
    Column(
        "credential",
        String(64),
        nullable=False,
        server_default="default",
        comment="the name of the Stripe key; the key itself is only in the worker's settings",
    ),
    Column("stripe_account", String(255), comment="connected account, acct_…, sent as Stripe-Account"),
    Column(
        "priority",
        SmallInteger,
        nullable=False,
        server_default=str(Priority.DEFAULT.value),
        comment="1 urgent, 2 default, 3 low, 4 bulk",
    ),
    Column("external_id", String(255), comment="the producer's own id for the customer"),
    Column("payload", Json, nullable=False, comment='{"body": {…}} or {"customer_id": …, "expand": […]}'),
    Column("context", Json, comment="the producer's own, handed back in events"),
    Column("attempt", Integer, nullable=False, server_default="0", comment="attempts used up so far"),
    Column("max_attempts", Integer, nullable=False, server_default="25", comment="attempts it may use up"),
    Column("due_at", UtcTime, nullable=False, server_default=default_now(), comment="not dispatched before"),
    Column("lease_token", JobId, comment="names the claim that may record; anew with every claim"),
    Column("lease_expires_at", UtcTime, comment="dispatched or running past this, the job is rescued"),
    Column("params", Text, comment="what is sent to Stripe, frozen as JSON text at the first claim"),
    Column("first_sent_at", UtcTime, comment="null while every attempt was certainly not executed"),
    Column("sent_to", String(64), comment="Stripe account id or key fingerprint of the first send"),
    Column("candidate_customer_id", String(255), comment="a webhook says that this may be the customer"),
    Column(
        "reconciling",
        Boolean,
        nullable=False,
        server_default=false(),
        comment="the next attempt looks for the customer instead of sending the create",
    ),
    Column("retry_of", JobId, comment="the failed job that this one retries by hand"),
    Column("body_digest", String(64), comment="SHA-256 of the create's body, kept when prune has emptied the row"),
    Column("created_at", UtcTime, nullable=False, server_default=default_now(), comment="inserted"),
    Column("started_at", UtcTime, comment="claimed for the first time"),
    Column("finished_at", UtcTime, comment="became final"),
    Column("outcome", String(16), comment="how it ended well, see Outcome"),
    Column("customer_id", String(255), comment="cus_…: the one asked for, or the one that came of it"),
    Column("livemode", Boolean, comment="Stripe's livemode of the answer"),
    Column("result", Json, comment="{customer_id, customer_email, response, headers}"),
    Column("error", Json, comment="the last error: {type, code, …, transient, remedy}"),
    Column("traceparent", String(64), comment="W3C trace context of the producer"),
    CheckConstraint(f"state IN ({_quoted(State)})", name="state"),
    CheckConstraint(f"priority BETWEEN {min(Priority).value} AND {max(Priority).value}", name="priority"),
    CheckConstraint("attempt >= 0 AND max_attempts >= 1", name="attempts"),
    CheckConstraint(f"(finished_at IS NOT NULL) = (state IN ({_quoted(FINAL_STATES)}))", name="final_is_finished"),
    CheckConstraint(
        "(lease_expires_at IS NOT NULL) = (state IN ('dispatched', 'running'))", name="leased_while_in_flight"
    ),
    CheckConstraint("state <> 'succeeded' OR outcome IS NOT NULL", name="success_has_outcome"),
    CheckConstraint("state <> 'failed' OR error IS NOT NULL", name="failure_has_error"),
    CheckConstraint("external_id <> ''", name="external_id_not_empty"),
    # One row that the dispatcher cannot read would keep it from all the others, so the table takes none.
    *_readable_time("due_at"),
    *_readable_time("created_at"),
    CheckConstraint(f"id GLOB '{_UUID_GLOB}'", name="id_format").ddl_if(dialect="sqlite"),
    CheckConstraint(
        " AND ".join(f"typeof({name}) = 'integer'" for name in ("priority", "attempt", "max_attempts")), name="numbers"
    ).ddl_if(dialect="sqlite"),
    CheckConstraint(
        " AND ".join(_is_ascii(name) for name in ("kind", "credential", "coalesce(stripe_account, '')")), name="ascii"
    ).ddl_if(dialect="sqlite"),
)

#: The account of a job, '' being the key's own, as the indexes spell it: a parameter would hide them.
job_account: ColumnElement[str] = func.coalesce(jobs.c.stripe_account, literal_column("''"))

#: Whether a `customer.create` keeps its external_id: not once it is certain that it made no customer.
HOLDS_EXTERNAL_ID = (
    "external_id IS NOT NULL AND kind = 'customer.create' AND state <> 'cancelled' "
    "AND (state <> 'failed' OR first_sent_at IS NOT NULL)"
)


def _index(name: str, *columns: Any, query: str, where: str | None = None, unique: bool = False) -> None:
    condition = {} if where is None else {"postgresql_where": text(where), "sqlite_where": text(where)}
    Index(name, *columns, unique=unique, info={"query": query}, **condition)  # type: ignore[arg-type]


_waiting = f"state IN ({_quoted(WAITING_STATES)})"
_in_flight = f"state IN ({_quoted(IN_FLIGHT_STATES)})"

EXTERNAL_ID_INDEX = (jobs.c.credential, _account, jobs.c.external_id)

_index(
    "jobs_dispatch",
    jobs.c.credential,
    _account,
    jobs.c.reconciling,
    jobs.c.kind,
    jobs.c.priority,
    jobs.c.due_at,
    query="the dispatcher: which lanes have work, and the next job of one by (priority, due_at)",
    where=_waiting,
)
_index(
    "jobs_in_flight",
    jobs.c.lease_expires_at,
    query="the dispatcher: how many are in flight; rescue: which leases ran out",
    where=_in_flight,
)
_index(
    "jobs_external_id",
    *EXTERNAL_ID_INDEX,
    query="enqueue: one customer per external_id",
    where=HOLDS_EXTERNAL_ID,
    unique=True,
)
_index(
    "jobs_linked",
    *EXTERNAL_ID_INDEX,
    query="claim of a create: was the external_id linked to a customer by a fetch?",
    where="external_id IS NOT NULL AND kind = 'customer.fetch'",
)
_index(
    "jobs_waiting_fetch",
    jobs.c.customer_id,
    query="enqueue of a fetch: is an equal one waiting?",
    where="state = 'queued' AND kind = 'customer.fetch'",
)
_index(
    "jobs_retry_of",
    jobs.c.retry_of,
    query="retry by hand: one new job per failed one",
    where="retry_of IS NOT NULL",
    unique=True,
)
_index(
    "jobs_customer",
    jobs.c.customer_id,
    query="show and list by cus_…",
    where="customer_id IS NOT NULL",
)
_index(
    "jobs_finished",
    jobs.c.finished_at,
    query="prune: the oldest final jobs",
    where="finished_at IS NOT NULL AND body_digest IS NULL",
)
_index(
    "jobs_created",
    jobs.c.created_at,
    jobs.c.id,
    query="list: the latest jobs",
)

attempts = Table(
    "attempts",
    metadata,
    Column("job_id", JobId, ForeignKey(jobs.c.id, ondelete="CASCADE"), primary_key=True, comment="whose attempt"),
    Column("number", Integer, primary_key=True, autoincrement=False, comment="1 is the job's first call to Stripe"),
    Column("started_at", UtcTime, nullable=False, server_default=default_now(), comment="claimed"),
    Column("finished_at", UtcTime, comment="recorded, or abandoned"),
    Column("verdict", String(16), comment="null while it runs, see Verdict"),
    Column("ambiguous", Boolean, nullable=False, server_default=false(), comment="Stripe may have executed it"),
    Column("http_status", Integer, comment="null without an answer"),
    Column("error_type", ForeignText(255), comment="Stripe's error.type, or ours"),
    Column("error_code", ForeignText(255), comment="Stripe's error.code, or ours"),
    Column("error_message", ForeignText, comment="Stripe's words; they may quote what was sent"),
    Column("request_id", ForeignText(255), comment="req_…, to find the call in Stripe's dashboard"),
    Column("rate_limited_reason", ForeignText(64), comment="Stripe-Rate-Limited-Reason"),
    Column("idempotency_key", String(255), comment="sent with a create"),
    Column("replayed", Boolean, nullable=False, server_default=false(), comment="Idempotent-Replayed: true"),
    Column("duration_ms", Float, comment="of the call to Stripe"),
    Column("worker", String(255), comment="name of the Celery worker"),
    CheckConstraint("number >= 1", name="number"),
    CheckConstraint(f"verdict IN ({_quoted(Verdict)})", name="verdict"),
)
_index(
    "attempts_finished",
    attempts.c.finished_at,
    query="the dispatcher: what Stripe answered within the last second",
)
_index(
    "attempts_request_id",
    attempts.c.request_id,
    query="list by req_…",
    where="request_id IS NOT NULL",
)

events = Table(
    "events",
    metadata,
    Column("seq", _seq, Identity(), primary_key=True, comment="order of insertion"),
    Column("id", JobId, nullable=False, unique=True, server_default=default_id(), comment="the CloudEvent's id"),
    Column("type", String(255), nullable=False, comment="customer_jobs.customer.create.succeeded and the like"),
    Column("subject", String(255), nullable=False, comment="the job's id"),
    Column("data", Json, nullable=False, comment="the CloudEvent's data: ids, no personal data"),
    Column("created_at", UtcTime, nullable=False, server_default=default_now(), comment="the CloudEvent's time"),
    Column("published_at", UtcTime, comment="null until the stream has it"),
    sqlite_autoincrement=True,
)
_index(
    "events_unpublished",
    events.c.seq,
    query="relay: the oldest unpublished events",
    where="published_at IS NULL",
)
_index(
    "events_created",
    events.c.created_at,
    query="replay and prune: events by age",
)
_index(
    "events_published",
    events.c.published_at,
    query="a consumer that finds its stream lost: what was published since",
    where="published_at IS NOT NULL",
)
_index(
    "events_subject",
    events.c.subject,
    query="the completion event of a job, of which there is exactly one",
    unique=True,
)

consumed_events = Table(
    "consumed_events",
    metadata,
    Column("consumer_group", String(255), primary_key=True, comment="who has handled it"),
    Column("source", String(1024), primary_key=True, comment="the CloudEvent's source …"),
    Column("id", String(255), primary_key=True, comment="… and id, which together tell it from every other"),
    Column("consumed_at", UtcTime, nullable=False, server_default=default_now(), comment="handled"),
)
_index(
    "consumed_events_consumed",
    consumed_events.c.consumed_at,
    query="prune: the oldest",
)

customers = Table(
    "customers",
    metadata,
    Column("credential", String(64), primary_key=True, comment="the key it was read with"),
    Column("stripe_account", String(255), primary_key=True, server_default="", comment="'' is the key's own account"),
    Column("livemode", Boolean, primary_key=True, comment="live and test customers are different ones"),
    Column("id", String(255), primary_key=True, comment="cus_…"),
    Column("email", ForeignText, comment="null where Stripe has none"),
    Column("name", ForeignText, comment="null where Stripe has none"),
    Column("metadata", Json, comment="Stripe's metadata"),
    Column("external_id", String(255), comment="the producer's own id for the customer"),
    Column("deleted", Boolean, nullable=False, server_default=false(), comment="Stripe says so"),
    Column("data", Json, nullable=False, comment="Stripe's whole object"),
    Column("fetched_at", UtcTime, nullable=False, server_default=default_now(), comment="when it was asked for"),
)
_index(
    "customers_external_id",
    customers.c.credential,
    customers.c.stripe_account,
    customers.c.external_id,
    query="customer(external_id=…)",
    where="external_id IS NOT NULL",
)

credentials = Table(
    "credentials",
    metadata,
    Column("name", String(64), primary_key=True, comment="default, eu, …"),
    Column("livemode", Boolean, nullable=False, comment="the mode of the key that was seen first"),
    Column("account_id", String(255), comment="acct_… of that key, once known"),
    Column("key_fingerprint", String(64), nullable=False, comment="digest of the key seen last"),
    Column("paused_at", UtcTime, comment="its jobs wait since"),
    Column("reason", Text, comment="why they wait"),
)

lanes = Table(
    "lanes",
    metadata,
    Column("credential", String(64), primary_key=True, comment="whose limit"),
    Column("stripe_account", String(255), primary_key=True, server_default="", comment="'' is the key's own account"),
    Column("kind", String(64), primary_key=True, comment="the endpoint; * is the whole account"),
    Column("tokens", Float, nullable=False, server_default="1", comment="calls that may leave now"),
    Column("refilled_at", UtcTime, nullable=False, server_default=default_now(), comment="tokens as of then"),
    Column("rate", Float, nullable=False, comment="calls per second at present"),
    Column("paused_at", UtcTime, comment="its jobs wait since"),
    Column("reason", Text, comment="why it is paused or slowed"),
)

workers = Table(
    "workers",
    metadata,
    Column("name", String(255), primary_key=True, comment="of the Celery worker"),
    Column("slots", Integer, nullable=False, comment="threads it has"),
    Column("seen_at", UtcTime, nullable=False, server_default=default_now(), comment="last sign of life"),
    Column("version", String(64), nullable=False, comment="of customer-jobs"),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(64), primary_key=True, comment="dispatcher"),
    Column("holder", String(255), nullable=False, comment="the worker that leads"),
    Column("expires_at", UtcTime, nullable=False, comment="then anybody may take it"),
)

webhook_events = Table(
    "webhook_events",
    metadata,
    Column("id", String(255), primary_key=True, comment="evt_…"),
    Column("type", String(255), nullable=False, comment="customer.updated and the like"),
    Column("created", UtcTime, nullable=False, comment="by Stripe's clock"),
    Column("received_at", UtcTime, nullable=False, server_default=default_now(), comment="by ours"),
    Column("job_id", JobId, comment="the fetch it started, if any"),
)
_index(
    "webhook_events_received",
    webhook_events.c.received_at,
    query="prune: the oldest",
)


def is_waiting() -> ColumnElement[bool]:
    """Jobs that the dispatcher chooses from, as the index `jobs_dispatch` spells it."""
    return is_one_of(jobs.c.state, WAITING_STATES)


def is_in_flight() -> ColumnElement[bool]:
    """Jobs that somebody holds a lease on, as the index `jobs_in_flight` spells it."""
    return is_one_of(jobs.c.state, IN_FLIGHT_STATES)
