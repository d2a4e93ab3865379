"""The servers that other tests rely on: they start, crash and come back at the same URL."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from customer_jobs import embedded
from customer_jobs.embedded import EmbeddedError
from tests import servers
from tests.servers import Server


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with servers.start_postgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server


def select_one(url: str) -> object:
    with servers.connect(url) as connection:
        row = connection.execute("select 1").fetchone()
    return row and row[0]


def test_postgres_answers(postgres: Server) -> None:
    assert select_one(postgres.url) == 1


def test_postgres_keeps_what_was_committed_over_a_crash(postgres: Server) -> None:
    with servers.connect(postgres.url) as connection:
        connection.execute("create table kept as select 42 as number")
        postgres.stop_immediately()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")

    postgres.start_again()

    with servers.connect(postgres.url) as connection:
        assert connection.execute("select number from kept").fetchone() == (42,)


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs Linux")
def test_postgres_ends_with_its_leash(tmp_path: Path) -> None:
    server = servers.start_postgres(tmp_path)
    leash = int(Path(f"/proc/{server.program.pid}/stat").read_text().rpartition(")")[2].split()[1])

    os.kill(leash, signal.SIGKILL)

    embedded.wait_until(lambda: not servers.answers(server.url), 5, "postgres is gone")
    server.stop()


def test_a_database_is_made_copied_and_dropped(postgres: Server) -> None:
    first = servers.create_database(postgres.url, "first")
    with servers.connect(first) as connection:
        connection.execute("create table copied (number int)")

    second = servers.create_database(postgres.url, "second", template="first")

    with servers.connect(second) as connection:
        assert connection.execute("select count(*) from copied").fetchone() == (0,)
        servers.drop_database(postgres.url, "second")
    servers.drop_database(postgres.url, "first")
    assert not servers.answers(first)
    assert not servers.answers(second)


def test_the_url_of_a_postgres_elsewhere_is_taken_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_POSTGRES_URL", "postgres://me:secret@db.example:6543/test")

    with servers.postgres_url(tmp_path) as url:
        assert url == "postgresql+psycopg://me:secret@db.example:6543/test"


def test_the_postgres_of_the_wheel_is_found_when_there_is_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(servers, "OLDEST_POSTGRES", 999)

    found = servers.find_postgres()

    assert servers.major_version(found) >= 18


def test_redis_answers(tmp_path: Path) -> None:
    program, url = embedded.start_redis(tmp_path, arguments=["--maxmemory", "10mb"])

    with program, redis.Redis.from_url(url) as client:
        assert client.ping()
        assert client.config_get("maxmemory*")["maxmemory-policy"] == "noeviction"

    assert program.exit_code() == 0


def test_an_append_only_redis_keeps_its_data_over_a_crash(tmp_path: Path) -> None:
    with servers.start_redis(tmp_path, append_only=True) as server, redis.Redis.from_url(server.url) as client:
        client.set("colour", "blue")
        server.stop_immediately()

        server.start_again()

        assert client.get("colour") == b"blue"


def test_a_hanging_redis_goes_on_when_told(tmp_path: Path) -> None:
    with (
        servers.start_redis(tmp_path) as server,
        redis.Redis.from_url(server.url, socket_timeout=0.1, retry=None) as client,
    ):
        server.hang()
        with pytest.raises(redis.TimeoutError):
            client.ping()

        server.go_on()

        embedded.wait_until(client.ping, 5, "redis answers")


def test_a_taken_port_is_refused_before_redis_starts(tmp_path: Path) -> None:
    with servers.start_redis(tmp_path / "first") as server:
        port = int(server.url.split(":")[2].split("/")[0])

        with pytest.raises(EmbeddedError, match=f"port {port} cannot be used"):
            embedded.start_redis(tmp_path / "second", port=port)


def test_a_redis_that_refuses_its_arguments_is_reported_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedError, match=r"redis ended with exit code 1(.|\n)*no-such-option"):
        embedded.start_redis(tmp_path, arguments=["--no-such-option", "1"])
