"""What a job can be answered with from the local copy, without a call to Stripe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import desc, select

from customer_jobs.database import Transaction
from customer_jobs.lifecycle import Success
from customer_jobs.schema import customers, job_account, jobs
from customer_jobs.sql import is_one_of, now
from customer_jobs.vocabulary import FINAL_STATES, Kind, Outcome

LINK_PAUSE_SECONDS = 1.0  #: Before a create looks again whether the fetch that links its external_id is done.


@dataclass(frozen=True)
class NotYet:
    """A fetch that may link the job's external_id is still to be done: creating now could make a second customer."""


def may_be_known(job: Mapping[str, Any], params: Mapping[str, Any]) -> bool:
    """Whether the copy has to be asked about a job at all."""
    if job["kind"] == Kind.CUSTOMER_FETCH:
        # A copy lacks what `expand` asks for.
        return params.get("max_age_seconds") is not None and not params["expand"]
    # Once it may have been sent, the truth about a create is at Stripe.
    return job["external_id"] is not None and job["first_sent_at"] is None


def answer_from_copy(
    transaction: Transaction, job: Mapping[str, Any], params: Mapping[str, Any], *, livemode: bool
) -> Success | NotYet | None:
    """The success of a job whose customer is known already; None: Stripe has to be asked, with these parameters."""
    if not may_be_known(job, params):
        return None
    if job["kind"] == Kind.CUSTOMER_FETCH:
        return _fresh(transaction, job, params, livemode)
    return _linked(transaction, job, livemode)


def _fresh(
    transaction: Transaction, job: Mapping[str, Any], params: Mapping[str, Any], livemode: bool
) -> Success | None:
    young = (
        customers.c.id == params["customer_id"],
        customers.c.fetched_at >= now(-float(params["max_age_seconds"])),
    )
    return _success(transaction, job, livemode, Outcome.FRESH, *young)


def _linked(transaction: Transaction, job: Mapping[str, Any], livemode: bool) -> Success | NotYet | None:
    linking = select(jobs.c.id).where(
        jobs.c.credential == job["credential"],
        job_account == str(job["stripe_account"] or ""),
        jobs.c.external_id == job["external_id"],
        is_one_of(jobs.c.kind, [Kind.CUSTOMER_FETCH]),
        jobs.c.state.not_in(FINAL_STATES),
    )
    # In this order: a fetch that ends meanwhile has written the copy by then.
    is_linking = bool(transaction.rows(linking.limit(1)))
    of_id = customers.c.external_id == job["external_id"]
    known = _success(transaction, job, livemode, Outcome.LINKED, of_id, ~customers.c.deleted)
    return known if known is not None or not is_linking else NotYet()


def _success(
    transaction: Transaction, job: Mapping[str, Any], livemode: bool, outcome: Outcome, *conditions: Any
) -> Success | None:
    rows = transaction.rows(
        select(*customers.c)
        .where(
            customers.c.credential == job["credential"],
            customers.c.stripe_account == (job["stripe_account"] or ""),
            customers.c.livemode == livemode,
            *conditions,
        )
        .order_by(desc(customers.c.fetched_at))
        .limit(1)
    )
    return Success(outcome, rows[0]["data"], headers={}, livemode=livemode) if rows else None
