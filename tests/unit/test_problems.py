"""What a failed job tells a person: Stripe's own words, and one sentence on what to do."""

from __future__ import annotations

from typing import Any

import pytest

from customer_jobs.problems import (
    INVALID_PAYLOAD,
    NO_ANSWER,
    OUTCOME_UNKNOWN,
    RATE_LIMITED_TOO_LONG,
    TOO_LATE,
    UNKNOWN_CREDENTIAL,
    UNREADABLE_ANSWER,
    WORKER_DIED,
    Problem,
    problem_of,
)


def problem(**fields: Any) -> Problem:
    return Problem(**{"type": "invalid_request_error"} | fields)


def remedy(**fields: Any) -> str:
    return str(problem(**fields).envelope(credential="eu", transient=False)["remedy"])


def test_an_error_has_the_members_that_the_design_names() -> None:
    envelope = problem(code="email_invalid", param="email").envelope(credential="default", transient=False)

    assert list(envelope) == [
        "type", "code", "message", "decline_code", "param", "doc_url", "request_id", "http_status", "transient",
        "remedy",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"code": RATE_LIMITED_TOO_LONG, "http_status": 429}, "RATE_LIMIT_CREATE"),
        ({"code": "lock_timeout", "http_status": 429}, "retry the job"),
        ({"code": "idempotency_key_in_use", "http_status": 409}, "retry the job"),
        ({"http_status": 424}, "retry the job"),
        ({"type": "api_error", "http_status": 500}, "status.stripe.com"),
        ({"type": "api_error", "http_status": 502}, "status.stripe.com"),
        ({"type": "api_error", "http_status": 503}, "status.stripe.com"),
        ({"type": "api_error", "http_status": 504}, "status.stripe.com"),
        ({"code": UNREADABLE_ANSWER, "http_status": 502}, "status.stripe.com"),
        ({"code": NO_ANSWER}, "network"),
        ({"code": OUTCOME_UNKNOWN}, "customer_jobs_id"),
        ({"code": TOO_LATE}, "workers from running"),
        ({"type": "idempotency_error", "http_status": 400}, "enqueue the job again"),
        ({"http_status": 401}, "credential 'eu' a valid key"),
        ({"code": "api_key_expired", "http_status": 401}, "credential 'eu' a valid key"),
        ({"http_status": 403}, "permission"),
        ({"code": "account_invalid", "http_status": 403}, "check stripe_account"),
        ({"code": "parameter_unknown", "param": "emial", "http_status": 400}, "correct emial"),
        ({"http_status": 400}, "correct the request"),
        ({"code": "card_declined", "http_status": 402}, "means of payment"),
        ({"code": "resource_missing", "http_status": 404}, "check the customer id"),
        ({"http_status": 404, "message": "…exists in live mode, but a test mode key…"}, "a live key instead of 'eu'"),
        ({"http_status": 404, "message": "…exists in test mode, but a live mode key…"}, "a test key instead of 'eu'"),
        ({"code": INVALID_PAYLOAD}, "nothing was sent to Stripe"),
        ({"code": UNKNOWN_CREDENTIAL}, "STRIPE_API_KEY_<NAME> for credential 'eu'"),
        ({"code": WORKER_DIED}, "logs"),
    ],
    ids=str,
)
def test_every_failure_has_a_remedy(fields: dict[str, Any], says: str) -> None:
    sentence = remedy(**fields)

    assert says in sentence
    assert "\n" not in sentence
    assert not sentence.endswith(".")


def test_a_job_that_goes_on_by_itself_needs_nobody() -> None:
    envelope = problem(http_status=500).envelope(credential="eu", transient=True, final=False)

    assert envelope["transient"] is True
    assert envelope["remedy"] == "nothing to do: the job tries again by itself"


def test_stripes_own_words_are_kept() -> None:
    error = {
        "type": "card_error",
        "code": "card_declined",
        "decline_code": "generic_decline",
        "message": "Your card was declined.",
        "param": "source",
        "doc_url": "https://stripe.com/docs/error-codes/card-declined",
        "charge": "ch_1",
    }

    found = problem_of(error, http_status=402, request_id="req_1")

    assert found == Problem(
        type="card_error",
        code="card_declined",
        message="Your card was declined.",
        decline_code="generic_decline",
        param="source",
        doc_url="https://stripe.com/docs/error-codes/card-declined",
        request_id="req_1",
        http_status=402,
    )


@pytest.mark.parametrize("error", [{}, {"type": None, "code": 7, "message": {"a": 1}, "param": []}])
def test_an_error_of_another_shape_is_still_a_problem(error: dict[str, Any]) -> None:
    assert problem_of(error, http_status=500, request_id=None) == Problem("api_error", http_status=500)
