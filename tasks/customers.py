"""The tasks: the call that each makes to Stripe, and how it is retried. Claiming and recording are the runner's."""

from customer_jobs.request import Request
from customer_jobs.vocabulary import Kind
from worker.answers import Answer
from worker.app import task
from worker.gateway import Gateway
from worker.retry import BASE_SECONDS, CAP_SECONDS, CREATE_WINDOW, RetryPolicy


# Sent again under the same idempotency key, and only while Stripe is sure to remember it.
@task(Kind.CUSTOMER_CREATE, retry=RetryPolicy(BASE_SECONDS, CAP_SECONDS, window=CREATE_WINDOW))
def create_customer(stripe: Gateway, request: Request) -> Answer:
    """One attempt to create a customer."""
    return stripe.create_customer(
        request.params,
        idempotency_key=request.idempotency_key,
        credential=request.credential,
        stripe_account=request.stripe_account,
    )


# Reading changes nothing: it may be repeated for as long as there are attempts.
@task(Kind.CUSTOMER_FETCH, retry=RetryPolicy(BASE_SECONDS, CAP_SECONDS))
def fetch_customer(stripe: Gateway, request: Request) -> Answer:
    """One attempt to fetch a customer."""
    return stripe.fetch_customer(
        request.params["customer_id"],
        expand=request.params["expand"],
        credential=request.credential,
        stripe_account=request.stripe_account,
    )
