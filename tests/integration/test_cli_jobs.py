"""The commands about jobs, on either database: what they write, print and exit with."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, update
from typer.testing import CliRunner, Result

from customer_jobs import CustomerJobs, Job
from customer_jobs.cli import app
from customer_jobs.database import reading, writing
from customer_jobs.embedded import wait_until
from customer_jobs.schema import jobs
from customer_jobs.sql import now

NO_JOB = "0b1c9f1e-5b0c-4b55-9d2f-0c8b1b0f6a1d"


class CommandLine:
    """Runs `customer-jobs` on a database."""

    def __init__(self, database_url: str, engine: Engine) -> None:
        self.env: dict[str, str | None] = {"DATABASE_URL": database_url}
        self.engine = engine
        self.jobs = CustomerJobs(engine)

    def run(self, *words: str, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(app, list(words), input=stdin, env=self.env)

    def job(self, *words: str, stdin: str | bytes | None = None) -> Job:
        """The job that a command printed as JSON."""
        result = self.run(*words, "--json", stdin=stdin)
        assert result.exit_code == 0, result.output
        job = self.jobs.get(json.loads(result.stdout)["id"])
        assert job
        return job

    def payload(self, job: Job) -> Any:
        with reading(self.engine) as transaction:
            return transaction.rows(select(jobs.c.payload).where(jobs.c.id == job.id))[0]["payload"]

    def count(self) -> int:
        with reading(self.engine) as transaction:
            return int(transaction.value(select(func.count()).select_from(jobs)))

    def finish(self, job: Job, state: str, **values: Any) -> None:
        """What a worker would have written."""
        with writing(self.engine) as transaction:
            transaction.change(update(jobs).where(jobs.c.id == job.id).values(state=state, finished_at=now(), **values))


@pytest.fixture
def line(database_url: str, engine: Engine) -> CommandLine:
    return CommandLine(database_url, engine)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that nobody listens on."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def refused(result: Result) -> str:
    """The one line that says why the input was refused."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
    return result.stderr


def test_create_enqueues_what_the_flags_say(line: CommandLine) -> None:
    job = line.job(
        *["create", "--email", " jenny.rosen@example.com ", "--name", "Jenny Rosen", "--description", "VIP"],
        *["--phone", "+33 1", "--metadata", "plan=pro", "--metadata", "note=a=b", "--external-id", "user-42"],
        *["--credential", "eu", "--stripe-account", "acct_1", "--priority", "urgent", "--context", '{"order": 7}'],
        *["--due-at", "2030-01-01T00:00:00Z"],
    )

    assert line.payload(job) == {
        "body": {
            "email": "jenny.rosen@example.com",
            "name": "Jenny Rosen",
            "description": "VIP",
            "phone": "+33 1",
            "metadata": {"plan": "pro", "note": "a=b"},
        }
    }
    assert (job.kind, job.state, job.external_id) == ("customer.create", "queued", "user-42")
    assert (job.credential, job.stripe_account, job.priority) == ("eu", "acct_1", 1)
    assert job.context == {"order": 7}
    assert job.due_at.isoformat() == "2030-01-01T00:00:00+00:00"


def test_create_takes_all_of_stripes_parameters_as_json(line: CommandLine, tmp_path: Path) -> None:
    body = {"name": "José", "address": {"city": "Paris"}, "preferred_locales": ["fr"]}
    (tmp_path / "body.json").write_text(json.dumps(body), encoding="utf-8")

    given = [
        line.job("create", "--body", json.dumps(body)),
        line.job("create", "--body", f"@{tmp_path / 'body.json'}"),
        line.job("create", "--body", "-", stdin=json.dumps(body, ensure_ascii=False)),
    ]

    assert [line.payload(job) for job in given] == [{"body": body}] * 3


def test_fetch_enqueues_what_the_flags_say(line: CommandLine) -> None:
    job = line.job(
        *["fetch", "cus_NffrFeUfNV2Hib", "--expand", "default_source", "--expand", "tax_ids", "--max-age", "60"],
        *["--external-id", "user-42", "--credential", "eu", "--stripe-account", "acct_1", "--priority", "4"],
        *["--context", "[1]", "--due-at", "2030-01-01T00:00:00Z"],
    )

    assert line.payload(job) == {
        "customer_id": "cus_NffrFeUfNV2Hib",
        "expand": ["default_source", "tax_ids"],
        "max_age_seconds": 60,
    }
    assert (job.kind, job.customer_id, job.external_id) == ("customer.fetch", "cus_NffrFeUfNV2Hib", "user-42")
    assert (job.credential, job.stripe_account, job.priority, job.context) == ("eu", "acct_1", 4, [1])
    assert job.due_at.year == 2030


def test_without_wait_the_enqueued_job_is_printed(line: CommandLine) -> None:
    result = line.run("create", "--email", "jenny.rosen@example.com")

    assert result.exit_code == 0
    (job,) = line.jobs.list()
    assert result.stdout == f"job {job.id}  customer.create  queued\n"
    assert f"customer-jobs show {job.id}" in result.stderr


def test_json_is_one_document_with_every_field_of_the_contract(line: CommandLine) -> None:
    result = line.run("create", "--email", "jenny.rosen@example.com", "--json")

    document = json.loads(result.stdout)
    assert list(document) == [
        "id",
        "kind",
        "state",
        "credential",
        "stripe_account",
        "livemode",
        "priority",
        "external_id",
        "attempt",
        "max_attempts",
        "created_at",
        "due_at",
        "started_at",
        "finished_at",
        "outcome",
        "customer_id",
        "result",
        "error",
        "context",
        "retry_of",
        "attempts",
    ]
    assert result.stderr == ""


BAD_INPUT = [
    ["create"],
    ["create", "--body", "{"],
    ["create", "--body", "[]"],
    ["create", "--body", "null"],
    ["create", "--body", "@/no/such/file"],
    ["create", "--body", '{"name[x]": 1}'],
    ["create", "--body", '{"id": "cus_1"}'],
    ["create", "--body", '{"name": "a\\u0000b"}'],
    ["create", "--body", '{"name": "\\ud800"}'],
    ["create", "--body", '{"balance": NaN}'],
    ["create", "--body", '{"metadata": "x"}', "--metadata", "a=b"],
    ["create", "--name", "x", "--metadata", "plan"],
    ["create", "--name", "x", "--metadata", "a=1", "--metadata", "a=2"],
    ["create", "--name", "x", "--metadata", f"a={'x' * 501}"],
    ["create", "--name", "x", "--metadata", "a[b]=c"],
    ["create", "--name", "x", "--wait", "-1"],
    ["create", "--name", "x", "--wait", "nan"],
    ["create", "--name", "x", "--wait", "soon"],
    ["create", "--name", "x", "--priority", "5"],
    ["create", "--name", "x", "--priority", "high"],
    ["create", "--name", "x", "--credential", "E U"],
    ["create", "--name", "x", "--stripe-account", "cus_1"],
    ["create", "--name", "x", "--external-id", ""],
    ["create", "--name", "x", "--context", "order 7"],
    ["create", "--name", "x", "--due-at", "tomorrow"],
    ["create", "--name", "x", "--due-at", "2030-01-01T00:00:00"],
    ["create", "--name"],
    ["create", "--nmae", "x"],
    ["create", "--name", "x", "surplus"],
    ["create", "--name", "\udcff"],
    ["fetch"],
    ["fetch", ""],
    ["fetch", "../customers"],
    ["fetch", "cus_1", "--expand", "a[b]"],
    ["fetch", "cus_1", "--max-age", "inf"],
    ["list", "--state", "done"],
    ["list", "--kind", "customer.delete"],
    ["list", "--limit", "0"],
    ["list", "--before", NO_JOB],
    ["show"],
    ["show", NO_JOB],
    ["show", "7"],
    ["show", "'; DROP TABLE jobs; --"],
    ["show", "cus_NffrFeUfNV2Hib"],
    ["retry", NO_JOB],
    ["cancel", "x"],
    ["crate"],
    ["--wat"],
]


def test_bad_input_is_refused_in_one_line_and_nothing_is_written(line: CommandLine) -> None:
    for words in BAD_INPUT:
        result = line.run(*words)

        assert (result.exit_code, result.stdout) == (2, ""), words
        assert re.fullmatch(r"error: [^\n]+\n", result.stderr), words
    assert line.count() == 0


def test_an_error_keeps_standard_output_free_for_json(line: CommandLine) -> None:
    refused(line.run("create", "--json"))
    refused(line.run("show", NO_JOB, "--json"))


def test_a_body_over_64_kib_is_refused(line: CommandLine) -> None:
    said = refused(line.run("create", "--body", "-", stdin=json.dumps({"name": "x" * 100_000})))

    assert "65,536 at most" in said
    assert len(said) < 200


WITH_A_KEY = [
    ["create", "--name", "x", "--credential", "{key}"],
    ["create", "--name", "x", "--stripe-account", "{key}"],
    ["create", "--name", "x", "--priority", "{key}"],
    ["create", "--name", "x", "--due-at", "{key}"],
    ["create", "--name", "x", "--wait", "{key}"],
    ["create", "--name", "x", "--metadata", "{key}"],
    ["create", "--name", "x", "{key}"],
    ["create", "--{key}", "x"],
    ["fetch", "a/{key}"],
    ["show", "{key}"],
    ["list", "--state", "{key}"],
    ["list", "--kind", "{key}"],
    ["{key}"],
]


def test_a_key_pasted_by_mistake_is_not_echoed(line: CommandLine) -> None:
    for words in WITH_A_KEY:
        said = refused(line.run(*(word.format(key="sk_live_51HxSecretSecret") for word in words)))

        assert "Secret" not in said, words


@pytest.mark.parametrize("words", [["create", "--email", "a@example.com"], ["fetch", "cus_1"]])
def test_a_credential_without_a_key_is_refused_where_the_keys_are(line: CommandLine, words: list[str]) -> None:
    assert line.run(*words, "--credential", "us").exit_code == 0  # Nobody knows here which keys the workers have.
    line.env |= {"STRIPE_API_KEY": "sk_test_1", "CUSTOMER_JOBS_STRIPE_API_KEY_EU_FILE": "eu.key"}

    said = refused(line.run(*words, "--credential", "us"))

    assert "no STRIPE_API_KEY_US is set here, where there are keys for default, eu" in said
    assert [line.run(*words, "--credential", known).exit_code for known in ("default", "eu")] == [0, 0]
    assert line.count() == 3


def test_the_job_that_holds_an_external_id_is_named(line: CommandLine) -> None:
    first = line.job("create", "--name", "Jenny", "--external-id", "user-42")

    same = line.job("create", "--name", "Jenny", "--external-id", "user-42")
    said = refused(line.run("create", "--name", "Julia", "--external-id", "user-42", "--json"))

    assert same.id == first.id
    assert first.id in said
    assert line.count() == 1


def test_a_wait_that_ends_before_the_job_exits_3(line: CommandLine) -> None:
    result = line.run("create", "--name", "Jenny", "--wait", "0.1", "--json")

    assert result.exit_code == 3
    assert json.loads(result.stdout)["state"] == "queued"
    assert "held by: no worker is alive" in result.stderr


@pytest.mark.parametrize(
    ("state", "values", "exit_code"),
    [
        ("succeeded", {"outcome": "created", "customer_id": "cus_1"}, 0),
        ("failed", {"error": {"type": "card_error", "code": "declined", "remedy": "Ask for another card."}}, 1),
        ("cancelled", {}, 1),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["table", "json"])
def test_a_wait_exits_by_how_the_job_ended(
    state: str, values: dict[str, Any], exit_code: int, flags: list[str], line: CommandLine
) -> None:
    def finish_it_once_it_is_there() -> None:
        wait_until(line.jobs.list, 30, "the command has enqueued its job")
        line.finish(line.jobs.list()[0], state, **values)

    later = threading.Thread(target=finish_it_once_it_is_there)
    later.start()

    result = line.run("create", "--name", "Jenny", "--wait", "30", *flags)

    later.join()
    assert result.exit_code == exit_code, result.output
    if flags:
        assert json.loads(result.stdout)["state"] == state
    else:
        assert result.stdout.startswith(f"job {line.jobs.list()[0].id}  customer.create  {state}\n")
    assert ("Ask for another card." in result.stdout) == (state == "failed")


def test_show_prints_a_job(line: CommandLine) -> None:
    job = line.job("create", "--name", "Jenny", "--external-id", "user-42")

    table, document = line.run("show", job.id), line.run("show", job.id.upper(), "--json")

    assert (table.exit_code, document.exit_code) == (0, 0)
    assert table.stdout.startswith(f"job {job.id}  customer.create  queued\n")
    assert "user-42" in table.stdout
    assert json.loads(document.stdout) == job.document()


def test_show_with_a_customers_id_says_where_to_look(line: CommandLine) -> None:
    assert "customer-jobs list --customer cus_1" in refused(line.run("show", "cus_1"))
    assert "customer-jobs list --request req_1" in refused(line.run("show", "req_1"))


def made_seconds_ago(line: CommandLine, *ages: tuple[Job, float]) -> None:
    """SQLite's clock has milliseconds: jobs made in one of them would be in any order."""
    with writing(line.engine) as transaction:
        for job, age_seconds in ages:
            transaction.change(update(jobs).where(jobs.c.id == job.id).values(created_at=now(-age_seconds)))


def test_list_shows_the_latest_first(line: CommandLine) -> None:
    made = [line.jobs.create_customer({"name": str(number)}) for number in range(3)]
    made_seconds_ago(line, (made[0], 20), (made[1], 10))

    table, documents = line.run("list"), line.run("list", "--json")

    newest_first = [job.id for job in reversed(made)]
    assert [row.split()[0] for row in table.stdout.splitlines()[1:]] == newest_first
    assert [json.loads(row)["id"] for row in documents.stdout.splitlines()] == newest_first


def test_list_keeps_what_is_asked_for(line: CommandLine) -> None:
    create = line.jobs.create_customer({"name": "Jenny"}, external_id="user-42", stripe_account="acct_1")
    fetch = line.jobs.fetch_customer("cus_1", credential="eu")
    gone = line.jobs.create_customer({"name": "Julia"})
    line.jobs.cancel(gone.id)
    made_seconds_ago(line, (create, 20), (fetch, 10))

    for flags, wanted in {
        ("--state", "queued"): {create.id, fetch.id},
        ("--state", "queued", "--state", "cancelled"): {create.id, fetch.id, gone.id},
        ("--kind", "customer.fetch"): {fetch.id},
        ("--customer", "cus_1"): {fetch.id},
        ("--external-id", "user-42"): {create.id},
        ("--credential", "eu"): {fetch.id},
        ("--stripe-account", "acct_1"): {create.id},
        ("--request", "req_1"): set(),
        ("--limit", "1"): {gone.id},
        ("--before", fetch.id): {create.id},
    }.items():
        result = line.run("list", *flags, "--json")

        assert {json.loads(row)["id"] for row in result.stdout.splitlines()} == wanted, flags


def test_an_empty_list_says_so_beside_the_output(line: CommandLine) -> None:
    result = line.run("list")

    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "no jobs\n")


def test_retry_makes_a_new_job_of_a_failed_one(line: CommandLine) -> None:
    failed = line.jobs.create_customer({"name": "Jenny"}, external_id="user-42")
    line.finish(failed, "failed", error={"type": "api_error"})

    again = line.job("retry", failed.id)
    twice = line.job("retry", failed.id)

    assert (again.retry_of, again.external_id, again.state) == (failed.id, "user-42", "queued")
    assert twice.id == again.id


def test_retry_of_a_job_that_did_not_fail_is_refused(line: CommandLine) -> None:
    job = line.job("create", "--name", "Jenny")

    assert f"job {job.id} is queued" in refused(line.run("retry", job.id))


def test_cancel_takes_a_waiting_job_back(line: CommandLine) -> None:
    first, second = line.job("create", "--name", "Jenny"), line.job("create", "--name", "Julia")

    said, document = line.run("cancel", first.id), line.run("cancel", second.id, "--json")

    assert said.stdout == f"job {first.id} is cancelled; Stripe has not heard of it\n"
    assert json.loads(document.stdout)["state"] == "cancelled"
    assert [job.state for job in line.jobs.list()] == ["cancelled", "cancelled"]


def test_cancel_of_a_job_that_is_over_is_refused_with_the_reason(line: CommandLine) -> None:
    job = line.job("create", "--name", "Jenny")
    line.finish(job, "succeeded", outcome="created")

    assert f"job {job.id} is succeeded already" in refused(line.run("cancel", job.id))


def test_a_database_without_our_tables_is_told_to_be_migrated(empty_database_url: str) -> None:
    result = CliRunner().invoke(app, ["list"], env={"DATABASE_URL": empty_database_url})

    assert result.exit_code == 4
    assert "run `customer-jobs migrate`" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words", [["create", "--name", "x"], ["fetch", "cus_1"], ["show", NO_JOB], ["list"], ["retry", NO_JOB], ["migrate"]]
)
def test_a_database_out_of_reach_is_one_line_within_five_seconds(words: list[str], closed_port: int) -> None:
    began = time.monotonic()

    result = CliRunner().invoke(app, words, env={"DATABASE_URL": f"postgres://app:s3cret@127.0.0.1:{closed_port}/x"})

    assert result.exit_code == 4, result.output
    assert time.monotonic() - began < 5
    assert result.stdout == ""
    assert re.fullmatch(r"error: the database of DATABASE_URL cannot be used: [^\n]+\n", result.stderr)
    assert "s3cret" not in result.stderr


@pytest.mark.parametrize("url", ["", "nonsense", "mysql://app:s3cret@db/x", "postgresql://app:s3cret@db:port/x"])
def test_a_database_url_that_is_none_is_explained_without_its_password(url: str) -> None:
    result = CliRunner().invoke(app, ["list"], env={"DATABASE_URL": url})

    assert "DATABASE_URL" in refused(result)
    assert "s3cret" not in result.stderr


def test_the_script_itself_prints_json_and_exits_as_promised(sqlite_url: str) -> None:
    script = Path(sys.executable).with_name("customer-jobs")
    env = {**os.environ, "DATABASE_URL": sqlite_url, "FORCE_COLOR": "", "NO_COLOR": ""}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([script, *words], env=env, capture_output=True, text=True, timeout=30)

    enqueued = run("create", "--email", "jenny.rosen@example.com", "--json")
    too_early = run("fetch", "cus_1", "--wait", "0", "--json")
    unknown = run("show", NO_JOB)
    table = run("list")

    assert enqueued.returncode == 0
    assert json.loads(enqueued.stdout)["state"] == "queued"
    assert (too_early.returncode, json.loads(too_early.stdout)["state"]) == (3, "queued")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr.startswith("error: no job ")
    assert table.stdout.count("\n") == 3
    assert "\x1b" not in table.stdout


def test_a_reader_that_leaves_early_is_no_error(sqlite_url: str) -> None:
    CustomerJobs(sqlite_url).create_customers({"body": {"name": str(number)}} for number in range(2000))
    script = Path(sys.executable).with_name("customer-jobs")
    env = {**os.environ, "DATABASE_URL": sqlite_url}

    with subprocess.Popen(
        [script, "list", "--limit", "2000", "--json"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()

    assert said == b""
    assert process.returncode == 141


def test_help_and_version_load_nothing_heavy() -> None:
    heavy = "{'sqlalchemy', 'alembic', 'redis', 'celery', 'stripe', 'rich'}"
    code = (
        "import sys\nfrom customer_jobs.cli import main\nsys.argv[1:] = ['--help']\n"
        f"try:\n main()\nexcept SystemExit as end:\n assert end.code == 0\nassert not {heavy} & set(sys.modules)"
    )

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)

    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("word", ["create", "fetch", "show", "list", "retry", "cancel", "events", "migrate"])
def test_every_command_teaches_by_example(word: str) -> None:
    result = CliRunner().invoke(app, [word, "--help"])

    assert result.exit_code == 0
    assert f"customer-jobs {word}" in result.stdout.partition("Examples:")[2]


def test_the_main_help_explains_the_exit_codes() -> None:
    for words in ([], ["--help"], ["-h"]):
        result = CliRunner().invoke(app, words)

        assert result.exit_code == 0
        assert "4  the database or Redis is out of reach" in result.stdout
