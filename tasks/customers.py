"""The tasks: each shows the call it makes to Stripe and how it is retried. Claiming and recording are the runner's."""

from __future__ import annotations

from celery import Task

from customer_jobs.vocabulary import Kind
from worker.answers import Answer
from worker.app import JobFailed, app, attempt
from worker.gateway import Gateway
from worker.request import Request
from worker.retry import CREATE_WINDOW, RetryPolicy

#: Sent again under the same idempotency key, and only while Stripe is sure to remember it.
CREATE_RETRIES = RetryPolicy(window=CREATE_WINDOW)
#: Reading changes nothing, so it may be repeated for as long as there are attempts.
FETCH_RETRIES = RetryPolicy()


@app.task(bind=True, name=Kind.CUSTOMER_CREATE.value, throws=(JobFailed,))
def create_customer(task: Task, job_id: str) -> str:
    """One attempt to create the customer of a job."""

    def call(stripe: Gateway, request: Request) -> Answer:
        return stripe.create_customer(
            request.params,
            credential=request.credential,
            stripe_account=request.stripe_account,
            idempotency_key=request.idempotency_key,
        )

    return attempt(task, job_id, call, CREATE_RETRIES)


@app.task(bind=True, name=Kind.CUSTOMER_FETCH.value, throws=(JobFailed,))
def fetch_customer(task: Task, job_id: str) -> str:
    """One attempt to fetch the customer of a job."""

    def call(stripe: Gateway, request: Request) -> Answer:
        return stripe.fetch_customer(
            request.params["customer_id"],
            expand=request.params["expand"],
            credential=request.credential,
            stripe_account=request.stripe_account,
        )

    return attempt(task, job_id, call, FETCH_RETRIES)
