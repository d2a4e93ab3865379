"""What Stripe refuses or loses: transient failures end well with one customer, permanent ones with a remedy."""

from __future__ import annotations

import pytest

from tests.acceptance.stack import Stack, email, unique


def test_an_answer_429_is_tried_again_and_uses_up_no_attempt(stack: Stack) -> None:
    job = stack.jobs.create_customer({"email": email(), "metadata": {"sandbox": "429x2"}})
    ended = stack.wait_for_end(job)

    assert (ended.state, ended.outcome, ended.attempt) == ("succeeded", "created", 1)
    assert [each.verdict for each in ended.attempts] == ["rate_limited", "rate_limited", "succeeded"]
    assert [each.http_status for each in ended.attempts] == [429, 429, 200]
    assert [each.rate_limited_reason for each in ended.attempts] == ["endpoint-rate", "endpoint-rate", None]
    assert not any(each.ambiguous for each in ended.attempts)
    assert [request.status for request in stack.requests_of(job)] == [429, 429, 200]
    assert len(stack.customers_of(job)) == 1
    assert len(stack.events_of(job)) == 1


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [("500", "created"), ("500_after", "replayed"), ("reset", "created"), ("reset_after", "replayed")],
)
def test_a_create_without_a_clear_answer_is_sent_again_and_makes_one_customer(
    stack: Stack, fault: str, outcome: str
) -> None:
    job = stack.jobs.create_customer({"email": email(), "metadata": {"sandbox": fault}})
    ended = stack.wait_for_end(job)

    first, second = ended.attempts
    assert (ended.state, ended.outcome, ended.attempt) == ("succeeded", outcome, 2)
    assert (first.verdict, first.ambiguous) == ("retry", True)
    assert (second.verdict, second.replayed) == ("succeeded", outcome == "replayed")
    (customer,) = stack.customers_of(job)
    assert ended.customer_id == customer["id"]
    once, again = stack.requests_of(job)
    assert once.params == again.params
    assert stack.consumer.event_about(job.id)["data"]["outcome"] == outcome
    assert len(stack.events_of(job)) == 1


def test_a_fetch_is_tried_again_after_a_500(stack: Stack) -> None:
    job = stack.wait_for_end(stack.jobs.fetch_customer(f"cus_sandbox_500__id{unique('x')[2:]}"))

    assert (job.state, job.outcome, job.attempt) == ("succeeded", "found", 2)
    assert [each.verdict for each in job.attempts] == ["retry", "succeeded"]
    assert [each.http_status for each in job.attempts] == [500, 200]


def test_a_customer_that_does_not_exist_fails_the_fetch_with_a_remedy(stack: Stack) -> None:
    job = stack.jobs.fetch_customer(unique("cus_missing").replace("-", ""))
    ended = stack.wait_for_end(job)

    assert (ended.state, ended.outcome, ended.attempt) == ("failed", None, 1)
    (attempt,) = ended.attempts
    (request,) = stack.requests_of(job)
    assert (attempt.verdict, attempt.http_status, attempt.error_code) == ("failed", 404, "resource_missing")
    assert ended.error == {
        "type": "invalid_request_error",
        "code": "resource_missing",
        "decline_code": None,
        "param": "id",
        "message": f"No such customer: '{job.customer_id}'",
        "doc_url": "https://stripe.com/docs/error-codes/resource-missing",
        "request_id": request.request_id,
        "http_status": 404,
        "transient": False,
        "remedy": "check the customer id, and that credential 'default' and stripe_account are those it belongs to",
    }
    assert ended.result is not None
    assert (ended.result["customer_id"], ended.result["customer_email"]) == (None, None)
    assert ended.result["response"]["error"]["message"] == ended.error["message"]
    assert ended.result["headers"]["Request-Id"] == request.request_id
    event = stack.consumer.event_about(job.id)
    assert event["type"] == "customer_jobs.customer.fetch.failed"
    assert event["data"]["error"] == {
        "type": "invalid_request_error",
        "code": "resource_missing",
        "http_status": 404,
        "request_id": request.request_id,
    }


def test_a_body_that_stripe_refuses_fails_the_create_with_a_remedy(stack: Stack) -> None:
    job = stack.jobs.create_customer({"email": "not an address"})
    ended = stack.wait_for_end(job)

    assert (ended.state, ended.attempt) == ("failed", 1)
    assert ended.error is not None
    assert ended.result is not None
    assert ended.result["response"]["error"]["param"] == "email"
    assert (ended.error["http_status"], ended.error["param"], ended.error["transient"]) == (400, "email", False)
    assert ended.error["remedy"] == "correct email and enqueue the job again"
    assert len(stack.requests_of(job)) == 1
    assert stack.customers_of(job) == []
    event = stack.consumer.event_about(job.id)
    assert event["type"] == "customer_jobs.customer.create.failed"
    assert "not an address" not in str(event)


def test_after_a_failed_create_its_external_id_is_free_again(stack: Stack) -> None:
    mine = unique("user")
    failed = stack.wait_for_end(stack.jobs.create_customer({"email": "not an address"}, external_id=mine))

    job = stack.wait_for_end(stack.jobs.create_customer({"email": email()}, external_id=mine))

    assert (failed.state, job.state) == ("failed", "succeeded")


def test_a_failed_job_retried_by_hand_is_a_new_job(stack: Stack) -> None:
    customer_id = f"cus_sandbox_404__id{unique('x')[2:]}"
    failed = stack.wait_for_end(stack.jobs.fetch_customer(customer_id, context={"for": "you"}))

    retried = stack.wait_for_end(stack.jobs.retry(failed.id))

    assert (failed.state, retried.state) == ("failed", "succeeded")
    assert (retried.retry_of, retried.context) == (failed.id, {"for": "you"})
    assert stack.consumer.event_about(retried.id)["data"]["context"] == {"for": "you"}
