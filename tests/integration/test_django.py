"""`customer_jobs.django` in a Django project: Django's own test runner, its migrate and its management command."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import inspect, make_url

from customer_jobs.database import open_engine
from customer_jobs.migrate import migration_sql, pending
from customer_jobs.schema import SCHEMA
from tests.acceptance.stack import environment

ROOT = Path(__file__).parents[2]
SCENARIOS = "tests.django_project.scenarios"


def manage(*words: str, url: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """What `manage.py` would do in the project under tests/django_project."""
    given = {"DATABASE_URL": url, "DJANGO_SETTINGS_MODULE": "tests.django_project.settings", **settings}
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "django", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(given),
        timeout=60,
    )


def passed(ran: subprocess.CompletedProcess[str]) -> int:
    assert ran.returncode == 0, ran.stdout + ran.stderr
    counted = re.search(r"^Ran (\d+) tests?", ran.stderr, re.MULTILINE)
    assert counted is not None
    return int(counted[1])


def tables(url: str) -> tuple[set[str], set[str]]:
    """The app's own tables, and ours."""
    engine = open_engine(url)
    try:
        if engine.dialect.name == "postgresql":
            ours = set(inspect(engine).get_table_names(schema=SCHEMA)) - {"alembic_version"}
            return set(inspect(engine).get_table_names()), ours
        return set(inspect(engine).get_table_names()), set(inspect(engine).get_table_names())
    finally:
        engine.dispose()


def test_the_tests_of_an_app_pass(empty_database_url: str) -> None:
    ran = manage("test", SCENARIOS, url=empty_database_url)

    assert passed(ran) >= 20


@pytest.mark.parametrize(
    "settings",
    [{"USE_TZ": "0", "SERVER_SIDE_BINDING": "1"}, {"DATABASE_TIME_ZONE": "Asia/Kathmandu"}],
    ids=" ".join,
)
def test_no_setting_of_django_changes_what_comes_back(empty_postgres_url: str, settings: dict[str, str]) -> None:
    ran = manage("test", f"{SCENARIOS}.Results", f"{SCENARIOS}.Calls", url=empty_postgres_url, **settings)

    assert passed(ran) >= 9


def test_an_app_without_time_zones_reads_the_same_from_sqlite(empty_sqlite_url: str) -> None:
    assert passed(manage("test", f"{SCENARIOS}.Results", url=empty_sqlite_url, USE_TZ="0")) >= 3


def test_migrate_makes_the_apps_tables_and_ours(empty_database_url: str) -> None:
    first = manage("migrate", "--verbosity=0", url=empty_database_url)
    again = manage("migrate", "--verbosity=0", url=empty_database_url)

    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    theirs, ours = tables(empty_database_url)
    assert "auth_user" in theirs
    assert {"jobs", "attempts", "events", "customers"} <= ours


def test_the_command_makes_only_ours(empty_database_url: str) -> None:
    first = manage("customer_jobs", "migrate", url=empty_database_url)
    again = manage("customer_jobs", "migrate", url=empty_database_url)

    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("applied 0001_tables, ")
    assert again.stdout == "the tables are up to date\n"
    theirs, ours = tables(empty_database_url)
    assert "auth_user" not in theirs
    assert {"jobs", "attempts", "events", "customers"} <= ours
    engine = open_engine(empty_database_url)
    assert pending(engine) == []
    engine.dispose()


@pytest.mark.parametrize("url", ["postgresql://app:secret@127.0.0.1:1/app", "sqlite:////nowhere/app.sqlite3"])
def test_the_command_prints_the_script_and_connects_to_nothing(url: str) -> None:
    printed = manage("customer_jobs", "migrate", "--sql", url=url)

    assert (printed.returncode, printed.stderr) == (0, "")
    assert printed.stdout.strip() == migration_sql(url).strip()


def test_a_database_out_of_reach_is_said_in_one_line(empty_postgres_url: str) -> None:
    away = make_url(empty_postgres_url).set(port=1).render_as_string(hide_password=False)

    refused = manage("customer_jobs", "migrate", url=away)

    assert refused.returncode == 1
    assert refused.stderr.startswith("CommandError: the database")
    assert len(refused.stderr.splitlines()) == 1


ENQUEUE = """
from customer_jobs import Unavailable
from customer_jobs.django import jobs
try:
    jobs.create_customer({})
except Unavailable as error:
    print(f"unavailable: {error}")
"""


def test_enqueueing_without_a_database_is_the_same_error_as_elsewhere(empty_postgres_url: str) -> None:
    away = make_url(empty_postgres_url).set(port=1).render_as_string(hide_password=False)

    told = manage("shell", "--no-imports", "-c", ENQUEUE, url=away)

    assert told.stdout.startswith("unavailable: the database 'default' of Django cannot be used: ")
    assert len(told.stdout.splitlines()) == 1


def test_the_command_takes_another_of_the_databases(empty_sqlite_url: str) -> None:
    refused = manage("customer_jobs", "migrate", "--database", "other", url=empty_sqlite_url)

    assert refused.returncode == 1
    assert refused.stderr == "CommandError: The connection 'other' doesn't exist.\n"
