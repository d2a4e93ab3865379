"""What people write instead: Celery tasks that call Stripe by themselves, with no table; nothing of ours is in them."""

from __future__ import annotations

import os
import sys
from functools import cache

import stripe
from celery import Celery, Task

from benchmarks.parts import Stage
from customer_jobs.environment import setting
from tests.acceptance.stack import STRIPE_API_KEY

THREADS = 16  #: As many as a worker of ours has.

app = Celery("peers")
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)

#: What a worker by hand catches: the limit, lost answers and Stripe's own trouble.
TRANSIENT = (stripe.RateLimitError, stripe.APIConnectionError, stripe.APIError)


@cache
def client() -> stripe.StripeClient:
    """One client for the process, as Stripe advises."""
    return stripe.StripeClient(
        setting("STRIPE_API_KEY") or "", base_addresses={"api": os.environ["STRIPE_API_BASE"]}, max_network_retries=0
    )


@app.task(bind=True, autoretry_for=TRANSIENT, retry_backoff=True, max_retries=None)
def by_hand(self: Task, email: str) -> None:
    """Create a customer; try again later with the same idempotency key."""
    client().v1.customers.create({"email": email}, {"idempotency_key": self.request.id})


@app.task(bind=True, autoretry_for=TRANSIENT, retry_backoff=True, max_retries=None, rate_limit="25/s")
def by_hand_limited(self: Task, email: str) -> None:
    """The same with Celery's own limit."""
    client().v1.customers.create({"email": email}, {"idempotency_key": self.request.id})


@app.task(bind=True)
def bare(self: Task, email: str) -> None:
    """Create a customer, and that is all."""
    client().v1.customers.create({"email": email}, {"idempotency_key": self.request.id})


def start(on: Stage) -> None:
    """A worker that runs these tasks, once it is ready."""
    command = [sys.executable, "-m", "celery", "-A", "benchmarks.peers", "-b", on.redis_url, "worker"]
    settings = {"STRIPE_API_KEY": STRIPE_API_KEY, "STRIPE_API_BASE": on.stripe.url}
    on.start_celery([[*command, "-P", "threads", "-c", str(THREADS), "-l", "INFO"]], settings)


def publish(redis_url: str, task: str, count: int) -> None:
    """So many messages for one of these tasks."""
    with app.connection_for_write(redis_url) as connection:
        producer = connection.Producer()
        for number in range(count):
            app.send_task(task, (f"user-{number}@example.com",), producer=producer)
