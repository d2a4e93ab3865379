"""`customer-jobs events replay`, `events dead` and `stats`: what an operator sees and mends."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from sqlalchemy import Engine, func, select, update
from typer.testing import CliRunner, Result

from customer_jobs import EventConsumer, State
from customer_jobs.cli import app
from customer_jobs.database import writing
from customer_jobs.group import Delivery, Group
from customer_jobs.schema import events, leases
from customer_jobs.sql import now
from customer_jobs.stream import connect
from tests.builders import add_fetch, add_job, add_worker, age, later, lead
from tests.outbox import add_events, ids_on, publish
from worker.dispatcher.relay import Relay


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"test:{uuid.uuid4().hex}"
    monkeypatch.setenv("EVENT_STREAM", name)
    return name


@pytest.fixture
def client(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[redis.Redis]:
    monkeypatch.setenv("REDIS_URL", redis_url)
    made = connect(redis_url)
    yield made
    made.close()


def run(*words: str, **env: str) -> Result:
    return CliRunner().invoke(app, words, env=env)


def bury(client: redis.Redis, stream: str, group: str, count: int = 1, **columns: Any) -> list[str]:
    """The ids of events that the group has given up."""
    ids = publish(client, stream, count, **columns)
    member = Group(client, stream, group, "one")
    member.create("0")
    left = set(ids)
    while left:
        delivery = member.new(1)
        assert isinstance(delivery, Delivery)
        left.discard(json.loads(delivery.fields["event"])["id"])
        member.bury(delivery, "KeyError at billing.py:41")
    return ids


def letters(*flags: str) -> list[dict[str, Any]]:
    result = run("events", "dead", "--json", *flags)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_replay_publishes_from_the_table(engine: Engine, database_url: str, client: redis.Redis, stream: str) -> None:
    added = add_events(engine, 3)
    Relay(engine, client, stream, holder=lead(engine)).run_once()
    client.delete(stream)

    missing = run("events", "replay", "--since", "1h", "--missing", DATABASE_URL=database_url)
    nothing = run("events", "replay", "--since", "1h", "--missing", "--json", DATABASE_URL=database_url)
    again = run("events", "replay", "--since", "1h", "--type", "*.succeeded", "--json", DATABASE_URL=database_url)
    none = run("events", "replay", "--since", "1h", "--type", "*.failed", DATABASE_URL=database_url)

    assert missing.stdout == "published 3 events again\n", missing.output
    assert json.loads(nothing.stdout) == {"published": 0}
    assert json.loads(again.stdout) == {"published": 3}
    assert none.stdout == "published 0 events again\n"
    assert ids_on(client, stream) == added * 2


@pytest.mark.parametrize("flags", [[], ["--since", "yesterday"], ["--since", "1h", "--type"]])
@pytest.mark.usefixtures("client")
def test_replay_without_a_time_is_refused(flags: list[str], sqlite_url: str) -> None:
    result = run("events", "replay", *flags, DATABASE_URL=sqlite_url)

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1


@pytest.mark.usefixtures("client")
def test_options_before_the_command_are_not_silently_dropped(sqlite_url: str) -> None:
    result = run("events", "--since", "1h", "replay", DATABASE_URL=sqlite_url)

    assert result.exit_code == 2
    assert "go after its name" in result.stderr


def test_dead_letters_are_listed_one_in_a_line(client: redis.Redis, stream: str) -> None:
    first = bury(client, stream, "billing", state=State.FAILED)
    second = bury(client, stream, "audit")

    lines = run("events", "dead").stdout.splitlines()

    assert lines[0].split()[2:4] == ["billing", "customer.create.failed"]
    assert lines[0].endswith("KeyError at billing.py:41")
    assert letters()[0]["event"]["id"] == first[0]
    assert [letter["event"]["id"] for letter in letters("--group", "audit", "--type", "*.succeeded")] == second
    assert letters("--type", "customer.fetch.*") == []


@pytest.mark.usefixtures("client", "stream")
def test_no_dead_letters_are_said_beside_the_output() -> None:
    result = run("events", "dead")

    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "no dead letters\n")


def test_a_dead_letter_goes_back_to_its_group_and_to_no_other(client: redis.Redis, redis_url: str, stream: str) -> None:
    event_id, other_id = bury(client, stream, "billing", 2)
    audit = Group(client, stream, "audit", "one")
    audit.create("$")
    letter = next(each for each in letters() if each["event"]["id"] == event_id)

    result = run("events", "dead", "--return", letter["id"])

    assert (result.exit_code, result.stderr) == (0, "put 1 back on the stream\n")
    assert [each["event"]["id"] for each in letters()] == [other_id]
    new = publish(client, stream)
    heard: dict[str, list[str]] = {}
    for group in ("billing", "audit"):
        consumer, heard[group] = EventConsumer(group, url=redis_url, stream=stream), []
        for event in consumer:
            heard[group].append(event.id)
            if event.id == new[0]:
                consumer.stop()
    assert heard == {"billing": [event_id, *new], "audit": new}


def test_all_dead_letters_of_a_group_go_back(client: redis.Redis, stream: str) -> None:
    ids = bury(client, stream, "billing", 3)
    kept = bury(client, stream, "audit")

    result = run("events", "dead", "--group", "billing", "--return-all")

    assert result.exit_code == 0
    assert set(kept) & {each["event"]["id"] for each in letters()} == set(kept)
    assert not set(ids) & {each["event"]["id"] for each in letters("--group", "billing")}
    assert ids_on(client, stream)[-3:] == ids


def test_a_dead_letter_that_is_not_there_is_refused(client: redis.Redis, stream: str) -> None:
    bury(client, stream, "billing")

    result = run("events", "dead", "--return", "1-1")

    assert result.exit_code == 2
    assert "no dead letter '1-1'" in result.stderr
    assert len(letters()) == 1


def test_stats_count_what_is_in_the_tables(engine: Engine, database_url: str) -> None:
    for _ in range(2):
        add_job(engine)
    later(engine, 90)
    add_job(engine, state=State.SUCCEEDED)
    add_fetch(engine, due_at=now(3600))
    add_events(engine, 3)
    with writing(engine) as transaction:
        oldest = transaction.value(select(func.min(events.c.seq)))
        transaction.change(update(events).where(events.c.seq == oldest).values(published_at=now()))
    age(engine, 5, events)
    add_worker(engine, slots=16, name="one@host")
    lead(engine, "one@host/1/abc")

    found = json.loads(run("stats", "--json", DATABASE_URL=database_url).stdout)
    shown = run("stats", DATABASE_URL=database_url).stdout

    assert found["jobs"] == {"customer.create": {"queued": 2, "succeeded": 1}, "customer.fetch": {"queued": 1}}
    assert found["due"] == 2
    assert 89 < found["oldest_due_seconds"] < 120
    assert found["outbox_lag"] == 2
    assert 4 < found["outbox_lag_seconds"] < 35
    assert found["leader"] == "one@host"
    assert [(worker["name"], worker["slots"]) for worker in found["workers"]] == [("one@host", 16)]
    assert "2 not published yet" in shown
    assert "one@host, 16 threads" in shown


def test_stats_of_an_idle_table(engine: Engine, database_url: str) -> None:
    lead(engine, "gone")
    age(engine, 60, leases)

    found = json.loads(run("stats", "--json", DATABASE_URL=database_url).stdout)
    shown = run("stats", DATABASE_URL=database_url)

    assert found["jobs"] == {}
    assert found["oldest_due_seconds"] is found["outbox_lag_seconds"] is found["leader"] is None
    assert found["workers"] == []
    assert "no jobs" in shown.stdout
    assert "nothing is dispatched" in shown.stdout
