"""Answers and their headers; who gets which is decided elsewhere."""

import json
from dataclasses import dataclass, field

from customer_jobs.sandbox.customers import Json
from customer_jobs.sandbox.faults import Wire
from customer_jobs.sandbox.idempotency import Saved
from customer_jobs.sandbox.journal import Request
from customer_jobs.sandbox.refusals import Refusal
from customer_jobs.sandbox.store import API_VERSION


@dataclass(slots=True)
class Answer:
    """What is sent back, and what the wire does to it."""

    status: int
    body: bytes
    content_type: str = "application/json"
    error_code: str | None = None
    rate_limited_reason: str | None = None
    should_retry: bool | None = None
    original_request: str | None = None  #: the request whose saved answer this is
    wire: Wire = ""
    wire_seconds: float = 0.0
    headers: list[tuple[str, str]] = field(default_factory=list)


def dump(item: Json) -> bytes:
    return json.dumps(item).encode()


def refused(refusal: Refusal, request: Request) -> Answer:
    return Answer(
        refusal.status,
        refusal.body(request.request_id, livemode=request.mode == "live"),
        error_code=refusal.code,
        rate_limited_reason=refusal.rate_limited_reason,
        should_retry=refusal.should_retry,
    )


def replayed(saved: Saved) -> Answer:
    """The saved answer; Stripe advises against retrying a saved error, it would only come back again."""
    should_retry = False if saved.status >= 400 else None
    return Answer(saved.status, saved.body, should_retry=should_retry, original_request=saved.request_id)


def answer_headers(request: Request, answer: Answer) -> list[tuple[str, str]]:
    """Stripe's headers; the empty page of a proxy has none of them."""
    headers = [("Content-Type", answer.content_type)]
    if answer.content_type != "application/json":
        return headers
    headers += [("Request-Id", request.request_id), ("Stripe-Version", request.stripe_version or API_VERSION)]
    optional = {
        "Idempotency-Key": request.idempotency_key,
        "Original-Request": answer.original_request or (request.request_id if request.idempotency_key else None),
        "Idempotent-Replayed": "true" if answer.original_request else None,
        "Stripe-Account": request.stripe_account,
        "Stripe-Rate-Limited-Reason": answer.rate_limited_reason,
        "Stripe-Should-Retry": None if answer.should_retry is None else str(answer.should_retry).lower(),
    }
    return headers + [(name, value) for name, value in optional.items() if value]
