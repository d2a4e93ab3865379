"""Create the tables: jobs, their attempts and events, the customers they brought, and what workers share.

The tables are written out as they were on this day, in SQLAlchemy's own types: a migration that imported today's
schema, or its types, would change whenever they do. `schema.py` says what each column means and which query each
index serves. On PostgreSQL everything lies in the schema of the version table; SQLite knows no schemas.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001_tables"
down_revision = None
branch_labels = None
depends_on = None

ID = sa.Uuid().with_variant(sa.String(36), "sqlite")
TIME = sa.DateTime(timezone=True)
JSON = sa.JSON()
SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite numbers rows in an INTEGER primary key only.
ACCOUNT = sa.text("coalesce(stripe_account, '')")

NOW = {
    "postgresql": "clock_timestamp()",
    "sqlite": "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')",
}
NEW_ID = {
    "postgresql": "gen_random_uuid()",
    "sqlite": (
        "(lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-' || "
        "substr('89ab', 1 + (random() & 3), 1) || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6))))"
    ),
}


UUID_GLOB = "-".join("[0-9a-f]" * digits for digits in (8, 4, 4, 4, 12))
EMPTY_OR_ACCOUNT = "coalesce(stripe_account, '')"


def upgrade() -> None:
    schema = op.get_context().version_table_schema
    dialect = op.get_context().dialect.name
    now, new_id = sa.text(NOW[dialect]), sa.text(NEW_ID[dialect])
    create_jobs(schema, now, new_id)
    create_attempts(schema, now)
    create_events(schema, now, new_id)
    create_customers(schema, now)
    create_credentials(schema)
    create_lanes(schema, now)
    create_workers(schema, now)
    create_leases(schema)
    create_webhook_events(schema, now)


def downgrade() -> None:
    # The schema stays: the version table is in it, and perhaps something of somebody else's.
    schema = op.get_context().version_table_schema
    for table in (
        "webhook_events",
        "leases",
        "workers",
        "lanes",
        "credentials",
        "customers",
        "events",
        "attempts",
        "jobs",
    ):
        op.drop_table(table, schema=schema)


def where(condition: str) -> dict[str, Any]:
    """What makes an index partial on either database."""
    return {"postgresql_where": sa.text(condition), "sqlite_where": sa.text(condition)}


def readable_time(name: str) -> tuple[sa.CheckConstraint, ...]:
    """What Python can read: SQLite takes any text for a time, PostgreSQL infinity and years after 9999."""
    seconds = f"substr({name}, 1, 19)"
    fraction = f"substr({name}, 20, 1) = '.' AND substr({name}, 21) NOT GLOB '*[^0-9]*'"
    of_one_form = (
        f"datetime({seconds}, '+0 days') IS {seconds} AND {name} >= '0001-01-02' AND {name} < '9999-12-31' "
        f"AND (length({name}) = 19 OR (length({name}) BETWEEN 21 AND 26 AND {fraction}))"
    )
    within_reach = f"{name} >= '0001-01-02 00:00:00+00' AND {name} < '9999-12-31 00:00:00+00'"
    return (
        sa.CheckConstraint(of_one_form, name=op.f(f"jobs_{name}_format")).ddl_if(dialect="sqlite"),
        sa.CheckConstraint(within_reach, name=op.f(f"jobs_{name}_range")).ddl_if(dialect="postgresql"),
    )


def is_ascii(expression: str) -> str:
    """What SQLite, which takes any bytes for text, can hand over as text for certain."""
    return f"typeof({expression}) = 'text' AND {expression} NOT GLOB '*[^' || char(1) || '-' || char(127) || ']*'"


def create_jobs(schema: str | None, now: sa.TextClause, new_id: sa.TextClause) -> None:
    op.create_table(
        "jobs",
        sa.Column("id", ID, nullable=False, server_default=new_id, comment="also the Celery task id"),
        sa.Column("kind", sa.String(64), nullable=False, comment="customer.create or customer.fetch"),
        sa.Column("state", sa.String(16), nullable=False, server_default="queued", comment="see State"),
        sa.Column(
            "credential",
            sa.String(64),
            nullable=False,
            server_default="default",
            comment="the name of the Stripe key; the key itself is only in the worker's settings",
        ),
        sa.Column("stripe_account", sa.String(255), comment="connected account, acct_…, sent as Stripe-Account"),
        sa.Column(
            "priority",
            sa.SmallInteger(),
            nullable=False,
            server_default="2",
            comment="1 urgent, 2 default, 3 low, 4 bulk",
        ),
        sa.Column("external_id", sa.String(255), comment="the producer's own id for the customer"),
        sa.Column("payload", JSON, nullable=False, comment='{"body": {…}} or {"customer_id": …, "expand": […]}'),
        sa.Column("context", JSON, comment="the producer's own, handed back in events"),
        sa.Column("attempt", sa.Integer(), nullable=False, server_default="0", comment="attempts used up so far"),
        sa.Column("max_attempts", sa.Integer(), nullable=False, server_default="25", comment="attempts it may use up"),
        sa.Column("due_at", TIME, nullable=False, server_default=now, comment="not dispatched before"),
        sa.Column("lease_token", ID, comment="names the claim that may record; anew with every claim"),
        sa.Column("lease_expires_at", TIME, comment="dispatched or running past this, the job is rescued"),
        sa.Column("params", sa.Text(), comment="what is sent to Stripe, frozen as JSON text at the first claim"),
        sa.Column("first_sent_at", TIME, comment="null while every attempt was certainly not executed"),
        sa.Column("sent_to", sa.String(64), comment="Stripe account id or key fingerprint of the first send"),
        sa.Column("candidate_customer_id", sa.String(255), comment="a webhook says that this may be the customer"),
        sa.Column(
            "reconciling",
            sa.Boolean(),
            nullable=False,
            server_default=sa.false(),
            comment="the next attempt looks for the customer instead of sending the create",
        ),
        sa.Column("retry_of", ID, comment="the failed job that this one retries by hand"),
        sa.Column(
            "body_digest", sa.String(64), comment="SHA-256 of the create's body, kept when prune has emptied the row"
        ),
        sa.Column("created_at", TIME, nullable=False, server_default=now, comment="inserted"),
        sa.Column("started_at", TIME, comment="claimed for the first time"),
        sa.Column("finished_at", TIME, comment="became final"),
        sa.Column("outcome", sa.String(16), comment="how it ended well, see Outcome"),
        sa.Column("customer_id", sa.String(255), comment="cus_…: the one asked for, or the one that came of it"),
        sa.Column("livemode", sa.Boolean(), comment="Stripe's livemode of the answer"),
        sa.Column("result", JSON, comment="{customer_id, customer_email, response, headers}"),
        sa.Column("error", JSON, comment="the last error: {type, code, …, transient, remedy}"),
        sa.Column("traceparent", sa.String(64), comment="W3C trace context of the producer"),
        sa.CheckConstraint(
            "state IN ('queued', 'dispatched', 'running', 'retrying', 'succeeded', 'failed', 'cancelled')",
            name=op.f("jobs_state"),
        ),
        sa.CheckConstraint("priority BETWEEN 1 AND 4", name=op.f("jobs_priority")),
        sa.CheckConstraint("attempt >= 0 AND max_attempts >= 1", name=op.f("jobs_attempts")),
        sa.CheckConstraint(
            "(finished_at IS NOT NULL) = (state IN ('succeeded', 'failed', 'cancelled'))",
            name=op.f("jobs_final_is_finished"),
        ),
        sa.CheckConstraint(
            "(lease_expires_at IS NOT NULL) = (state IN ('dispatched', 'running'))",
            name=op.f("jobs_leased_while_in_flight"),
        ),
        sa.CheckConstraint("state <> 'succeeded' OR outcome IS NOT NULL", name=op.f("jobs_success_has_outcome")),
        sa.CheckConstraint("state <> 'failed' OR error IS NOT NULL", name=op.f("jobs_failure_has_error")),
        sa.CheckConstraint("external_id <> ''", name=op.f("jobs_external_id_not_empty")),
        *readable_time("due_at"),
        *readable_time("created_at"),
        sa.CheckConstraint(f"id GLOB '{UUID_GLOB}'", name=op.f("jobs_id_format")).ddl_if(dialect="sqlite"),
        sa.CheckConstraint(
            "typeof(priority) = 'integer' AND typeof(attempt) = 'integer' AND typeof(max_attempts) = 'integer'",
            name=op.f("jobs_numbers"),
        ).ddl_if(dialect="sqlite"),
        sa.CheckConstraint(
            f"{is_ascii('kind')} AND {is_ascii('credential')} AND {is_ascii(EMPTY_OR_ACCOUNT)}",
            name=op.f("jobs_ascii"),
        ).ddl_if(dialect="sqlite"),
        sa.PrimaryKeyConstraint("id", name=op.f("jobs_pkey")),
        schema=schema,
    )
    op.create_index(
        "jobs_dispatch",
        "jobs",
        ["credential", ACCOUNT, "reconciling", "kind", "priority", "due_at"],
        schema=schema,
        **where("state IN ('queued', 'retrying')"),
    )
    op.create_index(
        "jobs_in_flight", "jobs", ["lease_expires_at"], schema=schema, **where("state IN ('dispatched', 'running')")
    )
    op.create_index(
        "jobs_external_id",
        "jobs",
        ["credential", ACCOUNT, "external_id"],
        unique=True,
        schema=schema,
        **where(
            "external_id IS NOT NULL AND kind = 'customer.create' AND state <> 'cancelled' "
            "AND (state <> 'failed' OR first_sent_at IS NOT NULL)"
        ),
    )
    op.create_index(
        "jobs_linked",
        "jobs",
        ["credential", ACCOUNT, "external_id"],
        schema=schema,
        **where("external_id IS NOT NULL AND kind = 'customer.fetch'"),
    )
    op.create_index(
        "jobs_waiting_fetch",
        "jobs",
        ["customer_id"],
        schema=schema,
        **where("state = 'queued' AND kind = 'customer.fetch'"),
    )
    op.create_index("jobs_retry_of", "jobs", ["retry_of"], unique=True, schema=schema, **where("retry_of IS NOT NULL"))
    op.create_index("jobs_customer", "jobs", ["customer_id"], schema=schema, **where("customer_id IS NOT NULL"))
    op.create_index(
        "jobs_finished",
        "jobs",
        ["finished_at"],
        schema=schema,
        **where("finished_at IS NOT NULL AND body_digest IS NULL"),
    )
    op.create_index("jobs_created", "jobs", ["created_at", "id"], schema=schema)


def create_attempts(schema: str | None, now: sa.TextClause) -> None:
    op.create_table(
        "attempts",
        sa.Column("job_id", ID, nullable=False, comment="whose attempt"),
        sa.Column(
            "number", sa.Integer(), autoincrement=False, nullable=False, comment="1 is the job's first call to Stripe"
        ),
        sa.Column("started_at", TIME, nullable=False, server_default=now, comment="claimed"),
        sa.Column("finished_at", TIME, comment="recorded, or abandoned"),
        sa.Column("verdict", sa.String(16), comment="null while it runs, see Verdict"),
        sa.Column(
            "ambiguous", sa.Boolean(), nullable=False, server_default=sa.false(), comment="Stripe may have executed it"
        ),
        sa.Column("http_status", sa.Integer(), comment="null without an answer"),
        sa.Column("error_type", sa.String(255), comment="Stripe's error.type, or ours"),
        sa.Column("error_code", sa.String(255), comment="Stripe's error.code, or ours"),
        sa.Column("error_message", sa.Text(), comment="Stripe's words; they may quote what was sent"),
        sa.Column("request_id", sa.String(255), comment="req_…, to find the call in Stripe's dashboard"),
        sa.Column("rate_limited_reason", sa.String(64), comment="Stripe-Rate-Limited-Reason"),
        sa.Column("idempotency_key", sa.String(255), comment="sent with a create"),
        sa.Column(
            "replayed", sa.Boolean(), nullable=False, server_default=sa.false(), comment="Idempotent-Replayed: true"
        ),
        sa.Column("duration_ms", sa.Float(), comment="of the call to Stripe"),
        sa.Column("worker", sa.String(255), comment="name of the Celery worker"),
        sa.CheckConstraint("number >= 1", name=op.f("attempts_number")),
        sa.CheckConstraint(
            "verdict IN ('succeeded', 'retry', 'rate_limited', 'failed', 'abandoned')", name=op.f("attempts_verdict")
        ),
        sa.ForeignKeyConstraint(
            ["job_id"],
            ["jobs.id" if schema is None else f"{schema}.jobs.id"],
            name=op.f("attempts_job_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("job_id", "number", name=op.f("attempts_pkey")),
        schema=schema,
    )
    op.create_index("attempts_finished", "attempts", ["finished_at"], schema=schema)
    op.create_index("attempts_request_id", "attempts", ["request_id"], schema=schema, **where("request_id IS NOT NULL"))


def create_events(schema: str | None, now: sa.TextClause, new_id: sa.TextClause) -> None:
    op.create_table(
        "events",
        sa.Column("seq", SEQUENCE, sa.Identity(), nullable=False, comment="order of insertion"),
        sa.Column("id", ID, nullable=False, server_default=new_id, comment="the CloudEvent's id"),
        sa.Column(
            "type", sa.String(255), nullable=False, comment="customer_jobs.customer.create.succeeded and the like"
        ),
        sa.Column("subject", sa.String(255), nullable=False, comment="the job's id"),
        sa.Column("data", JSON, nullable=False, comment="the CloudEvent's data: ids, no personal data"),
        sa.Column("created_at", TIME, nullable=False, server_default=now, comment="the CloudEvent's time"),
        sa.Column("published_at", TIME, comment="null until the stream has it"),
        sa.PrimaryKeyConstraint("seq", name=op.f("events_pkey")),
        sa.UniqueConstraint("id", name=op.f("events_id_key")),
        schema=schema,
        sqlite_autoincrement=True,
    )
    op.create_index("events_unpublished", "events", ["seq"], schema=schema, **where("published_at IS NULL"))
    op.create_index("events_created", "events", ["created_at"], schema=schema)
    op.create_index("events_subject", "events", ["subject"], unique=True, schema=schema)


def create_customers(schema: str | None, now: sa.TextClause) -> None:
    op.create_table(
        "customers",
        sa.Column("credential", sa.String(64), nullable=False, comment="the key it was read with"),
        sa.Column(
            "stripe_account", sa.String(255), nullable=False, server_default="", comment="'' is the key's own account"
        ),
        sa.Column("livemode", sa.Boolean(), nullable=False, comment="live and test customers are different ones"),
        sa.Column("id", sa.String(255), nullable=False, comment="cus_…"),
        sa.Column("email", sa.Text(), comment="null where Stripe has none"),
        sa.Column("name", sa.Text(), comment="null where Stripe has none"),
        sa.Column("metadata", JSON, comment="Stripe's metadata"),
        sa.Column("external_id", sa.String(255), comment="the producer's own id for the customer"),
        sa.Column("deleted", sa.Boolean(), nullable=False, server_default=sa.false(), comment="Stripe says so"),
        sa.Column("data", JSON, nullable=False, comment="Stripe's whole object"),
        sa.Column("fetched_at", TIME, nullable=False, server_default=now, comment="when it was asked for"),
        sa.PrimaryKeyConstraint("credential", "stripe_account", "livemode", "id", name=op.f("customers_pkey")),
        schema=schema,
    )
    op.create_index(
        "customers_external_id",
        "customers",
        ["credential", "stripe_account", "external_id"],
        schema=schema,
        **where("external_id IS NOT NULL"),
    )


def create_credentials(schema: str | None) -> None:
    op.create_table(
        "credentials",
        sa.Column("name", sa.String(64), nullable=False, comment="default, eu, …"),
        sa.Column("livemode", sa.Boolean(), nullable=False, comment="the mode of the key that was seen first"),
        sa.Column("account_id", sa.String(255), comment="acct_… of that key, once known"),
        sa.Column("key_fingerprint", sa.String(64), nullable=False, comment="digest of the key seen last"),
        sa.Column("paused_at", TIME, comment="its jobs wait since"),
        sa.Column("reason", sa.Text(), comment="why they wait"),
        sa.PrimaryKeyConstraint("name", name=op.f("credentials_pkey")),
        schema=schema,
    )


def create_lanes(schema: str | None, now: sa.TextClause) -> None:
    op.create_table(
        "lanes",
        sa.Column("credential", sa.String(64), nullable=False, comment="whose limit"),
        sa.Column(
            "stripe_account", sa.String(255), nullable=False, server_default="", comment="'' is the key's own account"
        ),
        sa.Column("kind", sa.String(64), nullable=False, comment="the endpoint; * is the whole account"),
        sa.Column("tokens", sa.Float(), nullable=False, server_default="1", comment="calls that may leave now"),
        sa.Column("refilled_at", TIME, nullable=False, server_default=now, comment="tokens as of then"),
        sa.Column("rate", sa.Float(), nullable=False, comment="calls per second at present"),
        sa.Column("paused_at", TIME, comment="its jobs wait since"),
        sa.Column("reason", sa.Text(), comment="why it is paused or slowed"),
        sa.PrimaryKeyConstraint("credential", "stripe_account", "kind", name=op.f("lanes_pkey")),
        schema=schema,
    )


def create_workers(schema: str | None, now: sa.TextClause) -> None:
    op.create_table(
        "workers",
        sa.Column("name", sa.String(255), nullable=False, comment="of the Celery worker"),
        sa.Column("slots", sa.Integer(), nullable=False, comment="threads it has"),
        sa.Column("seen_at", TIME, nullable=False, server_default=now, comment="last sign of life"),
        sa.Column("version", sa.String(64), nullable=False, comment="of customer-jobs"),
        sa.PrimaryKeyConstraint("name", name=op.f("workers_pkey")),
        schema=schema,
    )


def create_leases(schema: str | None) -> None:
    op.create_table(
        "leases",
        sa.Column("name", sa.String(64), nullable=False, comment="dispatcher"),
        sa.Column("holder", sa.String(255), nullable=False, comment="the worker that leads"),
        sa.Column("expires_at", TIME, nullable=False, comment="then anybody may take it"),
        sa.PrimaryKeyConstraint("name", name=op.f("leases_pkey")),
        schema=schema,
    )


def create_webhook_events(schema: str | None, now: sa.TextClause) -> None:
    op.create_table(
        "webhook_events",
        sa.Column("id", sa.String(255), nullable=False, comment="evt_…"),
        sa.Column("type", sa.String(255), nullable=False, comment="customer.updated and the like"),
        sa.Column("created", TIME, nullable=False, comment="by Stripe's clock"),
        sa.Column("received_at", TIME, nullable=False, server_default=now, comment="by ours"),
        sa.Column("job_id", ID, comment="the fetch it started, if any"),
        sa.PrimaryKeyConstraint("id", name=op.f("webhook_events_pkey")),
        schema=schema,
    )
    op.create_index("webhook_events_received", "webhook_events", ["received_at"], schema=schema)
