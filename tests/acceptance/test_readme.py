"""What README and docs tell people to type, typed: a command that this file does not know fails."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from starlette.routing import Route

from customer_jobs import embedded
from customer_jobs.embedded import wait_until
from customer_jobs.events import DEFAULT_STREAM
from customer_jobs.stream import connect
from customer_jobs.webhooks.asgi import make_app
from tests.acceptance.stack import CHECKOUT, READY_SECONDS, Stack
from tests.acceptance.terminal import COMMAND_SECONDS, run, status, up
from tests.markdown import Block, blocks
from worker.settings import Settings

#: The examples spell PostgreSQL's table names.
on_postgresql = pytest.mark.parametrize("stack", ["postgresql"], indirect=True)

Exercise = Callable[[Stack, str, Path], None]


def ends(*says: str, code: int = 0) -> Exercise:
    """A command that comes to an end with this exit code, having said these words."""

    def exercise(stack: Stack, command: str, _: Path) -> None:
        ended = run(command, stack.settings)
        assert ended.returncode == code, ended.stdout + ended.stderr
        for words in says:
            assert words in ended.stdout

    return exercise


def is_a_setting(_: Stack, command: str, __: Path) -> None:
    name, value = command.removeprefix("export ").split("=", 1)
    assert name.lower() in Settings.model_fields or name.startswith(("STRIPE_API_KEY", "STRIPE_WEBHOOK_SECRET"))
    assert value


def demo(_: Stack, command: str, __: Path) -> None:
    (line,) = run(f"make --dry-run {command.removeprefix('make ')} | tail -1", {}).stdout.splitlines()
    ended = run(line, {})
    assert ended.returncode == 0, ended.stdout + ended.stderr


def is_what_ci_runs(_: Stack, command: str, __: Path) -> None:
    assert "-m pytest" in run(f"make --dry-run {command.removeprefix('make ')}", {}).stdout
    assert re.search(rf"\b{command}$", (CHECKOUT / ".ci/run").read_text(), re.MULTILINE)


def dev(_: Stack, command: str, directory: Path) -> None:
    (line,) = run(f"make --dry-run {command.removeprefix('make ')} | tail -1", {}).stdout.splitlines()
    # Its usual directory may be in use by the one that a person has running.
    with up(f"{line} --data {directory}", {}, directory) as program:
        wait_until(lambda: "In a second terminal" in program.log.read_text(), READY_SECONDS, "it runs", program=program)
        wait_until(lambda: "customer-jobs events" in program.log.read_text(), READY_SECONDS, "it says what to type")
        exports = dict(re.findall(r"^ *export (\w+)=(\S+)$", program.log.read_text(), re.MULTILINE))
        assert set(exports) == {"DATABASE_URL", "REDIS_URL"}
        ended = run("customer-jobs create --email jenny.rosen@example.com --wait 30", exports)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert run("customer-jobs events", exports).stdout.count("customer.create.succeeded") == 1


def worker(stack: Stack, command: str, directory: Path) -> None:
    # By Ctrl-C it stops in the same way, but Celery calls that a failure.
    with up(command, stack.settings, directory, stop_signal=signal.SIGTERM) as program:
        wait_until(lambda: " ready" in program.log.read_text(), READY_SECONDS, "it is ready", program=program)


def dispatcher(stack: Stack, command: str, directory: Path) -> None:
    # On a database of its own, where it leads: beside the stack's worker it would stand by and say nothing.
    settings = stack.settings | {"DATABASE_URL": f"sqlite:///{directory / 'own.sqlite3'}"}
    ended = run("customer-jobs migrate", settings)
    assert ended.returncode == 0, ended.stderr
    with up(command, settings, directory) as program:
        wait_until(lambda: "event=leads" in program.log.read_text(), READY_SECONDS, "it leads", program=program)


def flower(stack: Stack, command: str, directory: Path) -> None:
    port = embedded.free_port()
    user = re.search(r"--basic-auth=(\S+)", command)
    assert user is not None
    with up(f"{command} --port={port}", stack.settings, directory) as program:
        page = "/workers?json=1"
        wait_until(lambda: status(port, "/healthcheck") == 200, READY_SECONDS, "it answers", program=program)
        assert status(port, page) == 401
        assert status(port, page, user[1]) == 200


def sandbox(_: Stack, command: str, directory: Path) -> None:
    port = embedded.free_port()  # The usual one may be in use by the one that a person has running.
    with up(f"{command} --port {port}", {}, directory) as program:
        wait_until(lambda: status(port, "/_sandbox/health") == 200, READY_SECONDS, "it answers", program=program)


def webhooks(stack: Stack, command: str, directory: Path) -> None:
    port = embedded.free_port()  # The usual one may be in use by the one that a person has running.
    settings = stack.settings | {"STRIPE_WEBHOOK_SECRET": "whsec_test"}
    with up(command.replace("8000", str(port)), settings, directory) as program:
        wait_until(lambda: status(port, "/health") == 200, READY_SECONDS, "it answers", program=program)


def leads_to_the_endpoint(_: Stack, command: str, __: Path) -> None:
    """Stripe's command line is not here to be run; where it sends events must be there."""
    assert any(isinstance(route, Route) and command.endswith(f":8000{route.path}") for route in make_app().routes)


def curl(stack: Stack, command: str, _: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    rules, endpoints = stack.sandbox.faults.rules(), stack.sandbox.webhooks.endpoints
    try:
        ended = run(command.replace("http://127.0.0.1:12111", stack.sandbox.url) + " --fail", {})
    finally:
        stack.sandbox.faults.clear()
        stack.sandbox.webhooks.configure(*endpoints)
    assert rules == []
    assert ended.returncode == 0, ended.stdout + ended.stderr
    json.loads(ended.stdout)


def redis_cli(stack: Stack, command: str, _: Path) -> None:
    # Said to Redis itself, since the program need not be on this machine.
    with connect(stack.redis_url) as client:
        client.execute_command(*shlex.split(command)[1:])


def paused_for_a_moment(stack: Stack, command: str, _: Path) -> None:
    """Others use the same stack, and go on at once."""
    try:
        ends("paused credential 'default'")(stack, command, _)
    finally:
        ends("resumed credential 'default'")(stack, "customer-jobs limits resume default", _)


def retried(stack: Stack, command: str, _: Path) -> None:
    if shutil.which("jq") is None:
        pytest.skip("no jq on this machine")
    ends()(stack, command, _)


def imported(stack: Stack, command: str, directory: Path) -> None:
    (directory / "customers.csv").write_text("email,name,external_id\njenny.rosen@example.com,Jenny,imported-1\n")
    ends("1 ")(stack, f"cd {shlex.quote(str(directory))} && {command}", directory)


#: How each command is exercised; the first pattern that matches all of it.
EXERCISES: dict[str, Exercise] = {
    r"make demo": demo,
    r"make test": is_what_ci_runs,
    r"make dev": dev,
    r"\. \.venv/bin/activate": ends(),
    r"export .*": is_a_setting,
    r"customer-jobs create .*--wait 30": ends("succeeded", "cus_"),
    r"customer-jobs fetch cus_sandbox_reset --wait 30": ends("succeeded", "no_answer"),
    r"echo .*createCustomer.* \| customer-jobs run -": ends('"customerId": "cus_'),
    r"echo .*cus_sandbox_ok.* \| customer-jobs run - --timeout 30": ends('"output1": {"id": "cus_sandbox_ok"'),
    r"customer-jobs (list|events.*)": ends(),
    r"customer-jobs doctor": ends("ok    migrations   all applied"),
    r"customer-jobs health": ends("ok  queue"),
    r"customer-jobs stats": ends("leader"),
    r"customer-jobs limits": ends(),
    r"customer-jobs limits resume default": ends("credential 'default'"),
    r"customer-jobs limits pause default .*": paused_for_a_moment,
    r"customer-jobs list .* \| jq .* customer-jobs retry": retried,
    r"customer-jobs forget .*": ends(),
    r"customer-jobs import customers.csv.*": imported,
    r"customer-jobs migrate": ends("up to date"),
    r"customer-jobs sandbox.*": sandbox,
    r"customer-jobs webhooks --port 8000": webhooks,
    r"customer-jobs webhooks catch-up --since 2d": ends("events listed"),
    r"stripe listen --forward-to http://127\.0\.0\.1:8000/\S+": leads_to_the_endpoint,
    r"celery -A worker\.app worker.*": worker,
    r"python -m worker\.dispatcher": dispatcher,
    r"celery -A worker\.app flower .*": flower,
    r"curl .*": curl,
    r"redis-cli .*": redis_cli,
}


def commands() -> list[str]:
    lines = [line for block in blocks("sh") for line in block.text.replace("\\\n", " ").splitlines()]
    return list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))


@pytest.mark.slow
@on_postgresql
@pytest.mark.parametrize("command", commands())
def test_a_command_does_what_the_docs_say(stack: Stack, command: str, tmp_path: Path) -> None:
    known = [exercise for pattern, exercise in EXERCISES.items() if re.fullmatch(pattern, command)]
    assert known, "no exercise here for this command"

    known[0](stack, command, tmp_path)


def consumes(stack: Stack, script: Path, group: str) -> None:
    """A consumer as it stands handles what is on the stream, and ends when it is told to."""
    stack.consumer.event_about(stack.jobs.create_customer({"name": "Jenny Rosen"}).id)
    with (
        connect(stack.redis_url) as client,
        up(f"python {shlex.quote(str(script))}", stack.settings, script.parent, stop_signal=signal.SIGTERM) as program,
    ):

        def has_handled_all() -> bool:
            groups: Any = client.xinfo_groups(DEFAULT_STREAM)
            return any(each["name"] == group and each["lag"] == each["pending"] == 0 for each in groups)

        wait_until(has_handled_all, READY_SECONDS, "every event is handled", program=program)
    assert "Traceback" not in program.log.read_text()


@pytest.mark.slow
@on_postgresql
@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_a_python_block_runs_as_it_stands(stack: Stack, block: Block, tmp_path: Path) -> None:
    script = tmp_path / "pasted.py"
    script.write_text(block.text)
    if consumer := re.search(r'EventConsumer\("(\w+)"', block.text):
        consumes(stack, script, consumer[1])
        return

    # Some write files where they run.
    ended = run(f"cd {shlex.quote(str(tmp_path))} && python {script.name}", stack.settings)

    assert (ended.returncode, ended.stderr) == (0, "")
    if ".wait(" in block.text:
        assert ended.stdout.startswith("succeeded created cus_")


@on_postgresql
@pytest.mark.parametrize("block", [block for block in blocks("sql") if block.text.startswith("INSERT")], ids=str)
def test_a_statement_enqueues(stack: Stack, block: Block) -> None:
    with stack.engine.begin() as connection:
        job_id = connection.execute(text(block.text.strip().rstrip(";") + " RETURNING id")).scalar_one()

    ended = stack.jobs.wait(str(job_id), COMMAND_SECONDS)

    assert (ended.state, ended.outcome) == ("succeeded", "created")


@on_postgresql
def test_an_event_looks_as_documented(stack: Stack) -> None:
    every = (json.loads(block.text) for block in blocks("json") if block.page == "events.md")
    documented = next(each for each in every if each["type"].endswith(".create.succeeded"))
    told = documented["data"]

    job = stack.jobs.create_customer({"name": "Jenny Rosen"}, context=told["context"])
    entry = stack.consumer.entry_about(job.id)

    assert entry.keys() == {"event", "type", "subject"}
    event = entry["event"]
    assert list(event) == list(documented)
    assert list(event["data"]) == list(told)
    changing = {"job_id", "customer_id", "external_id"}
    assert {k: v for k, v in event["data"].items() if k not in changing} == {
        k: v for k, v in told.items() if k not in changing
    }
    same = ("specversion", "source", "type", "datacontenttype")
    assert {name: event[name] for name in same} == {name: documented[name] for name in same}
