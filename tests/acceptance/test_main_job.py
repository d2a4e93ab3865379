"""One job of each kind goes the whole way: table, dispatcher, Celery, Stripe, result, ledger, outbox, stream."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import pytest

from customer_jobs import Job
from tests.acceptance.stack import Stack, email, unique


def created_customer(stack: Stack) -> str:
    """The id of a customer that Stripe has."""
    job = stack.wait_for_end(stack.jobs.create_customer({"email": email()}))
    assert job.customer_id is not None
    return job.customer_id


def test_a_create_ends_with_its_result_and_its_ledger(stack: Stack) -> None:
    address, mine = email(), unique("user")

    job = stack.jobs.create_customer({"email": address, "name": "Jenny Rosen"}, external_id=mine)
    ended = stack.wait_for_end(job)

    (at_stripe,) = stack.customers_of(job)
    assert (ended.state, ended.outcome, ended.attempt, ended.error) == ("succeeded", "created", 1, None)
    assert (ended.customer_id, ended.livemode) == (at_stripe["id"], False)
    assert ended.result is not None
    assert (ended.result["customer_id"], ended.result["customer_email"]) == (at_stripe["id"], address)
    assert ended.result["response"] == at_stripe
    (request,) = stack.requests_of(job)
    assert ended.result["headers"]["Request-Id"] == request.request_id
    (attempt,) = ended.attempts
    assert (attempt.number, attempt.verdict, attempt.ambiguous, attempt.replayed) == (1, "succeeded", False, False)
    assert (attempt.http_status, attempt.request_id) == (200, request.request_id)
    assert attempt.idempotency_key == f"customer-jobs-{job.id}"
    assert attempt.worker == "one@test"
    assert attempt.duration_ms is not None
    assert attempt.duration_ms > 0
    assert ended.started_at is not None
    assert ended.finished_at is not None
    assert ended.created_at <= ended.started_at <= ended.finished_at


def test_a_create_sends_one_request_with_our_key_and_metadata(stack: Stack) -> None:
    address, mine = email(), unique("user")

    job = stack.jobs.create_customer({"email": address, "metadata": {"plan": "pro"}}, external_id=mine)
    stack.wait_for_end(job)

    (request,) = stack.requests_of(job)
    assert (request.method, request.path, request.status) == ("POST", "/v1/customers", 200)
    assert request.idempotency_key == f"customer-jobs-{job.id}"
    assert request.params == {
        "email": address,
        "metadata": {"plan": "pro", "customer_jobs_id": job.id, "external_id": mine},
    }


def test_a_create_is_told_on_the_stream_as_a_cloud_event(stack: Stack) -> None:
    mine, context = unique("user"), {"tenant": 7, "trace": ["a", "b"]}

    job = stack.jobs.create_customer({"email": email()}, external_id=mine, context=context)
    entry = stack.consumer.entry_about(job.id)

    ended = stack.wait_for_end(job)
    event = entry["event"]
    assert (entry["type"], entry["subject"]) == ("customer_jobs.customer.create.succeeded", job.id)
    (row,) = stack.events_of(job)
    assert datetime.fromisoformat(event.pop("time")).astimezone(UTC) == row["created_at"]
    assert event == {
        "specversion": "1.0",
        "id": row["id"],
        "source": "/customer-jobs/default",
        "type": "customer_jobs.customer.create.succeeded",
        "subject": job.id,
        "datacontenttype": "application/json",
        "data": {
            "job_id": job.id,
            "kind": "customer.create",
            "state": "succeeded",
            "outcome": "created",
            "credential": "default",
            "stripe_account": None,
            "livemode": False,
            "customer_id": ended.customer_id,
            "external_id": mine,
            "context": context,
            "attempt": 1,
            "error": None,
        },
    }


def test_a_created_customer_is_copied(stack: Stack) -> None:
    address, mine = email(), unique("user")

    job = stack.wait_for_end(stack.jobs.create_customer({"email": address, "name": "Jenny Rosen"}, external_id=mine))

    copy = stack.jobs.customer(external_id=mine)
    (at_stripe,) = stack.customers_of(job)
    assert copy is not None
    assert (copy.id, copy.email, copy.name, copy.external_id) == (job.customer_id, address, "Jenny Rosen", mine)
    assert (copy.deleted, copy.livemode, copy.data) == (False, False, at_stripe)
    assert stack.jobs.customer(job.customer_id) == copy


def test_a_create_for_a_connected_account_is_made_there(stack: Stack) -> None:
    job = stack.wait_for_end(stack.jobs.create_customer({"email": email()}, stripe_account="acct_connected1"))

    (request,) = stack.requests_of(job)
    assert (request.stripe_account, request.account) == ("acct_connected1", "acct_connected1")
    assert stack.jobs.customer(job.customer_id, stripe_account="acct_connected1") is not None
    assert stack.consumer.event_about(job.id)["data"]["stripe_account"] == "acct_connected1"


def test_a_fetch_ends_with_what_stripe_has(stack: Stack) -> None:
    customer_id = created_customer(stack)
    stack.sandbox.update_customer(customer_id, name="Jenny Smith", email="smith@example.com")

    job = stack.jobs.fetch_customer(customer_id)
    ended = stack.wait_for_end(job)

    (request,) = stack.requests_of(job)
    assert (request.method, request.path, request.params) == ("GET", f"/v1/customers/{customer_id}", {})
    assert request.idempotency_key is None
    assert (ended.state, ended.outcome, ended.customer_id) == ("succeeded", "found", customer_id)
    assert ended.result is not None
    assert (ended.result["customer_id"], ended.result["customer_email"]) == (customer_id, "smith@example.com")
    assert ended.result["response"]["name"] == "Jenny Smith"
    assert ended.result["headers"]["Request-Id"] == request.request_id
    (attempt,) = ended.attempts
    assert (attempt.verdict, attempt.http_status, attempt.request_id) == ("succeeded", 200, request.request_id)
    assert attempt.idempotency_key is None
    event = stack.consumer.event_about(job.id)
    assert event["type"] == "customer_jobs.customer.fetch.succeeded"
    assert (event["data"]["outcome"], event["data"]["customer_id"]) == ("found", customer_id)


def test_a_fetch_brings_the_copy_up_to_date(stack: Stack) -> None:
    customer_id = created_customer(stack)
    stack.sandbox.update_customer(customer_id, name="Jenny Smith")

    stack.wait_for_end(stack.jobs.fetch_customer(customer_id))

    copy = stack.jobs.customer(customer_id)
    assert copy is not None
    assert copy.name == "Jenny Smith"


def test_a_deleted_customer_is_fetched_as_deleted(stack: Stack) -> None:
    customer_id = created_customer(stack)
    stack.sandbox.delete_customer(customer_id)

    job = stack.wait_for_end(stack.jobs.fetch_customer(customer_id))

    assert (job.state, job.outcome, job.customer_id) == ("succeeded", "deleted", customer_id)
    assert stack.consumer.event_about(job.id)["data"]["outcome"] == "deleted"
    copy = stack.jobs.customer(customer_id)
    assert copy is not None
    assert copy.deleted


def test_plain_sql_enqueues(stack: Stack) -> None:
    address = email()
    statement = "INSERT INTO {jobs} (kind, payload) VALUES ('customer.create', :payload) RETURNING id"

    (job_id,) = stack.row(statement, payload=f'{{"body": {{"email": "{address}"}}}}')

    job = stack.jobs.wait(str(uuid.UUID(str(job_id))), 20)
    (request,) = stack.requests_of(job)
    assert (job.state, job.outcome) == ("succeeded", "created")
    assert request.params == {"email": address, "metadata": {"customer_jobs_id": job.id}}
    assert stack.consumer.event_about(job.id)["data"]["customer_id"] == job.customer_id


def test_plain_sql_that_makes_no_sense_fails_clearly_and_the_rest_goes_on(stack: Stack) -> None:
    statement = "INSERT INTO {jobs} (kind, payload) VALUES (:kind, :payload) RETURNING id"

    (unknown_kind,) = stack.row(statement, kind="customer.invent", payload="{}")
    (no_body,) = stack.row(statement, kind="customer.create", payload='{"customer_id": "cus_1"}')
    good = stack.wait_for_end(stack.jobs.create_customer({"email": email()}))

    assert good.state == "succeeded"
    for job_id in (unknown_kind, no_body):
        job = stack.jobs.wait(str(uuid.UUID(str(job_id))), 20)
        assert job.state == "failed"
        assert job.error is not None
        assert job.error["code"] == "invalid_payload"
        assert stack.consumer.event_about(job.id)["data"]["error"]["code"] == "invalid_payload"
        assert stack.requests_of(job) == []


def test_a_rolled_back_enqueue_asks_nothing_of_stripe(stack: Stack) -> None:
    address = email()

    with stack.engine.connect() as connection:
        rolled_back = stack.jobs.create_customer({"email": address}, session=connection)
        connection.rollback()
    # Jobs leave in order: when the later one has ended, the earlier one would have been sent.
    stack.wait_for_end(stack.jobs.create_customer({"email": email()}))

    assert stack.requests_of(rolled_back) == []
    assert all(request.params.get("email") != address for request in stack.sandbox.requests)
    assert stack.jobs.get(rolled_back.id) is None
    assert stack.consumer.entries_about(rolled_back.id) == []


def test_an_enqueue_that_is_not_committed_yet_waits(stack: Stack) -> None:
    if stack.engine.dialect.name == "sqlite":
        pytest.skip("SQLite's writers take turns: nobody else commits meanwhile")
    with stack.engine.connect() as connection:
        job = stack.jobs.create_customer({"email": email()}, session=connection)
        stack.wait_for_end(stack.jobs.create_customer({"email": email()}))

        assert stack.requests_of(job) == []
        connection.commit()

    assert stack.wait_for_end(job).state == "succeeded"


def test_equal_external_ids_make_one_customer(stack: Stack) -> None:
    body, mine = {"email": email()}, unique("user")

    jobs: list[Job] = [stack.jobs.create_customer(body, external_id=mine) for _ in range(3)]

    assert len({job.id for job in jobs}) == 1
    stack.wait_for_end(jobs[0])
    assert len(stack.requests_of(jobs[0])) == 1
