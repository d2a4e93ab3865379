"""Rows that only plain SQL can write: they end or wait, others go on, and every command shows what there is."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import Engine
from typer.testing import CliRunner

from customer_jobs.cli import app
from customer_jobs.schema import jobs
from customer_jobs.vocabulary import FINAL_STATES, State
from tests.builders import Worker, add_job, job_row, later, rows
from tests.integration.test_plain_sql import is_refused
from worker.dispatcher import upkeep
from worker.reconcile import LOOK_PAUSE_SECONDS
from worker.retry import RetryPolicy

pytestmark = pytest.mark.slow

INT = 2**31 - 1
RUNNING = {"state": "'running'", "lease_expires_at": "'2026-01-01 00:00:00'"}
FAILED = {"state": "'failed'", "finished_at": "'2026-01-01 00:00:00'", "error": "'{}'"}

#: Columns as SQL.
ABSURD: dict[str, dict[str, str]] = {
    "an attempt beyond all": {"attempt": str(INT), "max_attempts": "1"},
    "the last attempt used": {"attempt": "25"},
    "attempts without end": {"attempt": str(INT), "max_attempts": str(INT)},
    "begun in the end": {"started_at": "'infinity'"},
    "begun before Christ": {"started_at": "'0044-03-15 00:00:00 BC'"},
    "begun in words": {"started_at": "'yesterday noon'"},
    "sent after the year 9999": {"first_sent_at": "'20000-01-01 00:00:00'"},
    "over in the end": {**FAILED, "finished_at": "'infinity'"},
    "over after the year 9999": {**FAILED, "finished_at": "'20000-01-01 00:00:00'"},
    "over before Christ": {**FAILED, "finished_at": "'-infinity'"},
    "failed with a number": {**FAILED, "error": "7"},
    "failed with a list": {**FAILED, "error": "'[[]]'"},
    "failed with words": {**FAILED, "error": "'{\"type\": 1, \"code\": [], \"remedy\": {}, \"message\": null}'"},
    "succeeded with nothing": {
        "state": "'succeeded'", "outcome": "'somehow'", "finished_at": "'2026-01-01 00:00:00'", "result": "'7'"
    },
    "running without an attempt": RUNNING,
    "running for ever": {**RUNNING, "lease_expires_at": "'9999-12-31 00:00:00'"},
    "running to infinity": {**RUNNING, "lease_expires_at": "'infinity'"},
    "dispatched without a token": {**RUNNING, "state": "'dispatched'"},
    "reconciling what was never sent": {"reconciling": "true"},
    "sent to nobody": {"first_sent_at": "'2026-01-01 00:00:00'"},
    "a retry of nothing": {"retry_of": "'00000000-0000-4000-8000-000000000000'"},
    "a candidate of no sense": {"candidate_customer_id": "'../../etc'", "reconciling": "true"},
    "emptied": {"body_digest": "'x'", "payload": "'{}'"},
    "a trace of no sense": {"traceparent": "'x'"},
    "params that are a list": {"params": "'[]'"},
    "a customer id of no sense": {"customer_id": "'%$'"},
    "a payload of 50 MB": {"payload": f"'{json.dumps({'body': {'description': 'x' * 50_000_000}})}'"},
    "a context of 50 MB": {"context": f"'\"{'x' * 50_000_000}\"'"},
}  # fmt: skip


def rescue(worker: Worker) -> None:
    upkeep.rescue(worker.engine, worker.holder, lambda tx, held: worker.runner.abandon(tx, held, RetryPolicy()))


@pytest.mark.parametrize("what", ABSURD)
def test_an_absurd_row_is_refused_by_the_table_or_ends_and_keeps_nobody_from_anything(
    engine: Engine, worker: Worker, what: str
) -> None:
    if is_refused(engine, **ABSURD[what]):
        assert rows(engine, jobs) == []
        return
    (odd,) = rows(engine, jobs)
    other = add_job(engine)

    for _ in range(4):
        rescue(worker)
        worker.work()
        if job_row(engine, odd["id"])["state"] not in FINAL_STATES:
            later(engine, LOOK_PAUSE_SECONDS + 1, odd["id"])

    ended = job_row(engine, odd["id"])
    assert ended["state"] in FINAL_STATES
    assert job_row(engine, other)["state"] == State.SUCCEEDED
    env = {"DATABASE_URL": engine.url.render_as_string(hide_password=False)}
    for command in (
        ["list"],
        ["list", "--json"],
        ["show", odd["id"]],
        ["show", odd["id"], "--json"],
        ["stats"],
        ["limits"],
    ):
        result = CliRunner().invoke(app, command, env=env)
        assert result.exit_code == 0, (command, result.output[-2000:])
