"""A Redis that has no room left: workers live through it, and nothing is lost; should one end, it is started again."""

from __future__ import annotations

import signal
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from celery import Celery

from customer_jobs import CustomerJobs, Job
from customer_jobs.broker import PREFIX, QUEUE
from customer_jobs.embedded import wait_until
from customer_jobs.events import DEFAULT_STREAM
from tests.acceptance.stack import CHECKOUT, email, send_message
from tests.integration.test_cli_local import command, creates, get, workers
from worker.process import THREADS

SOON_SECONDS = 60.0
MANY_BYTES = 1_000_000
FETCHED = "cus_sandbox_ok"  #: The sandbox makes it up.


def post(url: str) -> None:
    urllib.request.urlopen(urllib.request.Request(url, data=b"{}"), timeout=5).close()


@contextmanager
def full(client: redis.Redis) -> Iterator[None]:
    """Redis refuses whatever needs room until the block ends; a message that is taken out makes too little."""
    client.set("ballast", b"x" * 2 * MANY_BYTES)
    client.config_set("maxmemory", client.info("memory")["used_memory"] - MANY_BYTES)
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        client.set("more", b"")
    yield
    client.delete("ballast")


def refusals(client: redis.Redis) -> int:
    """How often Redis said that it has no room, by its own count."""
    return int(client.info("errorstats").get("errorstat_OOM", {"count": 0})["count"])


@pytest.mark.slow
def test_a_full_redis_ends_no_worker_and_no_job_is_lost(tmp_path: Path) -> None:
    with command("dev", "--data", str(tmp_path)) as dev:
        stripe = dev.read_until(r"Stripe +(http://127\.0\.0\.1:\d+)")[1]
        jobs = CustomerJobs(dev.read_until("export DATABASE_URL=(.+)$")[1])
        redis_url = dev.read_until("export REDIS_URL=(.+)$")[1]
        client = redis.Redis.from_url(redis_url, protocol=2)
        dev.read_until("events --follow")
        (first,) = workers(dev.process.pid)
        # Sixteen threads wait for Stripe, and messages wait in Redis: of one that is all there is of a job, taking it
        # needs room there.
        post(f"{stripe}/_sandbox/hold")
        made = [create(jobs) for _ in range(20)]
        wait_until(lambda: len(creates(stripe)) == THREADS, SOON_SECONDS, "every thread waits")
        send_message(redis_url, made[0].kind, made[0].id, task_id=made[0].id)
        asked = str(uuid.uuid4())
        fetch = {"kind": "customer.fetch", "payload": {"customer_id": FETCHED}}
        with Celery(broker=redis_url, set_as_current=False) as app:
            app.send_task("customer.enqueue", kwargs=fetch, task_id=asked, queue=QUEUE, ignore_result=True)
        wait_until(lambda: client.llen(PREFIX + QUEUE) >= 2, SOON_SECONDS, "messages wait in Redis")

        with full(client):
            before = refusals(client)
            post(f"{stripe}/_sandbox/release")
            wait_until(lambda: jobs.get(asked), SOON_SECONDS, "the message is a job")
            made += [create(jobs) for _ in range(5)]
            wait_until(lambda: refusals(client) > before + 1, SOON_SECONDS, "Redis says that it has no room")

        ended = [jobs.wait(job.id, SOON_SECONDS) for job in made]
        assert jobs.wait(asked, SOON_SECONDS).state == "succeeded"
        assert workers(dev.process.pid) == {first}
        # Stripe's own event may say it first: `dev` receives them.
        assert {job.state for job in ended} == {"succeeded"}
        assert {job.outcome for job in ended} <= {"created", "replayed", "adopted"}
        made_there = [each["id"] for each in get(f"{stripe}/_sandbox/customers") if each["id"] != FETCHED]
        assert sorted(made_there) == sorted(str(job.customer_id) for job in ended)
        wait_until(lambda: arrived(client) >= {job.id for job in made}, SOON_SECONDS, "every event is on the stream")
        assert dev.end(signal.SIGTERM) == 0
        client.close()
        jobs.engine.dispose()


def create(jobs: CustomerJobs) -> Job:
    return jobs.create_customer({"email": email()})


def arrived(client: redis.Redis) -> set[str]:
    """The jobs whose events are on the stream."""
    entries: Any = client.xrange(DEFAULT_STREAM)
    return {fields[b"subject"].decode() for _, fields in entries}


def test_compose_starts_again_what_ends() -> None:
    services = yaml.safe_load((CHECKOUT / "docker-compose.yml").read_text())["services"]

    restarts = {name: service["restart"] for name, service in services.items()}

    assert restarts.pop("migrate") == "no"
    assert set(restarts.values()) == {"unless-stopped"}
    assert "worker" in restarts
