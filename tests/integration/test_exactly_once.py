"""Whatever becomes of the answers, and whoever claims the job: one customer per create."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

from sqlalchemy import Engine

from benchmarks.exactly_once import FAULTS, run
from customer_jobs.sandbox import Sandbox
from customer_jobs.vocabulary import State
from tests.builders import add_job, dispatched, job_row, ledger

CREATES = 100
JOBS = 15

#: One of several processes that attempt the same jobs.
ATTEMPT = """
import sys
from customer_jobs.database import open_engine
from tests.builders import Worker, create, settings_for
from worker.gateway import Gateway
from worker.retry import RetryPolicy
from worker.runner import Runner
database_url, stripe_url, *job_ids = sys.argv[1:]
runner = Runner(open_engine(database_url), Gateway(settings_for(stripe_api_base=stripe_url)))
print("ready", flush=True)
sys.stdin.readline()
made = [runner.attempt(job_id, create, RetryPolicy(), worker="w1") for job_id in job_ids]
print(sum(recorded is not None for recorded in made))
"""


def test_lost_answers_and_two_producers_make_one_customer_each(engine: Engine) -> None:
    report = run(engine, CREATES, faults=FAULTS)

    assert report.enqueued == CREATES
    assert report.customers == CREATES
    assert report.customers_per_external_id == Counter({1: CREATES})
    assert report.states == Counter({"succeeded": CREATES})
    assert report.outcomes.keys() == {"created", "replayed", "adopted"}
    assert report.faults.keys() == {each.partition(":")[0] for each in FAULTS.split(",")}
    assert report.retried_by_hand == 0


def test_two_processes_that_attempt_one_job_make_one_call(engine: Engine, database_url: str) -> None:
    job_ids = [dispatched(engine, add_job(engine)) for _ in range(JOBS)]

    with Sandbox(latency_seconds=0.02) as sandbox:
        command = [sys.executable, "-c", ATTEMPT, database_url, sandbox.url, *job_ids]
        processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        attempts = [int(process.communicate("go\n", timeout=60)[0].splitlines()[-1]) for process in processes]

        assert sum(attempts) == JOBS
        assert Counter(request.idempotency_key for request in sandbox.requests) == Counter(
            {f"customer-jobs-{job_id}": 1 for job_id in job_ids}
        )
        assert len(sandbox.customers()) == JOBS
    assert {job_row(engine, job_id)["state"] for job_id in job_ids} == {State.SUCCEEDED}
    assert all(len(ledger(engine, job_id)) == 1 for job_id in job_ids)
