"""What one would write without customer-jobs, for comparison: acknowledged late, otherwise with Celery's defaults."""

from __future__ import annotations

import os

import stripe
from celery import Celery

app = Celery("plain", broker=os.environ["REDIS_URL"])
app.conf.task_acks_late = True
app.conf.broker_connection_retry_on_startup = True  # Its default, which Celery wants to be spelled out.


@app.task(name="create")  # type: ignore[untyped-decorator]
def create(number: int) -> None:
    """Make a customer under a key of its own."""
    client = stripe.StripeClient(
        os.environ["STRIPE_API_KEY"], base_addresses={"api": os.environ["STRIPE_API_BASE"]}, max_network_retries=0
    )
    client.v1.customers.create({"email": f"{number}@example.com"}, {"idempotency_key": f"plain-{number}"})
