"""What `customer-jobs migrate` does to a database, on its own and beside an app's own tables."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.schema import CreateSchema

from customer_jobs import CustomerJobsError, Unavailable
from customer_jobs.database import open_engine
from customer_jobs.migrate import migrate, migration_sql, pending, require_current
from customer_jobs.schema import SCHEMA, metadata
from tests.servers import connect

ROOT = Path(__file__).parents[2]
REVISIONS = ["0001_tables", "0002_notify", "0003_consumed_events"]
VERSION_TABLES = {"sqlite": "customer_jobs_alembic_version", "postgresql": "alembic_version"}


@contextmanager
def opened(url: str, schema: str | None = None) -> Iterator[Engine]:
    engine = open_engine(url, schema=schema)
    try:
        yield engine
    finally:
        engine.dispose()


def alembic(*arguments: str, url: str, cwd: Path = ROOT, **environ: str) -> str:
    """What the plain `alembic` command prints, which is expected to succeed."""
    ran = subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "DATABASE_URL": url, **environ},
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout.strip()


def our_tables(engine: Engine) -> set[str]:
    return set(inspect(engine).get_table_names(schema=None if engine.dialect.name == "sqlite" else SCHEMA))


def described(engine: Engine) -> list[tuple[object, ...]]:
    """Every column, constraint and index of our tables in the database's own words, in any order."""
    version_table = VERSION_TABLES[engine.dialect.name]
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            found = connection.execute(text("SELECT type, name, tbl_name, sql FROM sqlite_master")).all()
            return sorted(
                (row.type, row.name, tuple(sorted(line.strip().rstrip(",") for line in (row.sql or "").splitlines())))
                for row in found
                if row.tbl_name != version_table
            )
        columns = """
            SELECT relname, attname, format_type(atttypid, atttypmod), attnotnull, attidentity,
                pg_get_expr(adbin, adrelid), col_description(attrelid, attnum)
            FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
                LEFT JOIN pg_attrdef ON (adrelid, adnum) = (attrelid, attnum)
            WHERE relnamespace = CAST('customer_jobs' AS regnamespace) AND relkind = 'r' AND attnum > 0
        """
        constraints = """
            SELECT CAST(CAST(conrelid AS regclass) AS text), conname, pg_get_constraintdef(oid)
            FROM pg_constraint WHERE connamespace = CAST('customer_jobs' AS regnamespace)
        """
        indexes = "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'customer_jobs'"
        rows = [
            tuple(row) for statement in (columns, constraints, indexes) for row in connection.execute(text(statement))
        ]
        return sorted((row for row in rows if version_table not in str(row[0])), key=repr)


def test_up_down_up_leaves_nothing_to_do(empty_database_url: str) -> None:
    assert alembic("upgrade", "head", url=empty_database_url) == ""
    assert alembic("check", url=empty_database_url) == "No new upgrade operations detected."

    alembic("downgrade", "base", url=empty_database_url)

    with opened(empty_database_url) as engine:
        assert our_tables(engine) - {"sqlite_sequence"} == {VERSION_TABLES[engine.dialect.name]}
    assert alembic("upgrade", "head", url=empty_database_url) == ""
    assert alembic("check", url=empty_database_url) == "No new upgrade operations detected."


def test_the_migrations_build_what_the_schema_says(engine: Engine, empty_database_url: str) -> None:
    with opened(empty_database_url) as as_defined:
        with as_defined.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(CreateSchema(SCHEMA))
            metadata.create_all(connection)

        assert described(engine) == described(as_defined)


def test_migrate_tells_what_it_applied(empty_database_url: str) -> None:
    with opened(empty_database_url) as engine:
        assert pending(engine) == REVISIONS

        assert migrate(engine, revision="0001_tables") == ["0001_tables"]
        assert pending(engine) == REVISIONS[1:]
        with pytest.raises(CustomerJobsError, match="run `customer-jobs migrate`"):
            require_current(engine)

        assert migrate(engine) == REVISIONS[1:]
        assert migrate(engine) == []
        assert pending(engine) == []
        require_current(engine)


def test_looking_for_pending_migrations_writes_nothing(empty_database_url: str) -> None:
    with opened(empty_database_url) as engine:
        pending(engine)

        assert our_tables(engine) == set()


def test_an_unreachable_database_is_unavailable() -> None:
    with opened("postgresql://nobody@127.0.0.1:1/nowhere") as engine:
        with pytest.raises(Unavailable):
            migrate(engine)
        with pytest.raises(Unavailable):
            require_current(engine)


MIGRATE_ON_COMMAND = """
import os, sys
from customer_jobs.database import open_engine
from customer_jobs.migrate import migrate
engine = open_engine(os.environ["DATABASE_URL"])
print("ready", flush=True)
sys.stdin.readline()
print(*migrate(engine))
"""


def told_by_those_who_migrate_at_once(url: str, count: int = 4) -> list[str]:
    """What each of several processes printed that were told to migrate when all were ready to."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MIGRATE_ON_COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "DATABASE_URL": url},
        )
        for _ in range(count)
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    return sorted(process.communicate()[0].strip() for process in processes)


def test_those_who_migrate_at_once_take_turns(empty_database_url: str) -> None:
    with opened(empty_database_url) as engine:
        engine.connect().close()  # SQLite's file is made, and in WAL mode.

    told = told_by_those_who_migrate_at_once(empty_database_url)

    assert told == ["", "", "", " ".join(REVISIONS)]


def test_those_who_make_a_sqlite_file_at_once_take_turns(empty_sqlite_url: str) -> None:
    told = told_by_those_who_migrate_at_once(empty_sqlite_url)

    assert told == ["", "", "", " ".join(REVISIONS)]


def test_migrate_neither_prints_nor_sets_up_logging(
    empty_database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root, library = logging.getLogger(), logging.getLogger("alembic")
    before = (root.level, list(root.handlers), library.level, list(library.handlers), library.disabled)

    with opened(empty_database_url) as engine:
        migrate(engine)

    assert (root.level, list(root.handlers), library.level, list(library.handlers), library.disabled) == before
    assert capsys.readouterr() == ("", "")


def test_an_engine_that_the_app_made_will_do(empty_database_url: str) -> None:
    engine = create_engine(empty_database_url)
    try:
        assert migrate(engine) == REVISIONS
        assert pending(engine) == []
    finally:
        engine.dispose()


def test_a_failed_migration_leaves_no_trace(empty_database_url: str) -> None:
    with opened(empty_database_url) as engine:
        statements = []

        def fail_at_the_last_table(*arguments: Any) -> None:
            statements.append(arguments[2])
            if "webhook_events" in arguments[2]:
                raise RuntimeError("power cut")

        event.listen(engine, "before_cursor_execute", fail_at_the_last_table)
        with pytest.raises(RuntimeError, match="power cut"):
            migrate(engine)
        event.remove(engine, "before_cursor_execute", fail_at_the_last_table)

        assert any("CREATE TABLE" in statement for statement in statements)
        assert our_tables(engine) == set()
        assert migrate(engine) == REVISIONS


def test_the_schema_may_have_another_name(empty_postgres_url: str) -> None:
    with opened(empty_postgres_url, schema='Shop "jobs"') as engine:
        assert migrate(engine) == REVISIONS
        assert pending(engine) == []
        assert set(inspect(engine).get_schema_names()) == {"information_schema", "public", 'Shop "jobs"'}
    checked = alembic("check", url=empty_postgres_url, DATABASE_SCHEMA='Shop "jobs"')
    assert checked == "No new upgrade operations detected."


def test_a_search_path_that_leads_to_our_tables_changes_nothing(postgres_database_url: str) -> None:
    url = make_url(postgres_database_url).update_query_dict({"options": "-csearch_path=customer_jobs,public"})

    checked = alembic("check", url=url.render_as_string(hide_password=False))

    assert checked == "No new upgrade operations detected."


def test_a_table_of_the_apps_in_the_same_sqlite_file_is_named_and_left_alone(empty_sqlite_url: str) -> None:
    with opened(empty_sqlite_url) as engine:
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE Jobs (title TEXT)"))

        with pytest.raises(CustomerJobsError, match=r"already has 'jobs'.*nothing was written"):
            migrate(engine)

        assert our_tables(engine) == {"Jobs"}


def test_a_table_of_the_apps_in_the_same_schema_is_named_and_left_alone(empty_postgres_url: str) -> None:
    with opened(empty_postgres_url, schema="public") as engine:
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE customers (name TEXT)"))

        with pytest.raises(CustomerJobsError, match=r"schema 'public' already has 'customers'.*DATABASE_SCHEMA"):
            migrate(engine)

        assert inspect(engine).get_table_names() == ["customers"]


APP_ENV = """
from alembic import context
from sqlalchemy import Column, Integer, MetaData, Table, create_engine, pool
import os
metadata = MetaData()
for name in ("jobs", "customers", "events"):
    Table(name, metadata, Column("number", Integer, primary_key=True))
with create_engine(os.environ["DATABASE_URL"], poolclass=pool.NullPool).connect() as connection:
    context.configure(connection=connection, target_metadata=metadata)
    with context.begin_transaction():
        context.run_migrations()
"""
APP_REVISION = """
from alembic import op
import sqlalchemy as sa
revision, down_revision = "app1", None
def upgrade():
    for name in ("jobs", "customers", "events"):
        op.create_table(name, sa.Column("number", sa.Integer, primary_key=True))
"""


def test_an_app_with_tables_of_the_same_names_notices_nothing(empty_postgres_url: str, tmp_path: Path) -> None:
    (tmp_path / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s/app\npath_separator = os\n")
    (tmp_path / "app" / "versions").mkdir(parents=True)
    (tmp_path / "app" / "env.py").write_text(APP_ENV)
    (tmp_path / "app" / "versions" / "app1.py").write_text(APP_REVISION)
    alembic("upgrade", "head", url=empty_postgres_url, cwd=tmp_path)
    with connect(empty_postgres_url) as connection:
        connection.execute("INSERT INTO jobs VALUES (1)")

    alembic("upgrade", "head", url=empty_postgres_url)

    assert alembic("check", url=empty_postgres_url, cwd=tmp_path) == "No new upgrade operations detected."
    assert alembic("check", url=empty_postgres_url) == "No new upgrade operations detected."
    alembic("downgrade", "base", url=empty_postgres_url)
    with connect(empty_postgres_url) as connection:
        assert connection.execute("SELECT number FROM public.jobs").fetchall() == [(1,)]
        assert connection.execute("SELECT version_num FROM public.alembic_version").fetchall() == [("app1",)]


def test_a_database_of_a_newer_version_is_no_hindrance_to_a_worker_but_to_migrate(engine: Engine) -> None:
    table = {"sqlite": "customer_jobs_alembic_version", "postgresql": "customer_jobs.alembic_version"}
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {table[engine.dialect.name]} SET version_num = '9999_future'"))

    require_current(engine)

    with pytest.raises(CustomerJobsError, match="9999_future"):
        migrate(engine)


def test_a_user_without_rights_is_sent_to_the_script(empty_postgres_url: str) -> None:
    role = f"guest_{os.urandom(8).hex()}"
    with connect(empty_postgres_url) as administrator:
        administrator.execute(f"CREATE ROLE {role} LOGIN")
        try:
            as_guest = make_url(empty_postgres_url).set(username=role).render_as_string(hide_password=False)
            with opened(as_guest) as engine:
                with pytest.raises(CustomerJobsError, match="migrate --sql"):
                    migrate(engine)

                administrator.execute(f"CREATE SCHEMA customer_jobs AUTHORIZATION {role}")

                assert migrate(engine) == REVISIONS
        finally:
            administrator.execute(f"DROP OWNED BY {role}")
            administrator.execute(f"DROP ROLE {role}")


def test_the_script_does_the_same_to_postgresql(postgres_database_url: str, empty_postgres_url: str) -> None:
    with connect(empty_postgres_url) as connection:
        connection.execute(migration_sql(empty_postgres_url).encode())

    with opened(postgres_database_url) as migrated, opened(empty_postgres_url) as scripted:
        assert described(scripted) == described(migrated)
        assert pending(scripted) == []


def test_the_script_has_nothing_that_psql_takes_for_its_own() -> None:
    script = migration_sql("postgresql://user:secret@host/name")

    outside_of_strings = re.sub(r"'(?:[^']|'')*'|--.*", "", script)
    assert not re.search(r"(?<!:):(?![:=])|\\", outside_of_strings)
    assert script.startswith("BEGIN;")
    assert script.rstrip().endswith("COMMIT;")
    assert "secret" not in script


def test_the_script_does_the_same_to_sqlite(sqlite_url: str, empty_sqlite_url: str) -> None:
    with opened(sqlite_url) as migrated, opened(empty_sqlite_url) as scripted:
        driver = scripted.raw_connection()
        driver.executescript(migration_sql(empty_sqlite_url))
        driver.close()

        assert described(scripted) == described(migrated)
        assert pending(scripted) == []


def test_inserting_notifies_those_who_listen(postgres_database_url: str) -> None:
    job = "INSERT INTO customer_jobs.jobs (kind, payload) VALUES ('customer.create', '{}'), ('customer.create', '{}')"
    event = "INSERT INTO customer_jobs.events (type, subject, data) VALUES ('t', 's', '{}')"
    with connect(postgres_database_url) as listener, connect(postgres_database_url) as producer:
        listener.execute("LISTEN customer_jobs")

        producer.execute(job)
        producer.execute(event)
        producer.execute("ALTER TABLE customer_jobs.jobs DISABLE TRIGGER jobs_notify")
        producer.execute(job)
        producer.execute("NOTIFY customer_jobs, 'the end'")

        heard = [notice.payload for notice in listener.notifies(timeout=5, stop_after=3)]
    assert heard == ["jobs", "events", "the end"]


INSTALLED = """
import os, customer_jobs
from customer_jobs.database import open_engine
from customer_jobs.migrate import migrate
print(customer_jobs.__file__, *migrate(open_engine(os.environ["DATABASE_URL"])))
"""


@pytest.mark.slow
def test_the_installed_wheel_migrates(empty_sqlite_url: str, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], check=True, cwd=ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "100% installed"  # A per cent sign must not be taken for an interpolation.
    zipfile.ZipFile(wheel).extractall(installed)

    told = subprocess.run(
        [sys.executable, "-c", INSTALLED],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "DATABASE_URL": empty_sqlite_url, "PYTHONPATH": str(installed)},
    ).stdout

    assert told.strip() == " ".join([str(installed / "customer_jobs" / "__init__.py"), *REVISIONS])
