"""A stack with one worker for each kind of database, shared by the tests that break nothing; others make their own."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests import servers
from tests.acceptance.stack import Stack, running


@contextmanager
def _fresh_database(request: pytest.FixtureRequest, kind: str, directory: Path) -> Iterator[str]:
    if kind == "sqlite":
        template = request.getfixturevalue("_sqlite_template")
        yield f"sqlite:///{shutil.copy(template, directory / 'customer_jobs.sqlite3')}"
        return
    server = request.getfixturevalue("postgres_url")
    name = f"acceptance_{uuid.uuid4().hex}"
    yield servers.create_database(server, name, template=request.getfixturevalue("_postgres_template"))
    servers.drop_database(server, name)


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose worker runs; tests share it, so each looks only at its own jobs."""
    directory = tmp_path_factory.mktemp(request.param)
    with (
        _fresh_database(request, request.param, directory) as database_url,
        servers.start_redis(directory) as redis,
        running(directory, database_url, redis.url) as stack,
    ):
        stack.start_worker()
        yield stack


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[servers.Server]:
    """A Redis that a test may restart, which then has lost its data."""
    with servers.start_redis(tmp_path) as redis:
        yield redis


@pytest.fixture
def own_stack(tmp_path: Path, database_url: str, redis: servers.Server) -> Iterator[Stack]:
    """A stack without a worker, for tests that kill something."""
    with running(tmp_path, database_url, redis.url) as stack:
        yield stack


@pytest.fixture
def stacks(tmp_path: Path, sqlite_url: str, postgres_database_url: str) -> Iterator[list[Stack]]:
    """A stack without a worker on either kind of database, for what takes too long to be done one after another."""
    with ExitStack() as open_ones:
        made = []
        for name, url in {"sqlite": sqlite_url, "postgresql": postgres_database_url}.items():
            redis = open_ones.enter_context(servers.start_redis(tmp_path / name))
            made.append(open_ones.enter_context(running(tmp_path / name, url, redis.url)))
        yield made
