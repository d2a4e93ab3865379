"""What went wrong with a job, as its `error` column says it, and the one sentence on what to do about it; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

#: Codes of ours, beside Stripe's.
OUTCOME_UNKNOWN = "outcome_unknown"
RATE_LIMITED_TOO_LONG = "rate_limited_too_long"
INVALID_PAYLOAD = "invalid_payload"
UNKNOWN_CREDENTIAL = "unknown_credential"
WORKER_DIED = "worker_died"
NO_ANSWER = "no_answer"
TOO_LATE = "too_late"
UNREADABLE_ANSWER = "unreadable_answer"
STILL_RUNNING = "still_running"
CANCELLED = "cancelled"


@dataclass(frozen=True)
class Problem:
    """Why an attempt did not succeed: Stripe's own words where it answered, ours where it did not."""

    type: str
    code: str | None = None
    message: str | None = None
    decline_code: str | None = None
    param: str | None = None
    doc_url: str | None = None
    request_id: str | None = None
    http_status: int | None = None

    def envelope(self, *, credential: str, transient: bool, final: bool = True) -> dict[str, Any]:
        """The `error` column: the problem, whether another attempt may help, and the remedy."""
        remedy = _remedy(self, credential) if final else "nothing to do: the job tries again by itself"
        return asdict(self) | {"transient": transient, "remedy": remedy}


def problem_of(error: Mapping[str, Any], *, http_status: int | None, request_id: str | None) -> Problem:
    """The Problem of Stripe's `error` object.

    Source: https://docs.stripe.com/api/errors
    """

    def text(name: str) -> str | None:
        value = error.get(name)
        return value if isinstance(value, str) else None

    return Problem(
        type=text("type") or "api_error",
        code=text("code"),
        message=text("message"),
        decline_code=text("decline_code"),
        param=text("param"),
        doc_url=text("doc_url"),
        request_id=request_id,
        http_status=http_status,
    )


def _remedy(problem: Problem, credential: str) -> str:
    if problem.code in _BY_CODE:
        return _BY_CODE[problem.code].format(credential=repr(credential))
    match problem.http_status:
        case 401:
            return (
                f"give credential {credential!r} a valid key (dashboard.stripe.com/apikeys), restart the workers, "
                "then retry the job"
            )
        case 403:
            return (
                f"give the key of credential {credential!r} the permission that the message names, "
                "or use a key that has it, then retry the job"
            )
        case 404 if "exists in live mode" in (problem.message or ""):
            return f"the customer lives in live mode: use a credential with a live key instead of {credential!r}"
        case 404 if "exists in test mode" in (problem.message or ""):
            return f"the customer lives in test mode: use a credential with a test key instead of {credential!r}"
        case 404:
            return (
                f"check the customer id, and that credential {credential!r} and stripe_account are those it belongs to"
            )
        case 402:
            return "ask the customer for another means of payment, or leave the payment source out of the body"
        case 400 if problem.param:
            return f"correct {problem.param} and enqueue the job again"
        case 400:
            return "correct the request as the message says and enqueue the job again"
        case None:
            return "see that the workers reach Stripe (network, proxy, status.stripe.com), then retry the job"
        case _:
            return "see status.stripe.com, and the request_id in Stripe's dashboard, then retry the job"


_BY_CODE = {
    OUTCOME_UNKNOWN: (
        "look in Stripe's dashboard for a customer whose metadata customer_jobs_id is this job's id; "
        "retrying the job looks for it again before anything is created"
    ),
    RATE_LIMITED_TOO_LONG: "lower RATE_LIMIT_CREATE or RATE_LIMIT_FETCH, or ask Stripe for more, then retry the job",
    INVALID_PAYLOAD: "correct the named field and enqueue the job again; nothing was sent to Stripe",
    UNKNOWN_CREDENTIAL: (
        "set STRIPE_API_KEY_<NAME> for credential {credential}, restart the workers, then retry the job"
    ),
    # Stripe's own; a 403, but not about the key.
    "account_invalid": (
        "check stripe_account: it must be connected to the account of credential {credential}, and still be; "
        "then retry the job"
    ),
    TOO_LATE: "see what keeps the workers from running (sleep, a paused machine, a jumping clock), then retry the job",
    WORKER_DIED: "see the workers' logs and memory at the times of its attempts, then retry the job",
}
