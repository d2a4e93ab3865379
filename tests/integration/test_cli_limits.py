"""`customer-jobs limits`, and how show, list and stats say what jobs wait for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, insert, update
from typer.testing import CliRunner, Result

from customer_jobs.cli import app
from customer_jobs.database import writing
from customer_jobs.limits import MOST_COUNTED, pause
from customer_jobs.schema import attempts, credentials, lanes, leases, workers
from customer_jobs.sql import now
from customer_jobs.vocabulary import KEY_REFUSED, State
from tests.builders import EMAIL, add_fetch, add_job, add_worker, age, claimed, job_row, lead, rows

REFUSED = f"{KEY_REFUSED}: 401 invalid_request_error"
COLUMNS = "200"


class Commands:
    """The command line on a test's database."""

    def __init__(self, engine: Engine, database_url: str) -> None:
        self.engine = engine
        self._env = {"DATABASE_URL": database_url, "COLUMNS": COLUMNS}

    def run(self, *words: str) -> Result:
        return CliRunner().invoke(app, words, env=self._env)

    def said(self, *words: str) -> str:
        """What a command that goes well prints."""
        result = self.run(*words)
        assert result.exit_code == 0, result.output
        return result.stdout

    def limits(self) -> dict[tuple[str, str | None, str], dict[str, Any]]:
        """The documents of `limits --json`, by credential, account and endpoint."""
        found = json.loads(self.said("limits", "--json"))
        return {(each["credential"], each["stripe_account"], each["endpoint"]): each for each in found}


@pytest.fixture
def commands(engine: Engine, database_url: str) -> Commands:
    add_credentials(engine, "default", "eu")
    add_worker(engine)
    lead(engine)
    return Commands(engine, database_url)


def add_credentials(engine: Engine, *names: str) -> None:
    with writing(engine) as transaction:
        for name in names:
            transaction.change(insert(credentials).values(name=name, livemode=False, key_fingerprint=f"key_{name}"))


def refuse_key(engine: Engine) -> None:
    with writing(engine) as transaction:
        transaction.change(
            update(credentials).where(credentials.c.name == "default").values(paused_at=now(), reason=REFUSED)
        )


def pause_by_hand(engine: Engine) -> None:
    with writing(engine) as transaction:
        pause(transaction, "default", reason="maintenance")


def pause_endpoint(engine: Engine) -> None:
    with writing(engine) as transaction:
        pause(transaction, "default", endpoint="customer.create", reason="backfill")


def pause_account(engine: Engine) -> None:
    with writing(engine) as transaction:
        values = {"credential": "default", "kind": "*", "rate": 25, "paused_at": now(), "reason": "audit"}
        transaction.change(insert(lanes).values(values))


def lose_workers(engine: Engine) -> None:
    with writing(engine) as transaction:
        transaction.change(update(workers).values(seen_at=now(-60)))


def lose_leader(engine: Engine) -> None:
    age(engine, 60, leases)


def reach_limit(engine: Engine) -> None:
    with writing(engine) as transaction:
        values = {"credential": "default", "kind": "customer.create", "tokens": 0.2, "rate": 0.01}
        transaction.change(insert(lanes).values(values))


def have_bucket(engine: Engine, *, rate: float) -> None:
    with writing(engine) as transaction:
        transaction.change(insert(lanes).values(credential="default", kind="customer.create", rate=rate))


def answered(engine: Engine, **fields: Any) -> None:
    """An attempt that Stripe has just answered."""
    job_id = claimed(engine).job["id"]
    with writing(engine) as transaction:
        of_job = update(attempts).where(attempts.c.job_id == job_id)
        transaction.change(of_job.values({"finished_at": now(), "http_status": 200} | fields))


def keep_threads_busy(engine: Engine) -> None:
    for _ in range(16):
        claimed(engine)


REASONS: dict[str, tuple[Callable[[Engine], None], str, str | None]] = {
    "key refused": (refuse_key, f"credential paused: {REFUSED}", "customer-jobs limits resume default"),
    "credential": (pause_by_hand, "credential paused: maintenance", "customer-jobs limits resume default"),
    "endpoint": (
        pause_endpoint,
        "endpoint paused: backfill",
        "customer-jobs limits resume default --endpoint customer.create",
    ),
    "account": (pause_account, "account paused: audit", "customer-jobs limits resume default"),
    "workers": (lose_workers, "no worker is alive", "celery -A worker.app worker"),
    "leader": (lose_leader, "no dispatcher leads", "python -m worker.dispatcher"),
    "limit": (reach_limit, "limit reached: 0.01/s of customer.create", None),
    "threads": (keep_threads_busy, "every thread is busy", None),
}


@pytest.mark.parametrize("why", REASONS)
def test_what_a_job_waits_for_is_said_wherever_it_is_shown(commands: Commands, why: str) -> None:
    hold, reason, remedy = REASONS[why]
    hold(commands.engine)
    job_id = add_job(commands.engine)

    shown = commands.said("show", job_id)
    listed = commands.run("list", "--state", "queued")
    counted = commands.said("stats")
    limits = commands.limits()["default", None, "customer.create"]

    assert f"held by      {reason}" in shown
    assert reason in listed.stdout
    assert listed.stderr.startswith(f"1 waits, {reason}")
    if remedy is not None:
        assert remedy in shown
        assert remedy in listed.stderr
    assert f"1 customer.create of default: {reason}" in counted
    assert (limits["waiting"], limits["held_by"]) == (1, reason)
    assert job_row(commands.engine, job_id)["state"] == State.QUEUED


def test_the_job_document_is_what_it_always_is(commands: Commands) -> None:
    job_id = add_job(commands.engine)
    before = json.loads(commands.said("show", job_id, "--json"))

    pause_by_hand(commands.engine)

    assert json.loads(commands.said("show", job_id, "--json")) == before
    assert json.loads(commands.said("list", "--json")).keys() == before.keys()


def test_a_job_that_is_about_to_leave_is_not_held(commands: Commands) -> None:
    job_id = add_job(commands.engine)

    assert "held" not in commands.said("show", job_id)
    assert commands.run("list").stderr == ""
    assert "held" not in commands.said("stats")


@pytest.mark.parametrize("state", [State.RUNNING, State.SUCCEEDED, State.FAILED])
def test_what_does_not_wait_is_not_held(commands: Commands, state: State) -> None:
    pause_by_hand(commands.engine)
    job_id = add_job(commands.engine, state=state)

    assert "held" not in commands.said("show", job_id)
    assert "maintenance" not in commands.said("list")


def test_what_is_not_due_yet_is_not_held(commands: Commands) -> None:
    pause_by_hand(commands.engine)
    job_id = add_job(commands.engine, due_at=now(3600))

    assert "held" not in commands.said("show", job_id)
    assert "due in 60 min" in commands.said("list")


def test_jobs_that_wait_for_the_same_are_counted_in_one_line(commands: Commands) -> None:
    pause_endpoint(commands.engine)
    for _ in range(3):
        add_job(commands.engine)
    add_job(commands.engine, stripe_account="acct_1")
    add_fetch(commands.engine)

    listed = commands.run("list")

    assert listed.stderr.count("\n") == 1
    assert listed.stderr.startswith("4 wait, endpoint paused: backfill, ")


def test_a_pause_names_what_it_is_about_and_how_to_go_on(commands: Commands) -> None:
    whole = commands.said("limits", "pause", "default", "--reason", "Stripe maintenance")
    part = commands.said("limits", "pause", "eu", "--endpoint", "customer.fetch")

    assert whole == "paused credential 'default'; to go on: customer-jobs limits resume default\n"
    assert part.endswith("to go on: customer-jobs limits resume eu --endpoint customer.fetch\n")
    (default,) = rows(commands.engine, credentials, name="default")
    (fetches,) = rows(commands.engine, lanes)
    assert default["reason"] == "Stripe maintenance"
    assert (fetches["credential"], fetches["kind"], fetches["reason"]) == ("eu", "customer.fetch", "by hand")
    assert None not in (default["paused_at"], fetches["paused_at"])


def test_limits_show_a_pause_before_anything_waits(commands: Commands) -> None:
    commands.said("limits", "pause", "eu", "--endpoint", "customer.fetch", "--reason", "audit")

    limit = commands.limits()["eu", None, "customer.fetch"]

    assert (limit["waiting"], limit["held_by"]) == (0, "endpoint paused: audit")
    assert limit["paused_at"] is not None
    assert "endpoint paused: audit" in commands.said("limits")


def test_to_resume_a_credential_lifts_all_its_pauses(commands: Commands) -> None:
    commands.said("limits", "pause", "default")
    commands.said("limits", "pause", "default", "--endpoint", "customer.create")
    commands.said("limits", "pause", "eu")

    said = commands.said("limits", "resume", "default")

    assert said == "resumed credential 'default'\n"
    paused = {row["name"]: row["paused_at"] is not None for row in rows(commands.engine, credentials)}
    assert paused == {"default": False, "eu": True}
    assert [row["paused_at"] for row in rows(commands.engine, lanes)] == [None]
    assert commands.said("limits", "resume", "default") == "credential 'default' was not paused\n"


def test_to_resume_an_endpoint_says_what_else_is_paused(commands: Commands) -> None:
    commands.said("limits", "pause", "default", "--reason", "maintenance")
    commands.said("limits", "pause", "default", "--endpoint", "customer.create")

    result = commands.run("limits", "resume", "default", "--endpoint", "customer.create")

    assert (result.exit_code, result.stdout) == (0, "resumed customer.create of credential 'default'\n")
    assert result.stderr == "still held: credential paused: maintenance\n"


def test_a_pause_is_one_line_however_many_limits_it_holds_back(commands: Commands) -> None:
    for account in ("acct_1", "acct_2", "acct_3"):
        add_job(commands.engine, stripe_account=account)
    add_job(commands.engine, credential="eu")
    pause_endpoint(commands.engine)
    lose_leader(commands.engine)

    held = [line.split(maxsplit=1)[1] for line in commands.said("limits").splitlines() if line.startswith("  held")]

    # The first of each reason is named.
    assert [line.partition(";")[0].removesuffix(", now") for line in held] == [
        "* of default: no dispatcher leads",
        "customer.create of default and 3 more: endpoint paused: backfill",
        "* of eu and 1 more: no dispatcher leads",
    ]


def test_a_reason_moves_no_cursor_where_it_is_told(commands: Commands) -> None:
    commands.said("limits", "pause", "default", "--reason", "a\x1b[2Jb\nc")
    job_id = add_job(commands.engine, external_id="user-1")

    resumed = commands.run("limits", "resume", "default", "--endpoint", "customer.create")
    waited = commands.run("create", "--email", EMAIL, "--external-id", "user-1", "--wait", "0")

    assert resumed.stderr == "still held: credential paused: a�[2Jb c\n"
    assert "held by: credential paused: a�[2Jb c; look again" in waited.stderr
    assert "\x1b" not in commands.said("limits") + commands.said("show", job_id)


def test_json_is_for_the_figures_only(commands: Commands) -> None:
    result = commands.run("limits", "--json", "pause", "default")

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: --json: ")
    assert rows(commands.engine, credentials, name="default")[0]["paused_at"] is None


@pytest.mark.parametrize("verb", ["pause", "resume"])
@pytest.mark.parametrize(
    ("words", "field", "says"),
    [
        (["us"], "CREDENTIAL", "no worker has had a key of the name 'us'; known are default, eu"),
        (["us", "--endpoint", "customer.create"], "CREDENTIAL", "known are default, eu"),
        (["default", "--endpoint", "customer.list_all"], "--endpoint", "customer.create, customer.fetch"),
        (["default", "--endpoint", "*"], "--endpoint", "must be one of"),
    ],
)
def test_a_name_that_is_not_known_is_refused_and_nothing_written(
    commands: Commands, verb: str, words: list[str], field: str, says: str
) -> None:
    before = rows(commands.engine, credentials), rows(commands.engine, lanes)

    result = commands.run("limits", verb, *words)

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {field}: ")
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
    assert (rows(commands.engine, credentials), rows(commands.engine, lanes)) == before


def test_before_any_worker_has_run_no_credential_is_known(engine: Engine, database_url: str) -> None:
    result = Commands(engine, database_url).run("limits", "pause", "default")

    assert result.exit_code == 2
    assert "none has been seen at all" in result.stderr


@pytest.mark.parametrize("words", [[], ["--json"], ["pause", "default"], ["resume", "default"]])
def test_a_database_out_of_reach_is_one_line(words: list[str]) -> None:
    result = CliRunner().invoke(app, ["limits", *words], env={"DATABASE_URL": "postgresql://app@127.0.0.1:1/x"})

    assert (result.exit_code, result.stdout) == (4, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [["pause"], ["resume"], ["stop", "default"], ["--endpoint", "x"]])
def test_words_that_say_nothing_are_refused(commands: Commands, words: list[str]) -> None:
    result = commands.run("limits", *words)

    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")


def test_without_a_job_there_is_nothing_to_show(engine: Engine, database_url: str) -> None:
    commands = Commands(engine, database_url)

    assert commands.said("limits") == "no job has met a limit yet, and none waits\n"
    assert json.loads(commands.said("limits", "--json")) == []


def test_what_the_last_minute_used_and_met_is_shown(commands: Commands) -> None:
    have_bucket(commands.engine, rate=1)
    for number in range(4):
        met = {"http_status": 429, "rate_limited_reason": "endpoint-rate"}
        answered(commands.engine, **({} if number else met))

    limit = commands.limits()["default", None, "customer.create"]

    assert limit["used"] == pytest.approx(4 / (1 * 60))
    assert (limit["rate_limited_last_minute"], limit["in_flight"]) == (1, 4)
    assert MOST_COUNTED > limit["waiting"] == 0


def test_no_more_than_a_whole_limit_is_used_where_it_was_lowered_meanwhile(commands: Commands) -> None:
    have_bucket(commands.engine, rate=0.01)
    for _ in range(4):
        answered(commands.engine)

    assert commands.limits()["default", None, "customer.create"]["used"] == 1
    assert "100%" in commands.said("limits")


def test_the_whole_account_sums_up_what_its_endpoints_do(commands: Commands) -> None:
    reach_limit(commands.engine)
    claimed(commands.engine)
    claimed(commands.engine, add_job(commands.engine, stripe_account="acct_1"))
    add_job(commands.engine)
    add_fetch(commands.engine)
    add_fetch(commands.engine, credential="eu")

    found = commands.limits()
    stats = json.loads(commands.said("stats", "--json"))

    figures = {key[0]: (each["waiting"], each["in_flight"]) for key, each in found.items() if key[2] == "*"}
    assert figures == {"default": (2, 2), "eu": (1, 0)}
    assert [(each["endpoint"], each["jobs"]) for each in stats["held"]] == [("customer.create", 1)]


def test_a_paused_credential_is_shown_before_its_first_job(commands: Commands) -> None:
    commands.said("limits", "pause", "default", "--reason", "maintenance")

    limit = commands.limits()["default", None, "*"]
    said = commands.said("limits")
    resumed = commands.run("limits", "resume", "default", "--endpoint", "customer.create")

    assert (limit["held_by"], limit["waiting"]) == ("credential paused: maintenance", 0)
    assert "credential paused: maintenance" in said
    assert resumed.stderr == "still held: credential paused: maintenance\n"


@pytest.mark.parametrize("words", [["limits"], ["limits", "pause"], ["limits", "resume"]])
def test_help_shows_how_it_is_used(words: list[str]) -> None:
    result = CliRunner().invoke(app, [*words, "--help"])

    assert result.exit_code == 0
    assert "Examples:\n    customer-jobs limits" in result.stdout


def test_help_explains_every_column(commands: Commands) -> None:
    add_job(commands.engine, stripe_account="acct_1")
    columns = [name.strip() for name in re.split("  +", commands.said("limits").splitlines()[0])]
    told = " ".join(CliRunner().invoke(app, ["limits", "--help"]).stdout.split())

    assert columns[3:] == ["RATE", "USED", "429", "WAITING", "IN FLIGHT"]
    assert [name for name in columns[3:] if f"{name} " not in told] == []
