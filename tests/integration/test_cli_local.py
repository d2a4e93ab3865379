"""Programs on this machine: the sandbox, everything for development, and the demo, which leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import customer_jobs
from customer_jobs import embedded
from customer_jobs.cli import app
from customer_jobs.sandbox import Sandbox

SCRIPT = Path(sys.executable).with_name("customer-jobs")
#: Everything starts in three seconds on an idle machine.
PATIENCE_SECONDS = 60


class Command:
    """A command that runs, and what it says, line by line."""

    def __init__(self, *words: str, **env: str) -> None:
        # As a script starts its background jobs: with SIGINT ignored.
        background = ["sh", "-c", 'trap "" INT; exec "$0" "$@"']
        self.process = subprocess.Popen(
            [*background, SCRIPT, *words],
            env={**os.environ, "PYTHONUNBUFFERED": "1", **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said = ""

    def read_until(self, pattern: str) -> re.Match[str]:
        """The first line from here that matches."""
        assert self.process.stdout
        for line in self.process.stdout:
            self.said += line
            if match := re.search(pattern, line):
                return match
        raise AssertionError(f"no {pattern!r} in:\n{self.said}")

    def end(self, number: signal.Signals) -> int:
        """The exit code after a signal."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        said, _ = self.process.communicate(timeout=PATIENCE_SECONDS)
        self.said += said
        return self.process.returncode


@contextmanager
def command(*words: str, **env: str) -> Iterator[Command]:
    running = Command(*words, **env)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.communicate()


def parents() -> dict[int, int]:
    """Every process of this machine with its parent."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                found[int(entry.name)] = int(fields[1])
    return found


def family(pid: int) -> set[int]:
    """All that a process has started, and they, and so on."""
    known = parents()
    members = {pid}
    while more := {child for child, parent in known.items() if parent in members} - members:
        members |= more
    return members - {pid}


def workers(pid: int) -> set[int]:
    """The Celery workers among them."""
    found = set()
    for member in family(pid):
        words = Path(f"/proc/{member}/cmdline").read_text().split("\0")
        if words[1:6] == ["-m", "celery", "-A", "worker.app", "worker"]:
            found.add(member)
    return found


def await_gone(pids: set[int]) -> None:
    assert pids
    # A leash lets its program end by itself for ten seconds; a busy machine needs as much again, and more.
    embedded.wait_until(lambda: not pids & parents().keys(), 60, f"{pids} are gone")


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)


def creates(stripe: str) -> list[Any]:
    """The creates that have arrived at a sandbox; a worker also asks it for its account."""
    return [request for request in get(f"{stripe}/_sandbox/requests") if request["endpoint"] == "create"]


def test_the_sandbox_says_where_it_is_and_how_to_use_it() -> None:
    with command("sandbox", "--port", "0") as running:
        url = running.read_until(r"export STRIPE_API_BASE=(http://127\.0\.0\.1:\d+)")[1]
        running.read_until("export STRIPE_API_KEY=sk_test_")
        running.read_until("--list-faults")

        assert get(f"{url}/_sandbox/health")["status"] == "ok"
        assert running.end(signal.SIGINT) == 0


def test_the_sandbox_runs_as_its_flags_say() -> None:
    flags = ["--rate-limit", "25", "--account-rate-limit", "100", "--concurrency-limit", "5"]
    flags += ["--account-concurrency-limit", "7", "--latency", "10ms-20ms", "--faults", "500:1.0", "--seed", "1"]
    with command("sandbox", "--port", "0", *flags, "--json") as running:
        assert running.process.stdout
        document = json.loads(running.process.stdout.readline())

        limits = get(f"{document['url']}/_sandbox/limits")
        request = urllib.request.Request(
            f"{document['url']}/v1/customers", headers={"Authorization": f"Bearer {document['env']['STRIPE_API_KEY']}"}
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=5)
        refused.value.close()

        assert (limits["rate"], limits["account_rate"]) == (25, 100)
        assert (limits["concurrency"], limits["account_concurrency"]) == (5, 7)
        assert refused.value.code == 500
        assert running.end(signal.SIGTERM) == 0


def test_the_sandbox_tells_an_endpoint_of_every_change() -> None:
    # Nobody listens there; that it was tried is in the log of deliveries.
    url = f"http://127.0.0.1:{embedded.free_port()}/webhooks/stripe"
    with command("sandbox", "--port", "0", "--webhook", url, "--json") as running:
        assert running.process.stdout
        document = json.loads(running.process.stdout.readline())
        create = urllib.request.Request(
            f"{document['url']}/v1/customers", b"name=Jenny", {"Authorization": "Bearer sk_test_sandbox"}
        )
        urllib.request.urlopen(create, timeout=5).close()
        embedded.wait_until(lambda: get(f"{document['url']}/_sandbox/deliveries"), 10, "a delivery is tried")

        assert get(f"{document['url']}/_sandbox/webhooks")[0]["url"] == url
        assert document["env"]["STRIPE_WEBHOOK_SECRET"].startswith("whsec_")
        assert running.end(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    "flags",
    [
        ["--port", "99999"],
        ["--webhook", "localhost:8000"],
        ["--faults", "nonsense:0.5"],
        ["--faults", "500:2"],
        ["--latency", "soon"],
        ["--latency", "2s-1s"],
        ["--latency", "-1"],
        ["--rate-limit", "0"],
    ],
    ids=" ".join,
)
def test_a_flag_of_the_sandbox_that_makes_no_sense_is_refused(flags: list[str]) -> None:
    result = CliRunner().invoke(app, ["sandbox", "--port", "0", *flags])

    assert (result.exit_code, result.stdout) == (2, "")
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr)


def test_a_port_that_is_taken_is_named_with_the_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        result = CliRunner().invoke(app, ["sandbox", "--port", str(port)])

    assert result.exit_code == 2
    assert f"127.0.0.1:{port}" in result.stderr
    assert "0 for a free one" in result.stderr


def test_every_fault_is_explained() -> None:
    result = CliRunner().invoke(app, ["sandbox", "--list-faults"])

    assert result.exit_code == 0
    assert "500_after " in result.stdout


@pytest.mark.parametrize("word", ["dev", "demo"])
def test_outside_the_checkout_the_worker_is_not_there_and_that_is_said(word: str, tmp_path: Path) -> None:
    shutil.copytree(Path(customer_jobs.__file__).parent, tmp_path / "customer_jobs")

    result = subprocess.run(
        [sys.executable, "-m", "customer_jobs.cli", word], cwd=tmp_path, capture_output=True, text=True, timeout=30
    )

    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(r"error: [^\n]*in the checkout[^\n]*\n", result.stderr)


@pytest.mark.slow
def test_the_demo_tells_its_story_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with command("demo", TMPDIR=str(tmp_path), COLUMNS="80", DATABASE_URL="postgresql://127.0.0.1:1/not-used") as demo:
        demo.read_until("Create Jenny Rosen")
        programs = family(demo.process.pid)

        assert demo.wait() == 0, demo.said

    await_gone(programs)
    assert list(tmp_path.iterdir()) == []
    assert "resource_missing" in demo.said
    assert demo.said.count("429 (endpoint-rate)") == 2
    assert re.findall(r"event +customer_jobs\.(\S+),", demo.said) == [
        "customer.create.succeeded",
        "customer.fetch.succeeded",
        "customer.fetch.failed",
        "customer.create.succeeded",
    ]
    assert "2 idempotency keys, 2 customers" in demo.said
    assert max(map(len, demo.said.splitlines())) <= 80


@pytest.mark.slow
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_a_demo_that_is_broken_off_leaves_nothing_behind(
    number: signal.Signals, exit_code: int, tmp_path: Path
) -> None:
    with command("demo", TMPDIR=str(tmp_path)) as demo:
        demo.read_until("Create Jenny Rosen")
        programs = family(demo.process.pid)

        assert demo.end(number) == exit_code, demo.said

    await_gone(programs)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_with_a_key_the_demo_talks_to_stripe_and_leaves_out_what_only_the_sandbox_can(tmp_path: Path) -> None:
    with (
        Sandbox() as stripe,
        command("demo", TMPDIR=str(tmp_path), STRIPE_API_KEY="sk_test_somebody", STRIPE_API_BASE=stripe.url) as demo,
    ):
        assert demo.wait() == 0, demo.said

        assert [customer["email"] for customer in stripe.customers("acct_somebody")] == ["jenny.rosen@example.com"]
    assert "Left out" in demo.said
    assert "sk_test_somebody" not in demo.said


@pytest.mark.slow
def test_a_demo_that_comes_out_otherwise_says_so_and_exits_1(tmp_path: Path) -> None:
    with (
        Sandbox(faults="400:1.0") as stripe,
        command("demo", TMPDIR=str(tmp_path), STRIPE_API_KEY="sk_test_somebody", STRIPE_API_BASE=stripe.url) as demo,
    ):
        assert demo.wait() == 1, demo.said

    assert "not as told: " in demo.said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_worker_that_does_not_start_is_reported_in_its_own_words(tmp_path: Path) -> None:
    with command("demo", TMPDIR=str(tmp_path), STRIPE_API_KEY="nonsense") as demo:
        assert demo.wait() == 2, demo.said

    assert "error: worker does not start: STRIPE_API_KEY is not a secret or restricted key" in demo.said
    assert list(tmp_path.iterdir()) == []


def test_the_demo_refuses_a_live_key(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["demo"], env={"STRIPE_API_KEY": "sk_live_somebody", "TMPDIR": str(tmp_path)})

    assert result.exit_code == 2
    assert "give it a test key" in result.stderr


@pytest.mark.slow
def test_dev_runs_everything_until_ctrl_c(tmp_path: Path) -> None:
    with command("dev", "--data", str(tmp_path / "state")) as dev:
        stripe = dev.read_until(r"Stripe +(http://127\.0\.0\.1:\d+)")[1]
        webhooks = dev.read_until(r"webhooks +(http://127\.0\.0\.1:\d+)/webhooks/stripe  the sandbox tells it")[1]
        flower = dev.read_until(r"Flower +(http://127\.0\.0\.1:\d+)$")[1]
        database_url = dev.read_until("export DATABASE_URL=(.+)$")[1]
        redis_url = dev.read_until("export REDIS_URL=(.+)$")[1]
        dev.read_until("events --follow")
        programs = family(dev.process.pid)

        there = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
        created = CliRunner().invoke(app, ["create", "--email", "jenny.rosen@example.com", "--wait", "30"], env=there)
        missing = CliRunner().invoke(app, ["fetch", "cus_nope", "--wait", "30", "--json"], env=there)
        embedded.wait_until(
            lambda: CliRunner().invoke(app, ["events", "--json"], env=there).stdout.count("\n") == 2, 10, "two events"
        )
        embedded.wait_until(lambda: get(f"{stripe}/_sandbox/deliveries"), 10, "the endpoint is told of the customer")
        (delivery,) = get(f"{stripe}/_sandbox/deliveries")
        assert get(f"{webhooks}/health") == {"status": "ok"}
        second = CliRunner().invoke(app, ["dev", "--data", str(tmp_path / "state")])
        with urllib.request.urlopen(f"{flower}/healthcheck", timeout=5) as page:
            assert page.status == 200

        assert dev.end(signal.SIGINT) == 0
    assert created.exit_code == 0, created.output
    assert (missing.exit_code, json.loads(missing.stdout)["error"]["code"]) == (1, "resource_missing")
    assert (delivery["type"], delivery["status"]) == ("customer.created", 200)
    assert second.exit_code == 2
    assert "another `customer-jobs dev`" in second.stderr
    assert re.findall("stopping (.*)", dev.said) == ["worker", "webhooks", "flower", "sandbox", "redis"]
    await_gone(programs)


@pytest.mark.slow
def test_dev_starts_again_what_ends_by_itself(tmp_path: Path) -> None:
    with command("dev", "--data", str(tmp_path)) as dev:
        dev.read_until("events --follow")
        (first,) = workers(dev.process.pid)

        os.kill(first, signal.SIGKILL)

        dev.read_until("worker ended with exit code -9; starting it again in 1 s")
        embedded.wait_until(lambda: workers(dev.process.pid) - {first}, 10, "another worker")
        assert dev.end(signal.SIGTERM) == 0


@pytest.mark.slow
def test_nothing_outlives_a_dev_that_is_killed(tmp_path: Path) -> None:
    with command("dev", "--data", str(tmp_path)) as dev:
        dev.read_until("events --follow")
        programs = family(dev.process.pid)

        dev.end(signal.SIGKILL)

    await_gone(programs)


@pytest.mark.slow
def test_dev_asked_to_end_twice_waits_for_nothing(tmp_path: Path) -> None:
    with command("dev", "--data", str(tmp_path)) as dev:
        url = dev.read_until(r"Stripe +(http://127\.0\.0\.1:\d+)")[1]
        database_url = dev.read_until("export DATABASE_URL=(.+)$")[1]
        dev.read_until("events --follow")
        urllib.request.urlopen(urllib.request.Request(f"{url}/_sandbox/hold", data=b"{}"), timeout=5).close()
        CliRunner().invoke(app, ["create", "--name", "Jenny"], env={"DATABASE_URL": database_url})
        embedded.wait_until(lambda: creates(url), 10, "Stripe is asked")

        dev.process.send_signal(signal.SIGINT)
        dev.read_until("stopping worker")
        time.sleep(0.5)
        began = time.monotonic()

        assert dev.end(signal.SIGINT) == 0
    assert time.monotonic() - began < 10


def test_dev_on_a_port_that_is_taken_starts_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        result = CliRunner().invoke(app, ["dev", "--data", str(tmp_path), "--redis-port", str(port)])

    assert result.exit_code == 2
    assert f"port {port} cannot be used" in result.stderr


def test_dev_with_a_database_out_of_reach_exits_4(tmp_path: Path) -> None:
    url = f"postgresql://app:s3cret@127.0.0.1:{embedded.free_port()}/x"

    result = CliRunner().invoke(app, ["dev", "--data", str(tmp_path)], env={"DATABASE_URL": url})

    assert result.exit_code == 4
    assert re.fullmatch(r"error: the database of DATABASE_URL cannot be used: [^\n]+\n", result.stderr)
    assert "s3cret" not in result.output


def test_dev_with_a_redis_out_of_reach_exits_4(tmp_path: Path) -> None:
    url = f"redis://:s3cret@127.0.0.1:{embedded.free_port()}/0"

    result = CliRunner().invoke(app, ["dev", "--data", str(tmp_path)], env={"REDIS_URL": url})

    assert result.exit_code == 4
    assert "s3cret" not in result.output
