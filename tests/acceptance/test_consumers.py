"""Consumers as programs: killed in turn while Redis is flushed and restarted, and slow ones beside a worker."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, String, Table, select

from customer_jobs import Event, EventConsumer
from customer_jobs.database import open_engine
from customer_jobs.embedded import Program, start, wait_until
from customer_jobs.stream import connect
from tests.acceptance.stack import CHECKOUT, Stack, email, environment, unique
from tests.builders import lead
from tests.outbox import add_events
from tests.servers import Server
from worker.dispatcher.relay import Relay

EVENTS = 2000
BATCH = 50
DONE_SECONDS = 45.0

effects = Table(
    "effects",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("grp", String(20)),
    Column("event", String(36)),
)

#: Appends each event's id to a file, or writes it into the app's table in the transaction of the bookkeeping.
CONSUMER = """
import logging, sys
from sqlalchemy import text
from customer_jobs import EventConsumer
from customer_jobs.database import database_url, open_engine

group, name, path = sys.argv[1:]
logging.basicConfig(level=logging.ERROR)
consumer = EventConsumer(group, name=name, takeover_seconds=1.0, retry_seconds=0.05)
if group == "once":
    def handler(event, connection):
        connection.execute(text("INSERT INTO effects (grp, event) VALUES ('once', :id)"), {"id": event.id})
    consumer.run(handler, once_in=open_engine(database_url()))
else:
    with open(path, "a", buffering=1) as file:
        for event in consumer:
            file.write(event.id + "\\n")
"""


class Fleet:
    """Two consumers in each of two groups, one of which uses the bookkeeping."""

    def __init__(self, directory: Path, database_url: str, redis_url: str) -> None:
        self._directory = directory
        self._settings = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
        self._started = 0
        self.members: dict[tuple[str, int], Program] = {}

    def start(self, group: str, number: int) -> None:
        self._started += 1
        name = f"{group}-{self._started}"
        self.members[group, number] = start(
            name,
            [sys.executable, "-c", CONSUMER, group, name, self._directory / f"{name}.ids"],
            log=self._directory / f"{name}.log",
            env=environment(self._settings),
            cwd=CHECKOUT,
        )

    def kill_and_start_again(self, number: int) -> None:
        for group in ("plain", "once"):
            self.members[group, number].kill()
            self.start(group, number)

    def plain_ids(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for path in self._directory.glob("plain-*.ids"):
            # A line that a killed consumer did not finish is no event handled.
            found.update(line.strip() for line in path.read_text().splitlines(keepends=True) if line.endswith("\n"))
        return found

    def stop(self) -> list[int | None]:
        """The exit codes, after SIGTERM."""
        return [member.stop() for member in self.members.values()]


@pytest.fixture
def app(database_url: str) -> Iterator[Engine]:
    engine = open_engine(database_url)
    effects.metadata.create_all(engine)
    yield engine
    effects.metadata.drop_all(engine)
    engine.dispose()


def once_ids(app: Engine) -> Counter[str]:
    with app.connect() as connection:
        return Counter(connection.execute(select(effects.c.event)).scalars())


@pytest.mark.slow
def test_every_event_is_handled_though_consumers_and_redis_die(
    tmp_path: Path, app: Engine, database_url: str, redis: Server
) -> None:
    fleet = Fleet(tmp_path, database_url, redis.url)
    for number in (1, 2):
        fleet.start("plain", number)
        fleet.start("once", number)
    added: list[str] = []
    relaying = threading.Event()

    def relay_all() -> None:
        client = connect(redis.url)
        relay = Relay(app, client, "customer-jobs:events", holder=lead(app))
        while not relaying.is_set():
            try:
                if relay.run_once() == 0:
                    relaying.wait(0.02)
            except Exception:  # noqa: BLE001 - the worker's loop does the same
                relaying.wait(0.1)
            lead(app)
        client.close()

    thread = threading.Thread(target=relay_all)
    thread.start()
    try:
        with connect(redis.url) as client:
            troubles: dict[int, Callable[[], object]] = {
                EVENTS * 1 // 5: lambda: fleet.kill_and_start_again(1),
                EVENTS * 2 // 5: client.flushall,
                EVENTS * 3 // 5: lambda: fleet.kill_and_start_again(2),
                EVENTS * 4 // 5: redis.stop_immediately,
            }
            while len(added) < EVENTS:
                added += add_events(app, BATCH)
                threading.Event().wait(0.1)
                if trouble := troubles.get(len(added)):
                    # Somebody is in the middle of something.
                    wait_until(lambda: fleet.plain_ids() and once_ids(app), DONE_SECONDS, "events are handled")
                    trouble()
                if not redis.program.running():
                    redis.start_again()
        wanted = set(added)
        wait_until(lambda: wanted <= set(fleet.plain_ids()), DONE_SECONDS, "each event is handled")
        wait_until(lambda: wanted <= set(once_ids(app)), DONE_SECONDS, "each event is handled with bookkeeping")
    finally:
        relaying.set()
        thread.join()
        codes = fleet.stop()

    assert set(fleet.plain_ids()) == wanted
    assert once_ids(app) == dict.fromkeys(added, 1)
    assert codes == [0, 0, 0, 0]


@pytest.mark.slow
def test_a_slow_consumer_does_not_hold_up_the_worker(stack: Stack) -> None:
    stuck, go_on = threading.Event(), threading.Event()
    handled: list[str] = []

    def handler(event: Event) -> None:
        stuck.set()
        go_on.wait(60)
        handled.append(event.subject)

    consumer = EventConsumer(unique("slow"), url=stack.redis_url, engine=stack.engine)
    thread = threading.Thread(target=consumer.run, args=(handler,))
    thread.start()
    try:
        jobs = [stack.jobs.create_customer({"email": email()}) for _ in range(10)]
        for job in jobs:
            stack.wait_for_end(job)
            stack.consumer.event_about(job.id)
        assert stuck.is_set()
        held_up = list(handled)
        go_on.set()
        wait_until(lambda: {job.id for job in jobs} <= set(handled), 20.0, "the slow one has caught up")
    finally:
        go_on.set()
        consumer.stop()
        thread.join(10)

    assert held_up == []
