"""Let consumers remember, in a transaction of their own, which events they have handled; find what was published when.

`consumed_events` is written by consumers that ask for it, and pruned by the worker. `events_published` serves the
consumer that finds its stream lost. It locks `events` against writes while it is built: CONCURRENTLY would not fit into
the one transaction that all migrations share, and that table holds a month of rows of some hundred bytes.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003_consumed_events"
down_revision = "0002_notify"
branch_labels = None
depends_on = None

NOW = {
    "postgresql": "clock_timestamp()",
    "sqlite": "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')",
}


def upgrade() -> None:
    schema = op.get_context().version_table_schema
    op.create_table(
        "consumed_events",
        sa.Column("consumer_group", sa.String(255), nullable=False, comment="who has handled it"),
        sa.Column("source", sa.String(1024), nullable=False, comment="the CloudEvent's source …"),
        sa.Column("id", sa.String(255), nullable=False, comment="… and id, which together tell it from every other"),
        sa.Column(
            "consumed_at",
            sa.DateTime(timezone=True),
            nullable=False,
            server_default=sa.text(NOW[op.get_context().dialect.name]),
            comment="handled",
        ),
        sa.PrimaryKeyConstraint("consumer_group", "source", "id", name=op.f("consumed_events_pkey")),
        schema=schema,
    )
    op.create_index("consumed_events_consumed", "consumed_events", ["consumed_at"], schema=schema)
    op.create_index("events_published", "events", ["published_at"], schema=schema, **where("published_at IS NOT NULL"))


def downgrade() -> None:
    schema = op.get_context().version_table_schema
    op.drop_index("events_published", "events", schema=schema)
    op.drop_table("consumed_events", schema=schema)


def where(condition: str) -> dict[str, Any]:
    """What makes an index partial on either database."""
    return {"postgresql_where": sa.text(condition), "sqlite_where": sa.text(condition)}
