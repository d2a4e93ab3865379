"""The commands for operators: events from a real stream, migrations of either database."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from typer.testing import CliRunner, Result

from customer_jobs import CustomerJobs, State
from customer_jobs.cli import app
from customer_jobs.events import completion_event, stream_entry
from tests import servers

SCRIPT = Path(sys.executable).with_name("customer-jobs")


class Stream:
    """A stream of a test's own, and the command that reads it."""

    def __init__(self, redis_url: str) -> None:
        self.name = f"events-{uuid.uuid4().hex}"
        self.env = {"REDIS_URL": redis_url, "EVENT_STREAM": self.name}
        self.redis = redis.Redis.from_url(redis_url, decode_responses=True)

    def add(self, kind: str = "customer.create", state: State = State.SUCCEEDED, **changes: Any) -> str:
        """The job id of an event that has been published."""
        job: dict[str, Any] = dict.fromkeys(
            ["outcome", "stripe_account", "livemode", "customer_id", "external_id", "context", "error"]
        )
        job |= {"id": str(uuid.uuid4()), "kind": kind, "credential": "default", "attempt": 1} | changes
        event = completion_event(job, state) | {"id": str(uuid.uuid4()), "created_at": datetime.now(UTC)}
        self.redis.xadd(self.name, stream_entry(event))  # type: ignore[arg-type]
        return str(job["id"])

    def read(self, *flags: str) -> Result:
        return CliRunner().invoke(app, ["events", *flags], env=self.env)

    def subjects(self, *flags: str) -> list[str]:
        """The job ids that the command printed as JSON."""
        result = self.read(*flags, "--json")
        assert result.exit_code == 0, result.output
        return [json.loads(line)["subject"] for line in result.stdout.splitlines()]

    def follow(self, *flags: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [SCRIPT, "events", "--follow", *flags],
            env={**os.environ, **self.env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def stream(redis_url: str) -> Iterator[Stream]:
    stream = Stream(redis_url)
    yield stream
    stream.redis.delete(stream.name)
    stream.redis.close()


def test_events_come_oldest_first_one_in_a_line(stream: Stream) -> None:
    made = stream.add(outcome="created", customer_id="cus_1")
    failed = stream.add("customer.fetch", State.FAILED, error={"type": "x", "code": "resource_missing"})

    lines = stream.read().stdout.splitlines()

    assert lines[0].split()[1:] == ["customer.create.succeeded", made, "created", "cus_1"]
    assert lines[1].split()[1:] == ["customer.fetch.failed", failed, "resource_missing"]


def test_events_as_json_are_the_cloudevents_themselves(stream: Stream) -> None:
    stream.add(outcome="created")
    entries: Any = stream.redis.xrange(stream.name)

    result = stream.read("--json")

    assert json.loads(result.stdout) == json.loads(entries[0][1]["event"])
    assert result.stdout.count("\n") == 1


def test_events_keeps_the_latest_of_what_is_asked_for(stream: Stream) -> None:
    creates = [stream.add() for _ in range(3)]
    fetches = [stream.add("customer.fetch", State.FAILED) for _ in range(30)]

    assert stream.subjects() == fetches[-20:]
    assert stream.subjects("--count", "2") == fetches[-2:]
    assert stream.subjects("--count", "0") == []
    assert stream.subjects("--count", "100") == creates + fetches
    assert stream.subjects("--type", "customer_jobs.customer.create.succeeded") == creates
    assert stream.subjects("--type", "customer.create.*", "--count", "2") == creates[-2:]
    assert stream.subjects("--type", "*.failed", "--type", "*.create.*", "--count", "99") == creates + fetches
    assert stream.subjects("--type", "*.cancelled") == []


def test_events_since_a_moment_are_all_of_them(stream: Stream) -> None:
    before = [stream.add() for _ in range(30)]
    time.sleep(0.002)
    moment = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=1)
    time.sleep(max(0.0, (moment - datetime.now(UTC)).total_seconds()))
    after = [stream.add() for _ in range(30)]

    assert stream.subjects("--since", "1h") == before + after
    assert stream.subjects("--since", moment.isoformat()) == after
    assert stream.subjects("--since", "2000-01-01T00:00:00Z", "--count", "1") == after[-1:]


def test_an_entry_that_is_no_event_of_ours_is_named_and_passed_over(stream: Stream) -> None:
    stream.redis.xadd(stream.name, {"event": "{"})
    stream.redis.xadd(stream.name, {"other": "x"})
    made = stream.add()

    result = stream.read("--json")

    assert json.loads(result.stdout)["subject"] == made
    assert result.stderr.count("is no event of ours") == 2


def test_no_events_are_said_beside_the_output(stream: Stream) -> None:
    result = stream.read()

    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "no events\n")


def test_follow_prints_what_arrives_until_ctrl_c(stream: Stream) -> None:
    first = stream.add()
    with stream.follow("--type", "*.create.*", "--json") as process:
        assert process.stdout
        assert json.loads(process.stdout.readline())["subject"] == first

        stream.add("customer.fetch")
        second = stream.add()

        assert json.loads(process.stdout.readline())["subject"] == second
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate(timeout=10)
    assert (process.returncode, rest, said) == (0, "", "")


def test_follow_goes_on_when_redis_is_back(tmp_path: Path) -> None:
    with servers.start_redis(tmp_path, append_only=True) as server:
        stream = Stream(server.url)
        first = stream.add()
        with stream.follow("--json") as process:
            assert process.stdout
            assert process.stderr
            assert json.loads(process.stdout.readline())["subject"] == first

            server.stop_immediately()
            said = process.stderr.readline()
            server.start_again()
            second = stream.add()

            assert json.loads(process.stdout.readline())["subject"] == second
            process.kill()
        stream.redis.close()
    assert "cannot be reached" in said
    assert "trying again" in said


def test_a_redis_out_of_reach_is_one_line_within_five_seconds() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        began = time.monotonic()

        result = CliRunner().invoke(app, ["events"], env={"REDIS_URL": f"redis://:s3cret@127.0.0.1:{port}/0"})

    assert time.monotonic() - began < 5
    assert (result.exit_code, result.stdout) == (4, "")
    assert result.stderr.startswith("error: the Redis of REDIS_URL cannot be reached: ")
    assert result.stderr.count("\n") == 1
    assert "s3cret" not in result.stderr


def test_a_redis_that_hangs_is_out_of_reach_within_five_seconds(tmp_path: Path) -> None:
    with servers.start_redis(tmp_path) as server:
        server.hang()
        began = time.monotonic()

        result = CliRunner().invoke(app, ["events", "--follow"], env={"REDIS_URL": server.url})

        assert time.monotonic() - began < 5
        server.go_on()
    assert result.exit_code == 4


def test_a_key_that_holds_no_stream_is_one_line(stream: Stream) -> None:
    stream.redis.set(stream.name, "x")

    result = stream.read()

    assert result.exit_code == 4
    assert "WRONGTYPE" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("url", ["", "localhost", "http://:s3cret@db/0", "redis://:s3cret@db:port/0"])
def test_a_redis_url_that_is_none_is_explained_without_its_password(url: str) -> None:
    result = CliRunner().invoke(app, ["events"], env={"REDIS_URL": url})

    assert result.exit_code == 2, result.output
    assert "redis://localhost:6379/0" in result.stderr
    assert "s3cret" not in result.stderr


@pytest.mark.parametrize("flags", [["--count", "-1"], ["--count", "x"], ["--since", "yesterday"], ["--type"]])
def test_a_flag_of_events_that_cannot_be_read_is_refused(flags: list[str], stream: Stream) -> None:
    result = stream.read(*flags)

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_migrate_says_what_it_applied_and_then_that_there_is_nothing_to_do(empty_database_url: str) -> None:
    env = {"DATABASE_URL": empty_database_url}

    first = CliRunner().invoke(app, ["migrate"], env=env)
    second = CliRunner().invoke(app, ["migrate"], env=env)

    assert (first.exit_code, second.exit_code) == (0, 0)
    assert first.stdout.startswith("applied 0001_tables\n")
    assert first.stdout.endswith("the database is up to date\n")
    assert second.stdout == "nothing to do: the database is up to date\n"
    jobs = CustomerJobs(empty_database_url)
    assert jobs.list() == []
    jobs.engine.dispose()


def test_migrate_sql_prints_the_script_and_connects_to_nothing() -> None:
    result = CliRunner().invoke(
        app, ["migrate", "--sql"], env={"DATABASE_URL": "postgresql://app@127.0.0.1:1/x", "DATABASE_SCHEMA": "ours"}
    )

    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("BEGIN;")
    assert "CREATE TABLE ours.jobs" in result.stdout
    assert result.stdout.endswith("COMMIT;\n\n")


def test_migrate_refuses_tables_of_somebody_elses(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'app.sqlite3'}"
    jobs = CustomerJobs(url)
    with jobs.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE jobs (id INTEGER)")
    jobs.engine.dispose()

    result = CliRunner().invoke(app, ["migrate"], env={"DATABASE_URL": url})

    assert result.exit_code == 2
    assert "already has 'jobs'" in result.stderr
    assert result.stderr.count("\n") == 1
