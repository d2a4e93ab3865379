"""An attempt as it passes between those who claim, call and record: values, nothing is asked of the database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from customer_jobs.problems import Problem
from customer_jobs.vocabulary import Kind, Outcome, Verdict

Row = dict[str, Any]  #: A row by the names of its columns.


@dataclass(frozen=True)
class Claim:
    """The right to record one attempt at a job: whoever else holds another token is too late."""

    job: Row  #: The row as it was read, with what the claim changed.
    lease_token: str
    number: int  #: Of the attempt, in the ledger.
    started_at: datetime  #: Of the attempt.
    key_fingerprint: str | None = None  #: Of the Stripe key that the attempt is made with.


@dataclass(frozen=True)
class Sending:
    """What an attempt is about to send."""

    params: str  #: JSON text; kept only by the first attempt.
    sent_to: str  #: Stripe account id or key fingerprint.
    idempotency_key: str | None
    may_create: bool  #: Whether Stripe could make a customer of it.
    uses_attempt: bool = True  #: Looking for a customer uses none.


@dataclass(frozen=True)
class Entry:
    """What the ledger keeps of an attempt that came to an end."""

    verdict: Verdict
    ambiguous: bool = False
    http_status: int | None = None
    error_type: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    request_id: str | None = None
    rate_limited_reason: str | None = None
    replayed: bool = False
    duration_ms: float | None = None


@dataclass(frozen=True)
class Success:
    """How a job ends well."""

    outcome: Outcome
    customer: Mapping[str, Any]  #: Stripe's whole object.
    headers: Mapping[str, str]
    livemode: bool

    def result(self) -> dict[str, Any]:
        return {
            "customer_id": self.customer.get("id"),
            "customer_email": self.customer.get("email"),
            "response": dict(self.customer),
            "headers": dict(self.headers),
        }


def refusal(response: Mapping[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
    """The `result` of a job that Stripe refused: its parsed error body, and no customer."""
    return {"customer_id": None, "customer_email": None, "response": dict(response), "headers": dict(headers)}


def success_of(
    kind: str, customer: Mapping[str, Any], *, headers: Mapping[str, str], replayed: bool, key_is_live: bool
) -> Success:
    """How a job of a kind ends when Stripe answers with this customer."""
    if kind == Kind.CUSTOMER_CREATE:
        outcome = Outcome.REPLAYED if replayed else Outcome.CREATED
    else:
        outcome = Outcome.DELETED if customer.get("deleted") is True else Outcome.FOUND
    livemode = customer.get("livemode")
    # A deleted customer's stub does not say; the key does.
    return Success(outcome, customer, headers, livemode if isinstance(livemode, bool) else key_is_live)


def entry_of(verdict: Verdict, problem: Problem) -> Entry:
    """The end of an attempt that met a problem."""
    return Entry(
        verdict,
        http_status=problem.http_status,
        error_type=problem.type,
        error_code=problem.code,
        error_message=problem.message,
        request_id=problem.request_id,
    )
