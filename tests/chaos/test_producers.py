"""Who enqueues while Redis is away notices nothing; while the database is away he learns of it within five seconds."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from customer_jobs import CustomerJobs, Unavailable
from customer_jobs.cli import app
from customer_jobs.database import TRUSTED_SECONDS, in_our_schema, open_engine
from customer_jobs.embedded import wait_until
from customer_jobs.migrate import migrate
from customer_jobs.schema import jobs
from tests import servers
from tests.acceptance.stack import CHECKOUT, email
from tests.builders import rows
from tests.promises import UNAVAILABLE_SECONDS
from tests.proxy import Proxy
from tests.servers import Server

BUSY_SECONDS = 5.0  #: What a machine may add that has other things to do; `unit/test_promises` allows nothing.


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[Server]:
    """A PostgreSQL of this test's own, migrated: it is going to be stopped."""
    with servers.start_postgres(tmp_path) as server:
        engine = open_engine(server.url)
        migrate(engine)
        engine.dispose()
        yield server


@pytest.fixture
def proxy(postgres: Server) -> Iterator[Proxy]:
    with Proxy.before(postgres.url) as proxy:
        yield proxy


@pytest.fixture
def producer(postgres: Server, proxy: Proxy) -> Iterator[CustomerJobs]:
    producer = CustomerJobs(proxy.through(postgres.url))
    yield producer
    producer.engine.dispose()


def refuse(_: Server, proxy: Proxy) -> None:
    proxy.refuse()
    proxy.reset()


def swallow(_: Server, proxy: Proxy) -> None:
    proxy.stall()


def swallow_when_idle(_: Server, proxy: Proxy) -> None:
    idle_since = time.monotonic()
    wait_until(lambda: time.monotonic() - idle_since > TRUSTED_SECONDS + 0.1, 5, "the connection is not trusted")
    proxy.stall()


def hang(postgres: Server, proxy: Proxy) -> None:
    # Sessions that are open go on: only a new connection meets it.
    proxy.reset()
    postgres.hang()
    status = Path(f"/proc/{postgres.program.pid}/stat")
    wait_until(lambda: status.read_text().rpartition(")")[2].split()[0] == "T", 5, "the server is stopped")


def mend(postgres: Server, proxy: Proxy) -> None:
    proxy.accept()
    proxy.go_on()
    postgres.go_on()


WAYS: dict[str, Callable[[Server, Proxy], None]] = {
    "refused": refuse,
    "swallowed in mid-connection": swallow,
    "swallowed on an idle connection": swallow_when_idle,
    "a server that hangs": hang,
}

#: Those that break the connections that there are.
BROKEN = {"refused", "a server that hangs"}


def seconds_until_unavailable(producer: CustomerJobs) -> float:
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"^the database of DATABASE_URL cannot be used: [^\n]+$"):
        producer.create_customer({"email": email()})
    return time.monotonic() - began


def test_a_create_without_a_database_fails_soon_and_another_succeeds_once_it_is_back(
    postgres: Server, proxy: Proxy, producer: CustomerJobs
) -> None:
    took = {}
    for way, harm in WAYS.items():
        producer.create_customer({"email": email()})
        harm(postgres, proxy)

        took[way] = [seconds_until_unavailable(producer)]
        if way in BROKEN:  # Found out at once; what counts is how long it takes to see that there is no other.
            took[way].append(seconds_until_unavailable(producer))

        mend(postgres, proxy)
    producer.create_customer({"email": email()})
    assert max(max(each) for each in took.values()) < UNAVAILABLE_SECONDS + BUSY_SECONDS, took
    assert len(rows(producer.engine, jobs)) == len(WAYS) + 1


@pytest.mark.parametrize("way", ["refused", "swallowed in mid-connection", "a server that hangs"])
def test_the_command_says_so_in_one_line_and_exits_4(postgres: Server, proxy: Proxy, way: str) -> None:
    env = {"DATABASE_URL": proxy.through(postgres.url)}
    WAYS[way](postgres, proxy)

    began = time.monotonic()
    result = CliRunner().invoke(app, ["create", "--email", email()], env=env)
    took = time.monotonic() - began

    mend(postgres, proxy)
    assert result.exit_code == 4
    assert re.fullmatch(
        r"error: the database of DATABASE_URL cannot be used: [^\n]+; is it running, [^\n]+\n", result.stderr
    )
    assert result.stdout == ""
    assert took < UNAVAILABLE_SECONDS + BUSY_SECONDS


#: Prints the milliseconds of each create, and what of Redis and Celery it loaded.
PRODUCE = """
import sys, time
from customer_jobs import CustomerJobs
jobs = CustomerJobs()
for number in range(20):
    began = time.perf_counter()
    jobs.create_customer({"name": "Jenny Rosen"})
    print((time.perf_counter() - began) * 1000)
print([name for name in ("redis", "kombu", "celery") if name in sys.modules])
"""


def test_a_create_does_not_know_whether_there_is_a_redis(sqlite_url: str) -> None:
    # It takes connections and answers nothing, which is the worst that a Redis can do.
    with socket.create_server(("127.0.0.1", 0)) as hung:
        hung.setblocking(False)
        env = {**os.environ, "DATABASE_URL": sqlite_url, "REDIS_URL": f"redis://127.0.0.1:{hung.getsockname()[1]}/0"}
        said = subprocess.run(
            [sys.executable, "-c", PRODUCE], env=env, cwd=CHECKOUT, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        result = CliRunner().invoke(app, ["create", "--name", "Jenny Rosen"], env=env)

        with pytest.raises(BlockingIOError):
            hung.accept()
    assert said[-1] == "[]"
    assert sorted(map(float, said[:-1]))[10] < 1000
    assert result.exit_code == 0
    engine = in_our_schema(open_engine(sqlite_url))
    assert {row["state"] for row in rows(engine, jobs)} == {"queued"}
    engine.dispose()
