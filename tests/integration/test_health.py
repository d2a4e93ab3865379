"""`customer-jobs health`: fine while jobs are consumed, and what is wrong, with its remedy, once they are not."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import Engine, update
from typer.testing import CliRunner, Result

from customer_jobs.broker import PREFIX, QUEUE
from customer_jobs.checks import Check
from customer_jobs.cli import app
from customer_jobs.database import open_engine, writing
from customer_jobs.embedded import wait_until
from customer_jobs.health import PROBE, health, health_of_worker
from customer_jobs.limits import pause
from customer_jobs.schema import credentials, events, lanes, leases, workers
from customer_jobs.sql import now
from customer_jobs.stream import connect
from customer_jobs.vocabulary import Lease, State
from tests import servers
from tests.builders import add_fetch, add_job, add_worker, age, change, lead, settings_for
from tests.promises import HEALTH_SECONDS
from worker.dispatcher import Dispatcher
from worker.dispatcher.leader import show_looks

SOON_SECONDS = 20.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[servers.Server]:
    with servers.start_redis(tmp_path) as server:
        yield server


@pytest.fixture
def working(engine: Engine) -> str:
    """The holder of a leader that dispatches, beside a worker."""
    holder = lead(engine, "w1/1/abc")
    look(engine, holder)
    add_worker(engine)
    return holder


def look(engine: Engine, holder: str, *, seconds_ago: float = 0.0) -> None:
    with writing(engine) as transaction:
        show_looks(transaction, holder, seconds_ago=seconds_ago)


def checked(engine: Engine, server: servers.Server) -> dict[str, Check]:
    with connect(server.url) as client:
        return {check.name: check for check in health(engine, client)}


def bad(checks: dict[str, Check]) -> list[str]:
    return [name for name, check in checks.items() if check.bad]


def run(url: str, server: servers.Server | str, *flags: str) -> Result:
    redis_url = server if isinstance(server, str) else server.url
    return CliRunner().invoke(app, ["health", *flags], env={"DATABASE_URL": url, "REDIS_URL": redis_url})


@pytest.mark.usefixtures("working")
def test_a_system_that_works_is_healthy(engine: Engine, database_url: str, server: servers.Server) -> None:
    add_fetch(engine, state=State.SUCCEEDED)
    add_job(engine, due_at=now(3600))

    result = run(database_url, server, "--json")

    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["healthy"] is True
    assert [check["name"] for check in document["checks"]] == [
        "database", "leader", "dispatch", "workers", "due", "leases", "events", "redis", "queue",
    ]  # fmt: skip
    assert {check["level"] for check in document["checks"]} == {"ok"}
    assert {check["remedy"] for check in document["checks"]} == {None}


@pytest.mark.usefixtures("working")
def test_what_people_see_is_one_line_for_each_check(database_url: str, server: servers.Server) -> None:
    result = run(database_url, server)

    assert result.exit_code == 0, result.output
    assert [line.split()[:2] for line in result.stdout.splitlines()][:3] == [
        ["ok", "database"], ["ok", "leader"], ["ok", "dispatch"],
    ]  # fmt: skip


def test_a_database_without_workers_is_not_healthy(database_url: str, server: servers.Server) -> None:
    result = run(database_url, server)

    assert result.exit_code == 1
    assert "nobody leads" in result.stdout
    assert "no worker shows signs of life" in result.stdout
    assert result.stdout.count("→ start a worker: `celery -A worker.app worker`") == 3, result.stdout


@pytest.mark.parametrize(
    ("table", "unhealthy"), [(leases, ["leader", "dispatch"]), (workers, ["workers"])], ids=["leases", "workers"]
)
@pytest.mark.usefixtures("working")
def test_signs_that_are_too_old_count_for_nothing(
    engine: Engine, server: servers.Server, table: Any, unhealthy: list[str]
) -> None:
    age(engine, 16, table)

    assert bad(checked(engine, server)) == unhealthy


def test_a_leader_that_renews_and_does_not_look_is_found_out(engine: Engine, server: servers.Server) -> None:
    lead(engine)
    add_worker(engine)
    look(engine, "holder", seconds_ago=16)

    found = checked(engine, server)

    assert bad(found) == ["dispatch"]
    assert found["dispatch"].remedy == "start holder anew"


def test_a_dispatcher_whose_dispatching_hangs_is_found_out(
    engine: Engine, server: servers.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.dispatcher.RENEW_EVERY_SECONDS", 0.1)
    monkeypatch.setattr("worker.dispatcher.leader.LOOK_COUNTS_SECONDS", 2)
    published, go_on = threading.Event(), threading.Event()

    def hang(_: object) -> None:
        published.set()
        assert go_on.wait(60)

    settings = settings_for(redis_url=server.url)
    dispatcher = Dispatcher(engine, settings, hang, worker="w1", slots=4, abandon=lambda *_: None)
    dispatcher.start()
    try:
        wait_until(lambda: bad(checked(engine, server)) == [], SOON_SECONDS, "it is healthy")
        add_job(engine)
        assert published.wait(SOON_SECONDS)

        wait_until(lambda: bad(checked(engine, server)) == ["dispatch"], SOON_SECONDS, "it is found out")

        go_on.set()
        wait_until(lambda: bad(checked(engine, server)) == [], SOON_SECONDS, "it is healthy again")
    finally:
        go_on.set()
        dispatcher.stop()
        dispatcher.close()


@pytest.mark.usefixtures("working")
def test_a_job_that_is_late_for_no_reason_is_named(engine: Engine, server: servers.Server) -> None:
    add_job(engine, due_at=now(-45), priority=4)
    add_job(engine, due_at=now(-1))

    found = checked(engine, server)

    assert bad(found) == ["due"]
    assert found["due"].detail.startswith("customer.create of default: a job is due for 4")


@pytest.mark.usefixtures("working")
def test_a_job_that_is_due_for_a_moment_is_nothing_to_worry_about(engine: Engine, server: servers.Server) -> None:
    add_job(engine, due_at=now(-5))

    assert bad(checked(engine, server)) == []


def _its_credential_is_paused(engine: Engine) -> None:
    with writing(engine) as transaction:
        known = {"name": "default", "livemode": False, "key_fingerprint": "key_1"}
        transaction.change(transaction.insert(credentials).values(known).on_conflict_do_nothing())
        pause(transaction, "default", endpoint="customer.create", reason="by hand")


def _its_lane_moves(engine: Engine) -> None:
    add_job(engine, state=State.RUNNING)


def _every_thread_is_busy(engine: Engine) -> None:
    for _ in range(16):
        add_fetch(engine, state=State.RUNNING)


def _its_limit_is_one_call_in_a_minute(engine: Engine) -> None:
    with writing(engine) as transaction:
        transaction.change(
            transaction.insert(lanes).values(credential="default", kind="customer.create", rate=1 / 60, tokens=0)
        )


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (_its_credential_is_paused, "paused: by hand"),
        (_its_lane_moves, "its lane moves"),
        (_every_thread_is_busy, "every thread is busy"),
        (_its_limit_is_one_call_in_a_minute, "limit reached: 0.0167/s of customer.create"),
    ],
)
@pytest.mark.usefixtures("working")
def test_a_job_may_wait_long_for_a_reason(engine: Engine, server: servers.Server, reason: Any, words: str) -> None:
    add_job(engine, due_at=now(-90))
    reason(engine)

    found = checked(engine, server)

    assert bad(found) == []
    assert found["due"].detail.endswith(words)


@pytest.mark.usefixtures("working")
def test_jobs_that_nobody_rescues_are_counted(engine: Engine, server: servers.Server) -> None:
    change(engine, add_job(engine, state=State.RUNNING), lease_expires_at=now(-11))

    found = checked(engine, server)

    assert bad(found) == ["leases"]
    assert found["leases"].detail == "1 jobs of silent workers are not rescued"


@pytest.mark.usefixtures("working")
def test_events_that_nobody_publishes_are_found_out(engine: Engine, server: servers.Server) -> None:
    with writing(engine) as transaction:
        transaction.change(transaction.insert(events).values(type="t", subject="s", data={}, created_at=now(-31)))

    assert bad(checked(engine, server)) == ["events"]


@pytest.mark.parametrize("queue", [QUEUE, PREFIX + QUEUE])
@pytest.mark.usefixtures("working")
def test_a_message_that_nobody_takes_is_found_out(engine: Engine, server: servers.Server, queue: str) -> None:
    with connect(server.url) as client:
        client.lpush(queue, "a message")

    found = checked(engine, server)

    assert bad(found) == ["queue"]
    assert repr(queue) in found["queue"].detail


def test_without_a_worker_no_thread_is_said_to_be_free(engine: Engine, server: servers.Server) -> None:
    with connect(server.url) as client:
        client.lpush(PREFIX + QUEUE, "a message")

    found = checked(engine, server)

    assert found["queue"].bad
    assert found["queue"].detail == f"no worker is alive to take the messages of {PREFIX + QUEUE!r}"
    assert found["queue"].remedy == found["workers"].remedy


@pytest.mark.usefixtures("working")
def test_messages_may_wait_while_every_thread_is_busy(engine: Engine, server: servers.Server) -> None:
    _every_thread_is_busy(engine)
    with connect(server.url) as client:
        client.lpush(PREFIX + QUEUE, "a message")

    assert bad(checked(engine, server)) == []


@pytest.mark.usefixtures("working")
def test_messages_that_are_taken_one_by_one_are_consumed(engine: Engine, server: servers.Server) -> None:
    with connect(server.url) as client:
        client.lpush(PREFIX + QUEUE, *(f"message {uuid.uuid4()}" for _ in range(1000)))

        stop = threading.Event()

        def take() -> None:
            with connect(server.url) as mine:
                while not stop.wait(0.02):
                    mine.rpop(PREFIX + QUEUE)

        consumer = threading.Thread(target=take)
        consumer.start()
        try:
            found = checked(engine, server)
        finally:
            stop.set()
            consumer.join()

    assert bad(found) == []


@pytest.mark.usefixtures("working")
def test_a_redis_that_is_full_is_found_out(engine: Engine, server: servers.Server) -> None:
    with connect(server.url) as client:
        client.config_set("maxmemory", "1")

    found = checked(engine, server)

    assert bad(found) == ["redis"]
    assert found["redis"].detail.startswith("Redis is full: ")
    assert found["redis"].remedy == "give Redis more memory, or remove what fills it"


@pytest.mark.usefixtures("working")
def test_the_probe_leaves_nothing_behind_for_long(engine: Engine, server: servers.Server) -> None:
    checked(engine, server)

    with redis.Redis.from_url(server.url) as client:
        assert set(client.keys()) == {PROBE.encode()}
        assert 0 < client.ttl(PROBE) <= 60


def seconds_to_check(engine: Engine, server: servers.Server) -> float:
    """How long all checks take; beside the command's own start, which is another subject."""
    began = time.monotonic()
    checked(engine, server)
    return time.monotonic() - began


@pytest.mark.usefixtures("working")
def test_a_redis_that_is_away_or_hangs_is_out_of_reach(
    engine: Engine, database_url: str, server: servers.Server
) -> None:
    server.hang()
    took = seconds_to_check(engine, server)
    hung = run(database_url, server)
    server.go_on()
    away = run(database_url, "redis://127.0.0.1:1/0", "--json")

    assert (hung.exit_code, away.exit_code) == (4, 4)
    assert took < HEALTH_SECONDS
    assert "out of reach  redis" in hung.stdout
    assert [check["name"] for check in json.loads(away.stdout)["checks"] if check["level"] != "ok"] == ["redis"]


def test_a_database_that_is_away_or_hangs_is_out_of_reach(tmp_path: Path, server: servers.Server) -> None:
    with connect(server.url) as client:
        client.lpush(QUEUE, "a message")
    away = run("postgresql://app@127.0.0.1:1/app", server)
    with servers.start_postgres(tmp_path / "postgres") as postgres:
        engine = open_engine(postgres.url)
        postgres.hang()
        took = seconds_to_check(engine, server)
        hung = run(postgres.url, server)
        postgres.go_on()
        engine.dispose()

    assert (away.exit_code, hung.exit_code) == (4, 4)
    assert took < HEALTH_SECONDS
    assert "out of reach  database" in hung.stdout
    assert "ok            redis" in hung.stdout
    assert "messages wait; whether a thread is free cannot be seen" in hung.stdout


def test_a_database_without_tables_is_told_what_it_lacks(empty_database_url: str, server: servers.Server) -> None:
    result = run(empty_database_url, server)

    assert result.exit_code == 4
    assert "run `customer-jobs migrate`" in result.stderr


@pytest.mark.parametrize("missing", ["DATABASE_URL", "REDIS_URL"])
def test_a_missing_setting_is_bad_input(missing: str) -> None:
    env = {"DATABASE_URL": "sqlite://", "REDIS_URL": "redis://127.0.0.1:1/0"} | {missing: ""}

    result = CliRunner().invoke(app, ["health"], env=env)

    assert result.exit_code == 2
    assert f"{missing} is not set" in result.stderr


@pytest.mark.parametrize("flags", [[], ["--worker", "celery@shop"]], ids=str)
@pytest.mark.parametrize("url", ["http://x", "redis://[::1", "redis://127.0.0.1:1/0?nonsense=1"])
def test_a_setting_that_cannot_be_read_is_bad_input(sqlite_url: str, url: str, flags: list[str]) -> None:
    result = CliRunner().invoke(app, ["health", *flags], env={"DATABASE_URL": sqlite_url, "REDIS_URL": url})

    assert result.exit_code == 2
    assert result.stderr.startswith("error: REDIS_URL is not a Redis URL")


def test_a_worker_that_lives_and_answers_does_its_part(engine: Engine) -> None:
    add_worker(engine)

    found = health_of_worker(engine, "w1", lambda: True)

    assert [(check.name, check.bad) for check in found] == [("life", False), ("messages", False)]


def test_a_worker_that_does_not_answer_or_is_not_seen_is_to_be_started_anew(engine: Engine) -> None:
    add_worker(engine)
    deaf = health_of_worker(engine, "w1", lambda: False)
    age(engine, 11, workers)
    silent = health_of_worker(engine, "w1", lambda: True)
    unknown = health_of_worker(engine, "w2", lambda: True)

    assert [check.name for check in deaf if check.bad] == ["messages"]
    assert [check.name for check in silent if check.bad] == ["life"]
    assert [check.detail for check in unknown if check.bad] == ["worker 'w2' was never seen"]


def test_an_outage_is_not_the_workers_fault() -> None:
    def no_redis() -> bool:
        raise ConnectionError

    engine = open_engine("postgresql://app@127.0.0.1:1/app")

    found = health_of_worker(engine, "w1", no_redis)

    assert not any(check.bad for check in found)
    assert all("cannot be" in check.detail for check in found)


def test_a_lead_that_changes_hands_keeps_no_looks_of_others(engine: Engine, server: servers.Server) -> None:
    lead(engine, "one/1/a")
    look(engine, "one/1/a")
    add_worker(engine)
    with writing(engine) as transaction:
        transaction.change(update(leases).where(leases.c.name == Lease.LEAD).values(expires_at=now(-1)))
    lead(engine, "two/2/b")

    found = checked(engine, server)

    assert found["leader"].detail == "two leads"
    assert bad(found) == []
