"""An app's own Celery on the same Redis: its default queue, its workers, its Flower; neither side notices the other."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from celery import Celery

from customer_jobs.embedded import Program, start, wait_until
from tests.acceptance.stack import READY_SECONDS, Stack, email, environment, flower, wait_for_line

#: As an app has it that never heard of us, with the names that Celery gives by default.
SHOP = """
import os
from celery import Celery

app = Celery("shop", broker=os.environ["REDIS_URL"])
app.conf.worker_send_task_events = True

@app.task(name="shop.ship")
def ship(parcel):
    print(f"shipped {parcel}", flush=True)
"""


@dataclass(frozen=True)
class Shop:
    """The app's worker and what it takes to send to it."""

    app: Celery
    worker: Program

    def ship(self, parcel: str) -> str:
        """The id of a task of the app's, once it was done."""
        with self.app.connection_for_write() as connection:
            sent = self.app.send_task("shop.ship", args=(parcel,), connection=connection, ignore_result=True)
        wait_for_line(self.worker, f"shipped {parcel}")
        return str(sent.id)


@pytest.fixture(scope="module")
def shop(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    directory = tmp_path_factory.mktemp("shop")
    (directory / "shop.py").write_text(SHOP)
    worker = start(
        "worker of the shop",
        [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "shop",
            "worker",
            "-n",
            "shop@test",
            "-P",
            "threads",
            "-c",
            "2",
            "-l",
            "INFO",
        ],
        log=directory / "worker.log",
        env=environment({"REDIS_URL": stack.redis_url}),
        cwd=directory,
    )
    with worker:
        wait_for_line(worker, "shop@test ready")
        yield Shop(Celery(broker=stack.redis_url, set_as_current=False), worker)


pytestmark = [pytest.mark.slow, pytest.mark.parametrize("stack", ["sqlite"], indirect=True)]


def test_neither_takes_the_others_messages(stack: Stack, shop: Shop) -> None:
    ended = [stack.wait_for_end(stack.jobs.create_customer({"email": email()})) for _ in range(5)]
    for number in range(5):
        shop.ship(f"parcel {number}")

    assert {job.outcome for job in ended} == {"created"}
    theirs, ours = shop.worker.log.read_text(), (stack.directory / "one.log").read_text()
    assert "customer" not in theirs.replace("customer-jobs", "")
    assert all(job.id not in theirs for job in ended)
    assert "shop" not in ours
    assert "discarded" not in ours + theirs


def test_commands_reach_only_ones_own_workers(stack: Stack, shop: Shop) -> None:
    ours = Celery(broker=stack.redis_url, set_as_current=False)
    ours.conf.update(broker_transport_options={"global_keyprefix": "customer-jobs:"}, control_exchange="customer-jobs")

    def pinged_by(app: Celery) -> set[str]:
        with app.connection_for_write() as connection:
            return {name for answer in app.control.ping(timeout=2, connection=connection) for name in answer}

    assert pinged_by(ours) == {"one@test"}
    assert pinged_by(shop.app) == {"shop@test"}


def test_each_flower_shows_its_own_workers_and_tasks(stack: Stack, shop: Shop, tmp_path: Path) -> None:
    their_celery = [sys.executable, "-m", "celery", f"--broker={stack.redis_url}"]

    with (
        flower(tmp_path, {"REDIS_URL": stack.redis_url}, name="ours") as ours,
        flower(tmp_path, {}, name="theirs", celery=their_celery, cwd=tmp_path) as theirs,
    ):
        # Flower knows what it has heard.
        wait_until(
            lambda: stack.wait_for_end(stack.jobs.create_customer({"email": email()})).id in ours.tasks(),
            READY_SECONDS,
            "our Flower listens",
        )
        wait_until(lambda: shop.ship("a parcel") in theirs.tasks(), READY_SECONDS, "their Flower listens")
        job = stack.wait_for_end(stack.jobs.create_customer({"email": email()}))
        parcel = shop.ship("another parcel")
        wait_until(lambda: job.id in ours.tasks(), READY_SECONDS, "our Flower shows the job")
        wait_until(lambda: parcel in theirs.tasks(), READY_SECONDS, "their Flower shows the task")

        assert {task["name"] for task in ours.tasks().values()} == {"customer.create"}
        assert {task["name"] for task in theirs.tasks().values()} == {"shop.ship"}
        assert json.loads(ours.page("/workers?json=1"))["data"][0]["hostname"] == "one@test"
        assert [each["hostname"] for each in json.loads(theirs.page("/workers?json=1"))["data"]] == ["shop@test"]


def test_every_key_of_ours_begins_with_our_name(stack: Stack, shop: Shop) -> None:
    stack.wait_for_end(stack.jobs.create_customer({"email": email()}))
    shop.ship("a last parcel")

    with redis.Redis.from_url(stack.redis_url, decode_responses=True) as client:
        keys: set[str] = set(client.keys("*"))
    assert "customer-jobs:events" in keys
    theirs = {key for key in keys if not key.startswith("customer-jobs:")}
    assert [key for key in theirs if not key.startswith("_kombu.binding") or "customer" in key] == []
