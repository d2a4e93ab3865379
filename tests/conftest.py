"""Real servers, and a freshly migrated database for every test, on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, make_url

from customer_jobs.database import open_engine
from customer_jobs.environment import PREFIX
from customer_jobs.migrate import migrate
from customer_jobs.schema import metadata
from tests import servers


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> Iterator[None]:
    """The developer's own DATABASE_URL, STRIPE_API_KEY and the like mean nothing to a test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith((PREFIX, "DATABASE_", "REDIS_", "STRIPE_")) or name == "COLUMNS":
                patch.delenv(name)
        yield


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard() -> None:
    """What a test starts hears Ctrl-C, also where the tests themselves run in the background of a script."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server for the whole run, by the URL of a database that is not ours."""
    with (
        tempfile.TemporaryDirectory(prefix="customer-jobs-") as directory,
        servers.postgres_url(Path(directory)) as url,
    ):
        yield url


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A Redis for the whole run; a test that counts keys or fills it up starts its own."""
    with (
        tempfile.TemporaryDirectory(prefix="customer-jobs-") as directory,
        servers.start_redis(Path(directory)) as redis,
    ):
        yield redis.url


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    template = tmp_path_factory.mktemp("sqlite") / "template.sqlite3"
    _migrate(f"sqlite:///{template}")
    return template


@pytest.fixture(scope="session")
def _postgres_template(postgres_url: str) -> Iterator[str]:
    name = f"template_{uuid.uuid4().hex}"
    _migrate(servers.create_database(postgres_url, name))
    yield name
    servers.drop_database(postgres_url, name)


def _migrate(url: str) -> None:
    engine = open_engine(url)
    migrate(engine)
    engine.dispose()  # The last to close a SQLite file leaves no second one beside it; a template may have no users.


@pytest.fixture
def sqlite_url(_sqlite_template: Path, tmp_path: Path) -> str:
    """A migrated SQLite database."""
    return f"sqlite:///{shutil.copy(_sqlite_template, tmp_path / 'customer_jobs.sqlite3')}"


@pytest.fixture(scope="session")
def _empty_again() -> list[tuple[str, object]]:
    """Databases that a test has left as it found them, but for rows: emptying one is a hundred times faster.

    Beside each what is in it, see `servers.objects`.
    """
    return []


@pytest.fixture
def postgres_database_url(
    postgres_url: str, _postgres_template: str, _empty_again: list[tuple[str, object]]
) -> Iterator[str]:
    """A migrated PostgreSQL database."""
    if not _empty_again:
        name = f"test_{uuid.uuid4().hex}"
        made = servers.create_database(postgres_url, name, template=_postgres_template)
        _empty_again.append((made, servers.objects(made)))
    url, before = _empty_again.pop()
    yield url
    if servers.is_emptied(url, [table.fullname for table in reversed(metadata.sorted_tables)], before):
        _empty_again.append((url, before))
    else:
        servers.drop_database(postgres_url, str(make_url(url).database))


@pytest.fixture
def empty_postgres_url(postgres_url: str) -> Iterator[str]:
    """A PostgreSQL database with nothing in it."""
    name = f"test_{uuid.uuid4().hex}"
    yield servers.create_database(postgres_url, name)
    servers.drop_database(postgres_url, name)


@pytest.fixture
def empty_sqlite_url(tmp_path: Path) -> str:
    """A SQLite database that is made when first used."""
    return f"sqlite:///{tmp_path / 'empty.sqlite3'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str:
    """Runs a test once on either kind of database."""
    kind: str = request.param
    return kind


@pytest.fixture
def database_url(request: pytest.FixtureRequest, database: str) -> str:
    """A migrated database of either kind, for processes that a test starts; `engine` is on the same one."""
    # PostgreSQL starts only where a test asks for it.
    url: str = request.getfixturevalue({"sqlite": "sqlite_url", "postgresql": "postgres_database_url"}[database])
    return url


@pytest.fixture
def empty_database_url(request: pytest.FixtureRequest, database: str) -> str:
    """A database of either kind with nothing in it."""
    url: str = request.getfixturevalue({"sqlite": "empty_sqlite_url", "postgresql": "empty_postgres_url"}[database])
    return url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """A migrated database of either kind."""
    engine = open_engine(database_url)
    yield engine
    engine.dispose()
