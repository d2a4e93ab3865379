"""Stripe's events over HTTP into real parts: what is kept is the newest state, and a create of ours is helped."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import stripe

from customer_jobs import Job, embedded
from customer_jobs.embedded import LOOPBACK, wait_until
from customer_jobs.sandbox import Endpoint
from customer_jobs.sql import now
from tests.acceptance.stack import (
    CHECKOUT,
    READY_SECONDS,
    SOON_SECONDS,
    STRIPE_API_KEY,
    Stack,
    email,
    environment,
    unique,
)
from tests.acceptance.terminal import status
from tests.builders import Row, change, create, dispatched, job_row, settings_for
from worker.gateway import Gateway
from worker.retry import CREATE_WINDOW, RetryPolicy
from worker.runner import Runner

SECRET = "whsec_test"
PATH = "/webhooks/stripe"
AN_HOUR_SECONDS = 3600.0


@contextmanager
def endpoint(stack: Stack, directory: Path) -> Iterator[str]:
    """The URL of `customer-jobs webhooks`, once it answers."""
    port = embedded.free_port()
    command = [sys.executable, "-m", "customer_jobs.cli", "webhooks", "--port", str(port)]
    env = environment({"DATABASE_URL": stack.database_url, "STRIPE_WEBHOOK_SECRET": SECRET})
    log = directory / "webhooks.log"
    with embedded.start("webhooks", command, log=log, env=env, cwd=CHECKOUT) as program:
        wait_until(lambda: status(port, "/health") == 200, READY_SECONDS, "the endpoint answers", program=program)
        yield f"http://{LOOPBACK}:{port}{PATH}"
    assert program.exit_code() == 0


def at_stripe(stack: Stack) -> stripe.StripeClient:
    """A client of somebody else on the same account."""
    return stripe.StripeClient(STRIPE_API_KEY, base_addresses={"api": stack.sandbox.url})


@pytest.mark.parametrize("database", ["postgresql"])
def test_late_doubled_and_shuffled_events_end_with_the_newest_state(own_stack: Stack, tmp_path: Path) -> None:
    stack, client = own_stack, at_stripe(own_stack)
    stack.start_worker(RATE_LIMIT_FETCH="100", RATE_LIMIT_ACCOUNT="100")
    with endpoint(stack, tmp_path) as url:
        stack.sandbox.webhooks.configure(Endpoint(url, SECRET, shuffle_seconds=2, duplicate_probability=0.3))
        changed, deleted = (client.v1.customers.create({"name": "0"}).id for _ in range(2))
        for number in range(1, 30):
            for customer_id in (changed, deleted):
                client.v1.customers.update(customer_id, {"name": str(number)})
        client.v1.customers.delete(deleted)
        stack.sandbox.webhooks.wait_until_idle(SOON_SECONDS)

    wait_until(lambda: not stack.jobs.list(state=["queued", "dispatched", "running", "retrying"]), SOON_SECONDS, "done")
    kept, gone = stack.jobs.customer(changed), stack.jobs.customer(deleted)
    assert kept is not None
    assert (kept.name, kept.deleted) == ("29", False)
    assert gone is not None
    assert gone.deleted
    assert {delivery.status for delivery in stack.sandbox.webhooks.deliveries()} == {200}
    fetches = stack.jobs.list(limit=1000)
    assert {(job.kind, job.state) for job in fetches} == {("customer.fetch", "succeeded")}
    assert len(fetches) < len(stack.sandbox.webhooks.deliveries())


@pytest.mark.parametrize("database", ["sqlite"])
def test_customers_that_workers_create_are_not_fetched(own_stack: Stack, tmp_path: Path) -> None:
    stack = own_stack
    with endpoint(stack, tmp_path) as url:
        stack.sandbox.webhooks.configure(Endpoint(url, SECRET))
        stack.start_worker()
        stack.sandbox.hold(after=True)
        made = [stack.jobs.create_customer({"email": email()}) for _ in range(5)]
        stack.sandbox.wait_until_held(5)
        stack.sandbox.webhooks.wait_until_idle(SOON_SECONDS)
        running = [job_row(stack.engine, job.id) for job in made]
        stack.sandbox.release()
        ended = [stack.wait_for_end(job) for job in made]

    assert [delivery.status for delivery in stack.sandbox.webhooks.deliveries()] == [200] * 5
    assert {job.outcome for job in ended} == {"created"}
    assert stack.jobs.list(kind="customer.fetch") == []
    # The news came before the answers, and were kept for the case that none comes.
    assert {row["state"] for row in running} == {"running"}
    assert {row["id"]: row["candidate_customer_id"] for row in running} == {job.id: job.customer_id for job in ended}


def gateway(stack: Stack) -> Gateway:
    """A worker's way to Stripe."""
    keys = {"default": STRIPE_API_KEY}
    return Gateway(settings_for(stripe_api_keys=keys, stripe_api_base=stack.sandbox.url))


def attempt(stack: Stack, job: Job) -> Row:
    """The job after an attempt by a worker that is gone now; if another is due, then in an hour."""
    policy = RetryPolicy(AN_HOUR_SECONDS, AN_HOUR_SECONDS, window=CREATE_WINDOW)
    runner = Runner(stack.engine, gateway(stack), draw=lambda: 1.0)
    runner.attempt(dispatched(stack.engine, job.id), create, policy, worker="gone")
    return job_row(stack.engine, job.id)


def test_an_ambiguous_create_ends_when_stripe_tells_of_its_customer(own_stack: Stack, tmp_path: Path) -> None:
    stack = own_stack
    job = stack.jobs.create_customer({"email": email(), "metadata": {"sandbox": "reset_after"}})
    with endpoint(stack, tmp_path) as url:
        # The news come after the attempt has been recorded, and no worker runs.
        stack.sandbox.webhooks.configure(Endpoint(url, SECRET, delay_seconds=1))
        before = attempt(stack, job)
        stack.sandbox.webhooks.wait_until_idle(SOON_SECONDS)
    told = job_row(stack.engine, job.id)
    (customer,) = stack.sandbox.customers()
    assert (before["state"], before["candidate_customer_id"]) == ("retrying", None)
    assert (told["state"], told["candidate_customer_id"]) == ("retrying", customer["id"])
    assert (before["due_at"] - told["due_at"]).total_seconds() > AN_HOUR_SECONDS / 2

    stack.start_worker()
    ended = stack.wait_for_end(job)

    assert (ended.outcome, ended.customer_id) == ("adopted", customer["id"])
    assert len(stack.sandbox.customers()) == len(stack.creates()) == len(stack.events_of(job)) == 1
    assert stack.jobs.list(kind="customer.fetch") == []


@pytest.mark.parametrize("database", ["postgresql"])
def test_the_truth_that_comes_after_an_unknown_outcome_is_adopted(own_stack: Stack, tmp_path: Path) -> None:
    stack, mine = own_stack, unique("user")
    lost = stack.jobs.create_customer({"email": email()}, external_id=mine, context={"order": 7})
    with endpoint(stack, tmp_path) as url:
        stack.sandbox.faults.add("reset", times=1)
        sent = attempt(stack, lost)
        error = {"type": "api_error", "code": "outcome_unknown"}
        change(stack.engine, lost.id, state="failed", error=error, finished_at=now())
        stack.sandbox.webhooks.configure(Endpoint(url, SECRET))
        # The request was under way for longer than anybody looked for its customer.
        gateway(stack).create_customer(
            json.loads(sent["params"]),
            credential="default",
            stripe_account=None,
            idempotency_key=f"customer-jobs-{lost.id}",
        )
        stack.sandbox.webhooks.wait_until_idle(SOON_SECONDS)
    (retried,) = stack.jobs.list(state="queued")

    stack.start_worker()
    ended = stack.wait_for_end(retried)

    (customer,) = stack.sandbox.customers()
    assert (ended.retry_of, ended.outcome, ended.customer_id) == (lost.id, "adopted", customer["id"])
    assert (ended.external_id, ended.context) == (mine, {"order": 7})
    assert stack.consumer.event_about(ended.id)["data"]["customer_id"] == customer["id"]
