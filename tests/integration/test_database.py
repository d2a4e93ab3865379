"""Connections: which are asked whether they still answer, what becomes of those that do not, and when none is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import OperationalError

from customer_jobs import database
from customer_jobs.database import Transaction, alone, open_engine, parse_url, reading, writing
from customer_jobs.errors import Unavailable
from tests import servers


@pytest.fixture
def engine(empty_postgres_url: str) -> Iterator[Engine]:
    engine = open_engine(empty_postgres_url)
    yield engine
    engine.dispose()


def backend(engine: Engine) -> int:
    """The server's process that answers this time."""
    with engine.connect() as connection:
        return int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())


def end(pid: int, url: str) -> None:
    with servers.connect(url) as connection:
        ended = connection.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,)).fetchone()
        assert ended == (True,)


def test_a_connection_that_broke_while_it_was_idle_is_replaced(
    engine: Engine, empty_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "TRUSTED_SECONDS", 0.0)
    before = backend(engine)
    end(before, empty_postgres_url)

    after = backend(engine)

    assert after != before


def test_a_connection_that_was_used_lately_is_not_asked_first(
    engine: Engine, empty_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "TRUSTED_SECONDS", 3600.0)
    end(backend(engine), empty_postgres_url)

    with pytest.raises(OperationalError):
        backend(engine)
    again = backend(engine)

    assert again, "one transaction met the broken connection, the next has another"


def test_a_standby_is_left_for_whom_its_name_leads_to_by_now(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"))
        connection.commit()

    with pytest.raises(Unavailable, match="read-only transaction"), writing(engine) as transaction:
        transaction.change(text("CREATE TABLE written (id int)"))

    with writing(engine) as transaction:
        transaction.change(text("CREATE TABLE written (id int)"))


def test_the_connection_used_last_is_used_next(engine: Engine) -> None:
    with engine.connect(), engine.connect():
        pass

    answering = {backend(engine) for _ in range(3)}

    assert len(answering) == 1


@pytest.mark.parametrize("within", [reading, writing, alone])
def test_a_pool_without_a_free_connection_is_a_database_out_of_reach(
    database_url: str, within: Callable[[Engine], AbstractContextManager[Transaction]]
) -> None:
    engine = create_engine(parse_url(database_url), pool_size=1, max_overflow=0, pool_timeout=0)

    with engine.connect(), pytest.raises(Unavailable, match="no connection of the pool came free"), within(engine):
        pass

    engine.dispose()
