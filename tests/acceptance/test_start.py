"""How a worker starts, or says in one line why it does not."""

from __future__ import annotations

import subprocess
from functools import partial
from pathlib import Path

import pytest
from redis import Redis

from customer_jobs import Job
from customer_jobs.embedded import wait_until
from tests import servers
from tests.acceptance.stack import (
    CELERY,
    CHECKOUT,
    READY_SECONDS,
    STRIPE_API_KEY,
    Stack,
    email,
    environment,
    flower,
    running,
    wait_for_line,
)
from tests.proxy import Proxy

GOOD = {
    "DATABASE_URL": "sqlite:///nowhere.sqlite3",
    "REDIS_URL": "redis://127.0.0.1:1/0",
    "STRIPE_API_KEY": "sk_test_sandbox",
}


def refusal(settings: dict[str, str]) -> str:
    """The one line with which a worker refuses to start."""
    ended = subprocess.run(
        [*CELERY, "worker"],
        env=environment(settings),
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=READY_SECONDS,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "Traceback" not in ended.stderr
    # As root Celery warns of that as well.
    (line,) = (line for line in ended.stderr.splitlines() if line.startswith("error: "))
    return line


def test_missing_settings_are_all_named_with_how_to_set_them() -> None:
    line = refusal({})

    assert "DATABASE_URL is not set; for example: export DATABASE_URL=postgresql://" in line
    assert "REDIS_URL is not set; for example: export REDIS_URL=redis://" in line
    assert "STRIPE_API_KEY is not set; for example: export STRIPE_API_KEY=sk_test_" in line


def test_wrong_settings_are_all_named_and_not_repeated() -> None:
    line = refusal(GOOD | {"REDIS_URL": "http://:hunter2@x", "STRIPE_API_KEY": "sk_live_hunter2"})

    assert "REDIS_URL" in line
    assert "STRIPE_API_KEY is a live key; to use it: export ALLOW_LIVE_MODE=true" in line
    assert "hunter2" not in line


def test_a_database_that_is_not_migrated_is_refused_with_the_remedy(empty_database_url: str) -> None:
    line = refusal(GOOD | {"DATABASE_URL": empty_database_url})

    assert "customer-jobs migrate" in line


def test_a_worker_waits_for_its_database_and_its_redis(
    tmp_path: Path, postgres_database_url: str, redis: servers.Server
) -> None:
    with (
        Proxy.before(postgres_database_url) as to_database,
        Proxy.before(redis.url) as to_redis,
        running(tmp_path, postgres_database_url, redis.url) as stack,
    ):
        to_database.refuse()
        to_redis.refuse()
        job = stack.jobs.create_customer({"email": email()})
        worker = stack.launch_worker(
            DATABASE_URL=to_database.through(postgres_database_url), REDIS_URL=to_redis.through(redis.url)
        )

        wait_for_line(worker, "waiting for the database")
        to_database.accept()
        wait_for_line(worker, "Cannot connect to redis")
        to_redis.accept()

        assert stack.wait_for_end(job, READY_SECONDS).state == "succeeded"


@pytest.mark.parametrize(
    ("refuse", "accept"),
    [("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"), ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE")],
    ids=["full", "a replica"],
)
def test_a_worker_waits_for_a_redis_that_refuses_to_write(
    tmp_path: Path, postgres_database_url: str, redis: servers.Server, refuse: str, accept: str
) -> None:
    with (
        running(tmp_path, postgres_database_url, redis.url) as stack,
        Redis.from_url(redis.url, protocol=2) as client,
    ):
        client.execute_command(*refuse.split())
        worker = stack.launch_worker()
        wait_for_line(worker, "Cannot connect to redis")
        client.execute_command(*accept.split())
        at_first = stack.wait_for_end(stack.jobs.create_customer({"email": email()}), READY_SECONDS)

        client.execute_command(*refuse.split())
        before = len(worker.log.read_text())
        client.client_kill_filter(_type="normal", skipme=True)
        wait_until(lambda: "Cannot connect" in worker.log.read_text()[before:], READY_SECONDS, "it cannot get back")
        client.execute_command(*accept.split())
        in_the_end = stack.wait_for_end(stack.jobs.create_customer({"email": email()}), READY_SECONDS)

        assert (at_first.state, in_the_end.state) == ("succeeded", "succeeded")
        assert worker.exit_code() is None


@pytest.mark.parametrize("stack", ["sqlite"], indirect=True)
def test_flower_shows_jobs_by_their_ids_alone(stack: Stack, tmp_path: Path) -> None:
    address = email()

    with flower(tmp_path, stack.settings) as shown:

        def shows(job: Job) -> bool:
            return shown.tasks().get(job.id, {}).get("state") in {"SUCCESS", "FAILURE"}

        # Flower knows what it has heard.
        wait_until(
            lambda: shows(stack.wait_for_end(stack.jobs.create_customer({"email": email()}))),
            READY_SECONDS,
            "Flower listens",
            program=shown.program,
        )
        made = stack.wait_for_end(stack.jobs.create_customer({"email": address, "name": "Jenny Rosen"}))
        refused = stack.wait_for_end(stack.jobs.create_customer({"email": f"{address} at home"}))
        for job in (made, refused):
            wait_until(partial(shows, job), READY_SECONDS, "Flower shows the job", program=shown.program)
        tasks = shown.tasks()
        pages = "".join(shown.page(path) for path in ("/tasks", f"/task/{made.id}", f"/task/{refused.id}")) + str(tasks)

    assert (tasks[made.id]["state"], tasks[refused.id]["state"]) == ("SUCCESS", "FAILURE")
    for job in (made, refused):
        assert tasks[job.id]["name"] == "customer.create"
        assert (tasks[job.id]["args"], tasks[job.id]["kwargs"]) == (f"('{job.id}',)", "{}")
    for secret in (address, "Jenny Rosen", STRIPE_API_KEY):
        assert secret not in pages
