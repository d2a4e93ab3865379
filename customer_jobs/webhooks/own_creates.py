"""What Stripe's news of a customer that one of our own jobs made does to that job; it never causes a fetch."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, update

from customer_jobs import lifecycle
from customer_jobs.database import Transaction
from customer_jobs.payload import METADATA_JOB_ID
from customer_jobs.request import KEY_PREFIX
from customer_jobs.schema import is_in_flight, jobs
from customer_jobs.vocabulary import Kind, State
from customer_jobs.webhooks.event import Event

CREATED = frozenset({"customer.created", "v1.customer.created"})

log = logging.getLogger(__name__)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Ours:
    """The customer is that of one of our jobs."""

    job_id: str | None  #: The job that will now look at the customer; None: there is nothing to be found out.


def settle(transaction: Transaction, event: Event, customer_id: str, credential: str) -> Ours | None:
    """Let a job whose outcome is open look at the customer it made; None: no job of ours made it."""
    if event.type not in CREATED:
        return None
    for job_id in _named(event):
        job = lifecycle.latest_retry(transaction, job_id)
        # Another installation may share the account, or the database be older than the customer.
        if job is not None and _could_have_made(job, event, credential):
            return _settle(transaction, job, customer_id)
    return None


def _settle(transaction: Transaction, job: Row, customer_id: str) -> Ours | None:
    match job["state"]:
        case State.SUCCEEDED:
            # Metadata can be copied to another customer, which is then news.
            return Ours(None) if job["customer_id"] == customer_id else None
        case State.FAILED if job["first_sent_at"] is not None:
            return Ours(_retry(transaction, job["id"], customer_id))
        case State.FAILED | State.CANCELLED:
            return None  # It certainly made none.
        case _:
            return Ours(_suggest(transaction, job["id"], customer_id))


def _retry(transaction: Transaction, job_id: str, customer_id: str) -> str | None:
    """The new job that takes the failed one's place and looks at the customer."""
    # Read under a lock: somebody else may retry it at this moment.
    (failed,) = transaction.rows(select(*jobs.c).where(jobs.c.id == job_id).with_for_update())
    made = lifecycle.retry_by_hand(transaction, failed, candidate_customer_id=customer_id)
    if made is not None:
        log.warning("truth after all job_id=%s customer_id=%s retried_as=%s", job_id, customer_id, made["id"])
        return str(made["id"])
    latest = lifecycle.latest_retry(transaction, job_id)
    return None if latest is None else _suggest(transaction, latest["id"], customer_id)


def _suggest(transaction: Transaction, job_id: str, customer_id: str) -> str | None:
    """The job, if it is going to look at the customer now."""
    if lifecycle.suggest(transaction, job_id, customer_id):
        return job_id
    # An attempt is under way: should its end stay unknown, the look for the customer begins here.
    under_way = (jobs.c.id == job_id, is_in_flight(), jobs.c.first_sent_at.is_not(None))
    transaction.change(update(jobs).where(*under_way).values(candidate_customer_id=customer_id))
    return None


def _named(event: Event) -> Iterator[str]:
    """The jobs that may have made the customer, the surest first."""
    metadata = event.object.get("metadata")
    key = event.idempotency_key or ""
    names = [
        key.removeprefix(KEY_PREFIX) if key.startswith(KEY_PREFIX) else None,
        metadata.get(METADATA_JOB_ID) if isinstance(metadata, Mapping) else None,
    ]
    for name in names:
        try:
            yield str(uuid.UUID(name))
        except (ValueError, AttributeError, TypeError):
            continue


def _could_have_made(job: Row, event: Event, credential: str) -> bool:
    world = (job["credential"], job["stripe_account"] or None)
    return job["kind"] == Kind.CUSTOMER_CREATE and world == (credential, event.stripe_account)
