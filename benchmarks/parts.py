"""What the programs here measure on: a database, a Redis, the sandbox and workers, each in a process of its own.

Nothing is measured here. All of it listens on the loopback address only and ends with the program that started it.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from sqlalchemy import Engine

from customer_jobs.database import open_engine
from customer_jobs.embedded import Program, free_port, start, start_redis, wait_until
from customer_jobs.migrate import migrate
from customer_jobs.vocabulary import Kind, Priority
from tests import servers
from tests.acceptance.stack import CELERY, CHECKOUT, STRIPE_API_KEY, environment, wait_for_line

PATIENCE_SECONDS = 30.0  #: For a program to get ready, on a machine that others keep busy.
LOOK_EVERY_SECONDS = 0.25  #: Into the sandbox's log, which the sandbox has to write out.

Json = dict[str, Any]


class Stripe:
    """The sandbox, by its doors: its log is where figures come from."""

    def __init__(self, url: str) -> None:
        self.url = url

    def answers(self) -> bool:
        try:
            self.ask("health")
        except OSError:
            return False
        return True

    def ask(self, door: str, **arguments: object) -> Any:
        """What the sandbox says at `/_sandbox/<door>`; with arguments, what is to change there."""
        body = json.dumps(arguments).encode() if arguments else None
        with urlopen(Request(f"{self.url}/_sandbox/{door}", body), timeout=PATIENCE_SECONDS) as answer:
            return json.load(answer)

    def requests(self, since: int = 0) -> list[Json]:
        """The log: every request to /v1 after that number, oldest first."""
        found: list[Json] = self.ask(f"requests?since={since}")
        return found

    def wait_until(self, enough: Callable[[Sequence[Json]], bool], timeout_seconds: float) -> list[Json]:
        """The requests answered by the time they are enough.

        Raises:
            TimeoutError: they never were.
        """
        give_up_at = time.monotonic() + timeout_seconds
        answered: list[Json] = []
        while not enough(answered):
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"{len(answered)} requests after {timeout_seconds:g} s are not enough")
            time.sleep(LOOK_EVERY_SECONDS)
            for request in self.requests(answered[-1]["number"] if answered else 0):
                if request["finished_at"] is None:
                    break  # What comes behind it is read again when it is finished.
                answered.append(request)
        return answered


@dataclass(frozen=True)
class Stage:
    """One of each; workers that are started stay until the stage is left."""

    directory: Path
    database_url: str
    engine: Engine
    redis_url: str
    stripe: Stripe
    _running: ExitStack

    def start_workers(self, count: int = 1, **settings: str) -> list[Program]:
        """Workers as `celery -A worker.app worker` starts them, once all are ready."""
        settings = {
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "STRIPE_API_KEY": STRIPE_API_KEY,
            "STRIPE_API_BASE": self.stripe.url,
        } | settings
        names = [f"worker-{number}" for number in range(1, count + 1)]
        return self.start_celery([[*CELERY, "worker", "-n", f"{name}@benchmark"] for name in names], settings)

    def start_celery(self, commands: Sequence[Sequence[str]], settings: dict[str, str]) -> list[Program]:
        """Any Celery workers, once all are ready."""
        programs = []
        for command in commands:
            log = self.directory / f"{uuid.uuid4().hex}.log"
            program = start("a worker", command, log=log, env=environment(settings), cwd=CHECKOUT)
            self._running.callback(program.kill)
            programs.append(program)
        for program in programs:
            wait_for_line(program, " ready.")
        return programs


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL to make databases on: TEST_POSTGRES_URL, else one that runs for this block."""
    with (
        tempfile.TemporaryDirectory(prefix="customer-jobs-") as directory,
        servers.postgres_url(Path(directory)) as url,
    ):
        yield url


@contextmanager
def stage(postgres_url: str | None, **sandbox: object) -> Iterator[Stage]:
    """A stage without workers, on a new database of that server or, for None, on SQLite; see `Sandbox` for the rest."""
    with ExitStack() as running:
        directory = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="customer-jobs-")))
        database_url, engine = running.enter_context(database(directory, postgres_url))
        program, redis_url = start_redis(directory / "redis")
        running.enter_context(program)
        stripe = running.enter_context(_sandbox(directory, sandbox))
        yield Stage(directory, database_url, engine, redis_url, stripe, running.enter_context(ExitStack()))


@contextmanager
def database(directory: Path, postgres_url: str | None) -> Iterator[tuple[str, Engine]]:
    """The URL of a new, migrated database and an engine on it."""
    with ExitStack() as running:
        name = f"benchmark_{uuid.uuid4().hex}"
        url = f"sqlite:///{directory / name}.sqlite3"
        if postgres_url is not None:
            url = servers.create_database(postgres_url, name)
            running.callback(servers.drop_database, postgres_url, name)
        engine = open_engine(url)
        running.callback(engine.dispose)
        migrate(engine)
        yield url, engine


@contextmanager
def _sandbox(directory: Path, options: Json) -> Iterator[Stripe]:
    port = free_port()
    stripe = Stripe(f"http://127.0.0.1:{port}")
    code = f"from customer_jobs.sandbox import serve; serve({port}, **{options!r})"
    with start("sandbox", [sys.executable, "-c", code], log=directory / "sandbox.log", cwd=CHECKOUT) as program:
        wait_until(stripe.answers, PATIENCE_SECONDS, "the sandbox answers", program=program)
        yield stripe


def enqueue(
    engine: Engine,
    count: int,
    kind: Kind = Kind.CUSTOMER_CREATE,
    priority: Priority = Priority.DEFAULT,
    *,
    accounts: int | None = None,
) -> None:
    """So many jobs by one plain INSERT, committed: a producer needs nothing else; of so many connected accounts."""
    # The sandbox makes these customers up when they are asked for.
    argument = "customer_id" if kind is Kind.CUSTOMER_FETCH else "body"
    value = '"cus_sandbox_ok__id#"' if kind is Kind.CUSTOMER_FETCH else '{"email": "user-#@example.com"}'
    payload = f"""replace('{{"{argument}": {value}}}', '#', CAST(n AS text))"""
    table, json_type = "customer_jobs.jobs", "json"
    account = "NULL" if accounts is None else f"'acct_bench' || CAST(n - n / {accounts} * {accounts} AS text)"
    numbers = f"SELECT n FROM generate_series(1, {count}) AS numbers (n)"
    if engine.dialect.name == "sqlite":
        table, json_type = "jobs", "text"
        counting = f"SELECT 1 UNION ALL SELECT n + 1 FROM numbers LIMIT {count}"
        numbers = f"WITH RECURSIVE numbers (n) AS ({counting}) SELECT n FROM numbers"
    with engine.begin() as connection:
        connection.exec_driver_sql(
            f"INSERT INTO {table} (kind, payload, priority, stripe_account) "
            f"SELECT '{kind}', CAST({payload} AS {json_type}), {priority:d}, {account} FROM ({numbers}) AS numbered"
        )


def machine(loads: Sequence[float]) -> str:
    """When and where it was measured, and how busy the machine was before and after."""
    first, last = (f"{load:.1f}" for load in loads)
    where = f"Python {platform.python_version()}, {os.cpu_count()} cores, load average {first} before, {last} after"
    return f"{time.strftime('%Y-%m-%d')}, {where}"
