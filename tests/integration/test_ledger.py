"""What stays of calls to Stripe: the ledger of every one, the answer whole, the error with its remedy, the copy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from sqlalchemy import Engine, insert
from sqlalchemy.exc import IntegrityError

from customer_jobs.database import writing
from customer_jobs.events import completion_event
from customer_jobs.problems import OUTCOME_UNKNOWN
from customer_jobs.producer import CustomerJobs
from customer_jobs.request import Request
from customer_jobs.sandbox import FAULTS, Sandbox
from customer_jobs.schema import attempts, customers, events, jobs
from customer_jobs.vocabulary import State
from tests.builders import (
    EMAIL,
    Worker,
    add_fetch,
    add_job,
    change,
    dispatched,
    fetch,
    job_row,
    later,
    ledger,
    rows,
)
from worker.answers import Answer
from worker.gateway import Gateway
from worker.retry import RetryPolicy

#: But for those that take their time, and those that pause the key.
QUICK = sorted(set(FAULTS) - {"hang", "hang_after", "drip", "slow", "401", "401_expired", "403"})
#: Those whose answer is not Stripe's but a page of something in between, without Stripe's headers.
NAMELESS = {"html", "html_429", "html_502", "html_502_after", "reset", "reset_after", "close", "close_after"}


def settle(worker: Worker, minutes: int = 8) -> None:
    """Work until every job is final."""
    for _ in range(minutes):
        worker.work()
        if all(row["finished_at"] is not None for row in rows(worker.engine, jobs)):
            return
        later(worker.engine, 61)
    raise AssertionError("some jobs do not end")


def test_every_call_is_in_the_ledger_by_its_request_id(engine: Engine, worker: Worker, sandbox: Sandbox) -> None:
    for fault in QUICK:
        body = {"email": f"{fault}@example.com", "metadata": {"sandbox": f"{fault}, {fault}"}}
        add_job(engine, payload={"body": body}, max_attempts=3)
        customer_id = f"cus_sandbox_{fault}__id1"
        add_fetch(engine, payload={"customer_id": customer_id, "expand": []}, customer_id=customer_id, max_attempts=3)
    settle(worker)

    calls = rows(engine, attempts)
    seen = {request.request_id: request for request in sandbox.requests}
    named = {request_id for request_id, request in seen.items() if request.fault not in NAMELESS}
    told = [call["request_id"] for call in calls if call["request_id"]]
    looks = [request for request in sandbox.requests if request.endpoint == "list"]
    assert len(told) == len(set(told))
    assert set(told) <= named
    # A look asks in two places; its row names the last.
    assert {seen[each].endpoint for each in named - set(told)} <= {"list"}
    assert len(calls) <= len(seen) <= len(calls) + len(looks)
    for call in calls:
        if call["request_id"] and seen[call["request_id"]].status:
            assert call["http_status"] == seen[call["request_id"]].status
            assert call["rate_limited_reason"] == seen[call["request_id"]].rate_limited_reason
            assert call["replayed"] == seen[call["request_id"]].replayed
    assert all(call["finished_at"] and call["verdict"] and call["worker"] for call in calls)
    assert all(call["duration_ms"] is not None for call in calls)
    sends = [call["idempotency_key"] for call in calls if call["idempotency_key"]]
    assert sorted(sends) == sorted(str(each.idempotency_key) for each in sandbox.requests if each.idempotency_key)


def test_the_answer_is_kept_whole(engine: Engine, worker: Worker, sandbox: Sandbox) -> None:
    body = {
        "name": "Zoë 🎉 \u2028",
        "address": {"line1": 'a "b" \\', "city": "Köln"},
        "preferred_locales": ["de", "en"],
        "balance": -5,
        "metadata": {"empty": "no", "ключ": "значение"},
        "invoice_settings": {"custom_fields": [{"name": "VAT", "value": "DE1"}]},
    }
    job_id = add_job(engine, payload={"body": body | {"email": EMAIL}})
    worker.work()
    (customer,) = sandbox.customers()
    fetched = add_fetch(
        engine, payload={"customer_id": customer["id"], "expand": ["subscriptions"]}, customer_id=customer["id"]
    )
    worker.work()

    result = job_row(engine, job_id)["result"]
    assert list(result) == ["customer_id", "customer_email", "response", "headers"]
    assert (result["customer_id"], result["customer_email"]) == (customer["id"], EMAIL)
    assert json.dumps(result["response"]) == json.dumps(customer)
    request = sandbox.requests[0]
    assert result["headers"]["Request-Id"] == request.request_id
    assert result["headers"]["Idempotency-Key"] == f"customer-jobs-{job_id}"
    assert {"Date", "Content-Type", "Content-Length", "Stripe-Version", "Original-Request"} <= result["headers"].keys()
    again = job_row(engine, fetched)["result"]["response"]
    assert again["subscriptions"]["data"] == []
    assert again | {"subscriptions": None} == customer | {"subscriptions": None}


#: Fault, whether it is a fetch, how often: what the error says, and a part of its remedy.
REFUSALS: list[tuple[str, str, Mapping[str, Any], str]] = [
    ("create", "400", {"http_status": 400, "code": "parameter_invalid_empty"}, "enqueue the job again"),
    ("create", "401", {"http_status": 401, "code": None}, "credential 'default' a valid key"),
    ("create", "401_expired", {"http_status": 401, "code": "api_key_expired"}, "credential 'default' a valid key"),
    ("create", "402", {"http_status": 402, "code": "card_declined"}, "means of payment"),
    ("create", "403", {"http_status": 403, "code": None}, "permission"),
    ("create", "403_account", {"http_status": 403, "code": "account_invalid"}, "check stripe_account"),
    ("fetch", "404", {"http_status": 404, "code": "resource_missing"}, "check the customer id"),
    ("fetch", "404_other_mode", {"http_status": 404, "code": "resource_missing"}, "live key instead of 'default'"),
    ("create", "500", {"http_status": 500, "code": OUTCOME_UNKNOWN}, "customer_jobs_id"),
    ("fetch", "500", {"http_status": 500, "code": None}, "status.stripe.com"),
    ("fetch", "reset", {"http_status": None, "code": "no_answer"}, "network"),
    ("fetch", "garbage", {"http_status": 200, "code": "unreadable_answer"}, "status.stripe.com"),
]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("kind", "fault", "members", "says"), REFUSALS, ids=str)
def test_a_failure_says_what_stripe_said_and_what_to_do(
    engine: Engine, worker: Worker, sandbox: Sandbox, kind: str, fault: str, members: Mapping[str, Any], says: str
) -> None:
    if kind == "create":
        job_id = add_job(engine, payload={"body": {"metadata": {"sandbox": fault}}}, max_attempts=1)
    else:
        customer_id = f"cus_sandbox_{fault}"
        job_id = add_fetch(
            engine, payload={"customer_id": customer_id, "expand": []}, customer_id=customer_id, max_attempts=1
        )
    settle(worker)

    error = job_row(engine, job_id)["error"]
    assert {name: error[name] for name in members} == members
    assert says in error["remedy"]
    if fault not in NAMELESS:
        assert error["request_id"] == sandbox.requests[0].request_id


def test_a_bad_row_says_so_without_a_call(engine: Engine, worker: Worker, sandbox: Sandbox) -> None:
    job_id = add_job(engine, payload={"body": {"email": EMAIL, "api_key": "x"}})
    worker.work()

    error = job_row(engine, job_id)["error"]
    assert (error["code"], error["param"], error["transient"]) == ("invalid_payload", "api_key", False)
    assert "nothing was sent to Stripe" in error["remedy"]
    assert sandbox.requests == []


def test_an_older_answer_never_overwrites_a_newer_one(engine: Engine, sandbox: Sandbox) -> None:
    one, other = Worker(engine, sandbox), Worker(engine, sandbox)
    customer, _ = sandbox._store.create("acct_shop", "test", {"email": EMAIL, "name": "old"}, {})
    payload = {"customer_id": customer["id"], "expand": []}
    first, second = (add_fetch(engine, payload=payload, customer_id=customer["id"]) for _ in range(2))

    def answered_while_another_asks(stripe: Gateway, request: Request) -> Answer:
        answer = fetch(stripe, request)
        later(engine, 5, first)
        sandbox.update_customer(customer["id"], name="new")
        other.dispatch_and_attempt(second)
        return answer

    one.runner.attempt(dispatched(engine, first), answered_while_another_asks, RetryPolicy(), worker="w1")

    assert [job_row(engine, each)["result"]["response"]["name"] for each in (first, second)] == ["old", "new"]
    (copy,) = rows(engine, customers)
    assert (copy["name"], copy["data"]["name"]) == ("new", "new")


def test_a_deletion_is_a_flag_and_an_older_answer_does_not_undo_it(
    engine: Engine, worker: Worker, sandbox: Sandbox
) -> None:
    made = add_job(engine, external_id="user-1")
    worker.work()
    customer_id = job_row(engine, made)["customer_id"]
    payload = {"customer_id": customer_id, "expand": []}
    slow, quick = (add_fetch(engine, payload=payload, customer_id=customer_id) for _ in range(2))

    def answered_before_the_deletion(stripe: Gateway, request: Request) -> Answer:
        answer = fetch(stripe, request)
        later(engine, 5, slow)
        sandbox.delete_customer(customer_id)
        worker.dispatch_and_attempt(quick)
        return answer

    worker.runner.attempt(dispatched(engine, slow), answered_before_the_deletion, RetryPolicy(), worker="w1")

    assert [job_row(engine, each)["outcome"] for each in (slow, quick)] == ["found", "deleted"]
    copy = CustomerJobs(engine).customer(external_id="user-1")
    assert copy is not None
    assert (copy.deleted, copy.email) == (True, EMAIL)


def test_the_copy_is_written_with_the_result_or_not_at_all(engine: Engine, worker: Worker) -> None:
    job_id = add_job(engine)
    told_already = completion_event(job_row(engine, job_id), State.CANCELLED)
    with writing(engine) as transaction:
        transaction.change(insert(events).values(told_already))

    # A job has one completion event: the table refuses the second, and with it all that is written beside it.
    with pytest.raises(IntegrityError):
        worker.dispatch_and_attempt(job_id)

    assert rows(engine, customers) == []
    assert job_row(engine, job_id)["result"] is None
    assert ledger(engine, job_id)[0]["verdict"] is None


def test_a_create_is_the_same_from_the_first_send_to_the_last(engine: Engine, worker: Worker, sandbox: Sandbox) -> None:
    job_id = add_job(engine, payload={"body": {"email": EMAIL, "name": "Jenny", "metadata": {"sandbox": "500_after"}}})
    worker.dispatch_and_attempt(job_id)
    # Days of ours: another process, whose code would make other parameters of a row that somebody has changed.
    change(engine, job_id, payload={"body": {"email": "other@example.com"}}, external_id="user-9")
    later(engine, 22 * 3600, job_id)
    elsewhere = Worker(engine, sandbox)
    elsewhere.dispatch_and_attempt(job_id)

    row = job_row(engine, job_id)
    first, *others = [request for request in sandbox.requests if request.method == "POST"]
    assert (row["outcome"], row["customer_id"]) == ("replayed", sandbox.customers()[0]["id"])
    assert {request.idempotency_key for request in (first, *others)} == {f"customer-jobs-{job_id}"}
    assert all(request.params == first.params for request in others)
    assert others
    assert [each["idempotency_key"] for each in ledger(engine, job_id)] == [first.idempotency_key] * (1 + len(others))


def test_the_account_of_the_first_send_is_remembered(engine: Engine, sandbox: Sandbox) -> None:
    worker = Worker(engine, sandbox)
    worker.gateway.keys()  # As a worker does when it starts.
    job_id = add_job(engine, payload={"body": {"metadata": {"sandbox": "500_after"}}})
    worker.dispatch_and_attempt(job_id)
    sent = job_row(engine, job_id)

    rotated = Worker(engine, sandbox, stripe_api_keys={"default": "sk_test_shop_rotated"})
    rotated.gateway.keys()
    rotated.dispatch_and_attempt(job_id)

    assert sent["sent_to"] == "acct_shop"
    assert sent["first_sent_at"] is not None
    row = job_row(engine, job_id)
    assert (row["outcome"], row["first_sent_at"]) == ("replayed", sent["first_sent_at"])
    assert len(sandbox.customers()) == 1


def test_a_name_that_stands_for_another_account_since_makes_no_call(engine: Engine, sandbox: Sandbox) -> None:
    worker = Worker(engine, sandbox)
    worker.gateway.keys()
    job_id = add_job(engine, payload={"body": {"metadata": {"sandbox": "500_after"}}}, external_id="user-1")
    worker.dispatch_and_attempt(job_id)

    swapped = Worker(engine, sandbox, stripe_api_keys={"default": "sk_test_other_1"})
    swapped.gateway.keys()
    swapped.dispatch_and_attempt(job_id)

    row = job_row(engine, job_id)
    calls = [request for request in sandbox.requests if request.endpoint != "account"]
    assert (row["state"], row["error"]["code"], len(calls)) == ("failed", OUTCOME_UNKNOWN, 1)
    assert row["first_sent_at"] is not None
    back = Worker(engine, sandbox)
    back.gateway.keys()
    retried = CustomerJobs(engine).retry(job_id).id
    back.work()
    assert (job_row(engine, retried)["outcome"], len(sandbox.customers())) == ("adopted", 1)


def test_what_was_certainly_not_executed_was_never_sent(engine: Engine, worker: Worker) -> None:
    job_id = add_job(engine, payload={"body": {"metadata": {"sandbox": "429, 500_after, 424"}}})

    seen = []
    for _ in range(3):
        worker.dispatch_and_attempt(job_id)
        seen.append(job_row(engine, job_id)["first_sent_at"])

    assert seen[0] is None
    assert seen[1] == seen[2] is not None
    assert [each["ambiguous"] for each in ledger(engine, job_id)] == [False, True, False]
