"""${message}"""

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


# Name the tables with schema=op.get_context().version_table_schema, which DATABASE_SCHEMA changes; import nothing of
# today's schema. Where rows may exist, build indexes with postgresql_concurrently inside op.get_context().autocommit_block().


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
