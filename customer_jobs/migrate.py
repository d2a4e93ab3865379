"""Brings a database to the schema of this version: `customer-jobs migrate`; the steps are in migrations/.

Nothing here meets the app's own Alembic: the version table has a name or a schema of its own, the configuration is
made here, and no logging is set up.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.script.revision import ResolutionError
from alembic.util import CommandError
from sqlalchemy import Engine
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from customer_jobs.database import parse_url, schema_name, translating_outages
from customer_jobs.errors import CustomerJobsError
from customer_jobs.schema import SCHEMA

HEAD = "head"  #: The newest revision, in Alembic's words.
_one_at_a_time = threading.Lock()  # Alembic hands env.py its context in a global variable.
_INSUFFICIENT_PRIVILEGE = "42501"  # Source: https://www.postgresql.org/docs/current/errcodes-appendix.html


def migrate(engine: Engine, *, schema: str | None = None, revision: str = HEAD) -> list[str]:
    """The revisions applied just now, oldest first; none where the database was up to date.

    All or nothing: they share one transaction. Whoever else migrates this database at the same time waits for it.
    `schema` is the PostgreSQL schema of our tables; left out, the one that `open_engine` was given.

    Raises:
        CustomerJobsError: somebody else's tables are in the way, the user may not do it, or the database is newer
            than this version of customer-jobs.
        Unavailable: the database cannot be reached, or a table stayed locked.
    """
    applied: list[str] = []
    with _one_at_a_time, translating_outages(), _explaining_refusals(), engine.connect() as connection:
        config = _config(schema=schema or _schema_of(engine), connection=connection, applied=applied)
        command.upgrade(config, revision)
    return applied


def migration_sql(url: str | URL, *, schema: str | None = None, revision: str = HEAD) -> str:
    """The script that does the same to a new database, for a database administrator to run; nothing is connected to.

    It is one transaction, as in `psql --file=migrate.sql`. `revision` may be a span, as in `0001_tables:head`, for a
    database that has the first of the two.
    """
    script = io.StringIO()
    with _one_at_a_time, _explaining_refusals():
        command.upgrade(_config(script, url=parse_url(url), schema=schema or schema_name()), revision, sql=True)
    return script.getvalue()


def pending(engine: Engine, *, schema: str | None = None) -> list[str]:
    """The revisions that `migrate` would apply, oldest first; nothing is written.

    Empty for a database that a newer version of customer-jobs has migrated: during a deployment old workers go on.
    """
    schema = schema or _schema_of(engine)
    scripts = ScriptDirectory.from_config(_config(schema=schema))
    with translating_outages(), engine.execution_options(only_reads=True).connect() as connection:
        context = MigrationContext.configure(connection, opts=version_table(connection.dialect.name, schema))
        current = context.get_current_heads()
    try:
        missing = [script.revision for script in scripts.iterate_revisions(HEAD, current or None)]
    except (ResolutionError, CommandError):
        return []
    return missing[::-1]


def require_current(engine: Engine, *, schema: str | None = None) -> None:
    """Return if every migration has been applied.

    Raises:
        CustomerJobsError: some are pending; it names the remedy.
        Unavailable: the database cannot be reached.
    """
    if missing := pending(engine, schema=schema):
        raise CustomerJobsError(f"the database is not up to date; run `customer-jobs migrate` ({', '.join(missing)})")


def version_table(dialect: str, schema: str) -> dict[str, str | None]:
    """Alembic's options for where the revision is kept: never in a table `alembic_version` of an app's own."""
    if dialect == "sqlite":
        return {"version_table": "customer_jobs_alembic_version", "version_table_schema": None}
    return {"version_table": "alembic_version", "version_table_schema": schema}


def _config(output: io.StringIO | None = None, **attributes: Any) -> Config:
    config = Config() if output is None else Config(output_buffer=output)
    config.set_main_option("script_location", str(_migrations()).replace("%", "%%"))  # % starts an interpolation.
    config.attributes.update(attributes)
    return config


def _migrations() -> Path:
    package = Path(__file__).parent
    installed, checkout = package / "migrations", package.parent / "migrations"
    return installed if installed.is_dir() else checkout


def _schema_of(engine: Engine) -> str:
    translations = engine.get_execution_options().get("schema_translate_map") or {}
    return translations.get(SCHEMA) or schema_name()


@contextmanager
def _explaining_refusals() -> Iterator[None]:
    try:
        yield
    except CommandError as error:
        raise CustomerJobsError(
            f"the migrations do not fit this database: {error}; perhaps a newer version of customer-jobs made it, "
            "or the schema is somebody else's: see DATABASE_SCHEMA"
        ) from error
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != _INSUFFICIENT_PRIVILEGE:
            raise
        raise CustomerJobsError(
            f"the database's user may not migrate it: {str(error.orig).splitlines()[0]}; "
            "give the script of `customer-jobs migrate --sql` to somebody who may"
        ) from error
