"""What an event leaves behind: its id once, one fetch, the newest state; on both databases."""

from __future__ import annotations

import json
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
import stripe
from sqlalchemy import Engine, insert
from sqlalchemy.orm import Session

from customer_jobs import CustomerJobs, Job
from customer_jobs.database import open_engine, writing
from customer_jobs.errors import Unavailable
from customer_jobs.sandbox import Sandbox, sign
from customer_jobs.sandbox.webhooks import thin
from customer_jobs.schema import credentials, customers, jobs, webhook_events
from customer_jobs.sql import now
from customer_jobs.webhooks import RULES, InvalidEvent, InvalidSignature, Receipt, Rule, WebhookReceiver
from tests.builders import CUSTOMER_ID, Row, Worker, add_job, age, change, job_row, rows

SECRET = "whsec_test"


@pytest.fixture
def producer(engine: Engine) -> CustomerJobs:
    return CustomerJobs(engine)


@pytest.fixture
def receiver(producer: CustomerJobs) -> WebhookReceiver:
    return WebhookReceiver(producer, SECRET)


def event(type_: str = "customer.updated", customer_id: str = CUSTOMER_ID, **members: Any) -> Row:
    item = {"id": customer_id, "object": "customer"} if type_.startswith("customer.") else {"customer": customer_id}
    return {
        "id": f"evt_{uuid.uuid4().hex}",
        "object": "event",
        "type": type_,
        "created": int(time.time()),
        "livemode": False,
        "data": {"object": item | members.pop("item", {})},
        "request": {"id": None, "idempotency_key": None},
        **members,
    }


def created_by(job_id: Any, **members: Any) -> Row:
    """Stripe's news of the customer that a job of ours made."""
    cause = {"request": {"id": "req_1", "idempotency_key": f"customer-jobs-{job_id}"}}
    return event("customer.created", item={"metadata": {"customer_jobs_id": job_id}}, **{**cause, **members})


def send(receiver: WebhookReceiver, sent: Row, **session: Any) -> Receipt:
    body = json.dumps(sent).encode()
    return receiver.receive(body, sign(body, SECRET), **session)


def customer_at_stripe(worker: Worker, name: str) -> str:
    """The id of a customer that somebody else made."""
    key = str(uuid.uuid4())
    made = worker.gateway.create_customer(
        {"name": name}, credential="default", stripe_account=None, idempotency_key=key
    )
    assert made.body is not None
    return str(made.body["id"])


def add_credential(engine: Engine, name: str = "default", *, livemode: bool) -> None:
    with writing(engine) as transaction:
        transaction.change(insert(credentials).values(name=name, livemode=livemode, key_fingerprint="key_1"))


def test_an_event_is_stored_with_the_fetch_it_causes(engine: Engine, receiver: WebhookReceiver) -> None:
    sent = event("invoice.paid")

    receipt = send(receiver, sent)

    (stored,) = rows(engine, webhook_events)
    (fetch,) = rows(engine, jobs)
    assert receipt == Receipt(sent["id"], fetch["id"], duplicate=False)
    assert (stored["id"], stored["type"], stored["job_id"]) == (sent["id"], "invoice.paid", fetch["id"])
    assert stored["created"] == datetime.fromtimestamp(sent["created"], UTC)
    assert (fetch["kind"], fetch["customer_id"], fetch["credential"]) == ("customer.fetch", CUSTOMER_ID, "default")
    assert fetch["stripe_account"] is None


def test_the_same_event_again_is_the_same_receipt_but_for_the_word_duplicate(
    engine: Engine, receiver: WebhookReceiver
) -> None:
    sent = event()
    first = send(receiver, sent)
    change(engine, first.job_id or "", state="succeeded", outcome="found", finished_at=now())

    second = send(receiver, sent)

    assert second == Receipt(sent["id"], first.job_id, duplicate=True)
    assert len(rows(engine, jobs)) == 1


def test_an_unsigned_or_unreadable_body_leaves_nothing_behind(engine: Engine, receiver: WebhookReceiver) -> None:
    body = json.dumps(event()).encode()

    with pytest.raises(InvalidSignature):
        receiver.receive(body, sign(body, "whsec_other"))
    with pytest.raises(InvalidSignature):
        receiver.receive(body, sign(body, SECRET, int(time.time()) - 301))
    for garbled in (body[:-10], b"[" * 1_000_000, b"null"):
        with pytest.raises(InvalidEvent):
            receiver.receive(garbled, sign(garbled, SECRET))
    with pytest.raises(TypeError, match="bytes"):
        receiver.receive(body.decode(), sign(body, SECRET))  # type: ignore[arg-type]

    assert rows(engine, webhook_events) == rows(engine, jobs) == []


def test_a_session_takes_the_event_along_or_not_at_all(engine: Engine, receiver: WebhookReceiver) -> None:
    sent = event()
    with Session(engine) as session:
        lost = send(receiver, sent, session=session)
        session.rollback()
    assert rows(engine, webhook_events) == rows(engine, jobs) == []

    with Session(engine) as session, session.begin():
        kept = send(receiver, sent, session=session)
    with engine.begin() as connection:
        again = send(receiver, sent, session=connection)

    assert lost.job_id != kept.job_id == again.job_id
    assert (lost.duplicate, kept.duplicate, again.duplicate) == (False, False, True)
    assert [row["id"] for row in rows(engine, jobs)] == [kept.job_id]


def test_an_event_that_arrives_many_times_at_once_is_stored_once(engine: Engine, receiver: WebhookReceiver) -> None:
    sent = event()
    start = threading.Barrier(8)

    def deliver(_: int) -> Receipt:
        start.wait()
        return send(receiver, sent)

    with ThreadPoolExecutor(8) as threads:
        receipts = list(threads.map(deliver, range(8)))

    (fetch,) = rows(engine, jobs)
    assert sorted(receipt.duplicate for receipt in receipts) == [False] + [True] * 7
    assert {receipt.job_id for receipt in receipts} == {fetch["id"]}


def test_a_burst_about_one_customer_is_one_waiting_fetch(engine: Engine, receiver: WebhookReceiver) -> None:
    start = threading.Barrier(8)

    def deliver(number: int) -> set[str | None]:
        start.wait()
        types = ("customer.updated", "invoice.paid", "charge.succeeded")
        return {send(receiver, event(types[number % 3])).job_id for _ in range(5)}

    with ThreadPoolExecutor(8) as threads:
        found = set().union(*threads.map(deliver, range(8)))

    assert len(rows(engine, webhook_events)) == 40
    assert {row["id"] for row in rows(engine, jobs)} == found
    assert len(found) == 1


def test_a_fetch_that_has_left_does_not_answer_for_what_came_after(engine: Engine, receiver: WebhookReceiver) -> None:
    first = send(receiver, event())
    change(engine, first.job_id or "", state="dispatched", lease_token=str(uuid.uuid4()), lease_expires_at=now(60))

    second = send(receiver, event())

    assert second.job_id != first.job_id


def test_customers_of_other_accounts_and_credentials_are_others(engine: Engine, producer: CustomerJobs) -> None:
    eu = WebhookReceiver(producer, SECRET, "eu")

    send(eu, event(account="acct_1"))
    send(eu, event(account="acct_2"))
    send(eu, event())

    found = {(row["credential"], row["stripe_account"]) for row in rows(engine, jobs)}
    assert found == {("eu", "acct_1"), ("eu", "acct_2"), ("eu", None)}


def test_an_account_behind_two_credentials_is_kept_in_both(engine: Engine, producer: CustomerJobs) -> None:
    sent = event()
    first = send(WebhookReceiver(producer, SECRET), sent)

    second = send(WebhookReceiver(producer, SECRET, "eu"), sent)

    assert second.job_id != first.job_id
    assert {row["credential"] for row in rows(engine, jobs)} == {"default", "eu"}


def test_a_thin_event_is_as_good(engine: Engine, receiver: WebhookReceiver) -> None:
    receipt = send(receiver, thin(event("customer.deleted", account="acct_1")))

    (fetch,) = rows(engine, jobs)
    assert receipt.job_id == fetch["id"]
    assert (fetch["customer_id"], fetch["stripe_account"]) == (CUSTOMER_ID, "acct_1")
    assert rows(engine, webhook_events)[0]["type"] == "v1.customer.deleted"


def test_an_event_that_was_verified_elsewhere_is_taken_in(engine: Engine, receiver: WebhookReceiver) -> None:
    body = json.dumps(event())

    receipt = receiver.accept(stripe.Webhook.construct_event(body, sign(body, SECRET), SECRET))

    assert receipt.job_id == rows(engine, jobs)[0]["id"]
    with pytest.raises(InvalidEvent):
        receiver.accept({"id": "evt_1"})


@pytest.mark.parametrize(
    "sent",
    [
        event("price.updated", item={"customer": None}),
        event("something.unheard_of", item={"customer": []}),
        event(customer_id="chosen by hand@example.com"),
        event(account="somewhere"),
    ],
    ids=["no customer", "unknown type", "odd id", "odd account"],
)
def test_what_cannot_be_fetched_is_acknowledged_all_the_same(
    engine: Engine, receiver: WebhookReceiver, sent: Row
) -> None:
    assert send(receiver, sent) == Receipt(sent["id"], None, duplicate=False)

    assert rows(engine, jobs) == []
    assert [row["id"] for row in rows(engine, webhook_events)] == [sent["id"]]


def test_rules_of_an_app_decide(engine: Engine, producer: CustomerJobs) -> None:
    of_reference = Rule("checkout.session.*", lambda sent: sent.object.get("client_reference_id"))
    receiver = WebhookReceiver(producer, [SECRET], rules=(of_reference,), priority="low")

    send(receiver, event("checkout.session.completed", item={"client_reference_id": "cus_2"}))
    send(receiver, event())

    assert [(row["customer_id"], row["priority"]) for row in rows(engine, jobs)] == [("cus_2", 3)]
    assert of_reference not in RULES


@pytest.mark.parametrize("livemode", [True, False])
def test_an_event_of_the_other_mode_is_acknowledged_and_fetches_nothing(
    engine: Engine, receiver: WebhookReceiver, livemode: bool
) -> None:
    add_credential(engine, livemode=livemode)

    other = send(receiver, event(livemode=not livemode))
    same = send(receiver, event(livemode=livemode))

    assert (other.job_id, other.duplicate) == (None, False)
    assert same.job_id is not None
    assert len(rows(engine, jobs)) == 1
    assert len(rows(engine, webhook_events)) == 2


def test_the_key_in_the_environment_tells_the_mode_until_a_worker_has(
    receiver: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = send(receiver, event(livemode=True))
    monkeypatch.setenv("STRIPE_API_KEY", "rk_test_x")

    assert unknown.job_id is not None
    assert send(receiver, event(livemode=True)).job_id is None


def test_a_create_of_ours_causes_no_fetch(engine: Engine, receiver: WebhookReceiver) -> None:
    waiting = add_job(engine)
    running = add_job(engine, state="running", first_sent_at=now())
    done = add_job(engine, state="succeeded", customer_id=CUSTOMER_ID)

    receipts = [send(receiver, created_by(job_id)) for job_id in (waiting, running, done)]
    receipts.append(send(receiver, thin(created_by(done))))
    by_metadata = created_by(done, request={"id": None, "idempotency_key": None})
    receipts.append(send(receiver, by_metadata))

    assert [receipt.job_id for receipt in receipts] == [None] * 5
    assert {row["id"] for row in rows(engine, jobs)} == {waiting, running, done}
    # Should the attempt's end stay unknown, its look begins with the customer named here.
    assert job_row(engine, running)["candidate_customer_id"] == CUSTOMER_ID
    assert job_row(engine, waiting)["candidate_customer_id"] is None


def test_what_changes_a_customer_of_ours_later_is_fetched(engine: Engine, receiver: WebhookReceiver) -> None:
    done = add_job(engine, state="succeeded", customer_id=CUSTOMER_ID)

    receipt = send(receiver, created_by(done) | {"type": "customer.updated"})

    assert receipt.job_id not in {None, done}


def test_an_ambiguous_create_is_made_due_with_the_customer_to_look_at(
    engine: Engine, receiver: WebhookReceiver
) -> None:
    job_id = add_job(engine, state="retrying", first_sent_at=now(-60), due_at=now(3600))

    receipt = send(receiver, created_by(job_id))

    row = job_row(engine, job_id)
    assert receipt.job_id == job_id
    assert (row["state"], row["candidate_customer_id"], row["reconciling"]) == ("retrying", CUSTOMER_ID, True)
    assert row["due_at"] <= datetime.now(UTC)
    assert len(rows(engine, jobs)) == 1


def test_the_truth_after_an_unknown_outcome_is_a_retry_that_looks_at_it(
    engine: Engine, receiver: WebhookReceiver
) -> None:
    failed = add_job(engine, state="failed", first_sent_at=now(-60), external_id="user-42", context={"a": 1})

    sent = created_by(failed)
    receipt = send(receiver, sent)
    again = send(receiver, sent)
    by_other_event = send(receiver, created_by(failed))

    retried = job_row(engine, receipt.job_id or "")
    assert (retried["retry_of"], retried["candidate_customer_id"]) == (failed, CUSTOMER_ID)
    assert (retried["external_id"], retried["context"], retried["reconciling"]) == ("user-42", {"a": 1}, True)
    assert again == Receipt(sent["id"], receipt.job_id, duplicate=True)
    assert by_other_event == Receipt(by_other_event.event_id, receipt.job_id, duplicate=False)
    assert len(rows(engine, jobs)) == 2


def test_the_truth_told_twice_at_once_is_one_retry(engine: Engine, receiver: WebhookReceiver) -> None:
    failed = add_job(engine, state="failed", first_sent_at=now(-60), external_id="user-42")
    start = threading.Barrier(4)

    def deliver(_: int) -> Receipt:
        start.wait()
        return send(receiver, created_by(failed))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(deliver, range(4)))

    assert len(rows(engine, jobs)) == 2
    assert len(rows(engine, jobs, retry_of=failed)) == 1


@pytest.mark.parametrize(
    "columns",
    [
        {"state": "cancelled"},
        {"state": "failed"},
        {"state": "succeeded", "customer_id": "cus_another"},
        {"credential": "eu"},
        {"stripe_account": "acct_1"},
        {"kind": "customer.fetch", "priority": 4},
    ],
    ids=str,
)
def test_a_customer_that_a_job_cannot_have_made_is_news(
    engine: Engine, receiver: WebhookReceiver, columns: Row
) -> None:
    job_id = add_job(engine, **columns)

    receipt = send(receiver, created_by(job_id))

    assert receipt.job_id is not None
    assert job_row(engine, receipt.job_id)["kind"] == "customer.fetch"
    assert job_row(engine, receipt.job_id)["credential"] == "default"


@pytest.mark.parametrize("job_id", ["5c1b8f9e-7d53-4a9b-8a65-0b7d3f6b3c11", "nonsense", ["list"], 7, None], ids=repr)
def test_a_customer_of_another_installation_is_news(engine: Engine, receiver: WebhookReceiver, job_id: Any) -> None:
    assert send(receiver, created_by(job_id)).job_id is not None

    assert len(rows(engine, jobs)) == 1


def test_out_of_order_and_doubled_the_newest_state_is_kept(
    engine: Engine, receiver: WebhookReceiver, sandbox: Sandbox
) -> None:
    worker = Worker(engine, sandbox)
    customer_id = customer_at_stripe(worker, "first")
    told = [event(customer_id=customer_id, item={"name": name}) for name in ("first", "second", "third")]
    for name in ("second", "third"):
        sandbox.update_customer(customer_id, name=name)

    for sent in (told[2], told[0], told[0], told[1], told[2]):
        send(receiver, sent)
        worker.work()

    (copy,) = rows(engine, customers)
    assert (copy["id"], copy["name"], copy["deleted"]) == (customer_id, "third", False)


def test_a_deleted_customer_becomes_the_flag_whatever_is_told_later(
    engine: Engine, receiver: WebhookReceiver, sandbox: Sandbox
) -> None:
    worker = Worker(engine, sandbox)
    customer_id = customer_at_stripe(worker, "Jenny")
    send(receiver, event("customer.created", customer_id))
    worker.work()
    sandbox.delete_customer(customer_id)

    for type_ in ("customer.deleted", "customer.updated"):
        receipt = send(receiver, event(type_, customer_id))
        worker.work()
        assert job_row(engine, receipt.job_id or "")["outcome"] == "deleted"

    (copy,) = rows(engine, customers)
    assert (copy["name"], copy["deleted"]) == ("Jenny", True)


def test_a_young_copy_answers_a_fetch_without_a_call(
    engine: Engine, producer: CustomerJobs, receiver: WebhookReceiver, sandbox: Sandbox
) -> None:
    worker = Worker(engine, sandbox)
    customer_id = customer_at_stripe(worker, "Jenny")
    send(receiver, event("customer.created", customer_id))
    worker.work()

    def fetched(**arguments: Any) -> Job:
        job = producer.fetch_customer(customer_id, **arguments)
        worker.work()
        ended = producer.get(job.id)
        assert ended is not None
        return ended

    def calls() -> int:
        return len([request for request in sandbox.requests if request.endpoint == "retrieve"])

    assert calls() == 1
    young = fetched(max_age_seconds=60)
    assert (young.outcome, young.customer_id, calls()) == ("fresh", customer_id, 1)
    assert young.result is not None
    assert young.result["response"]["name"] == "Jenny"

    assert (fetched(max_age_seconds=60, expand=["default_source"]).outcome, calls()) == ("found", 2)
    assert (fetched().outcome, calls()) == ("found", 3)
    age(engine, 61, customers)
    assert (fetched(max_age_seconds=60).outcome, calls()) == ("found", 4)
    assert (fetched(max_age_seconds=0).outcome, calls()) == ("found", 5)


@pytest.mark.parametrize("database", ["postgresql"])
def test_a_database_out_of_reach_is_said_so_that_stripe_tries_again(engine: Engine) -> None:
    gone = open_engine(engine.url.set(port=1))

    with pytest.raises(Unavailable):
        send(WebhookReceiver(CustomerJobs(gone), SECRET), event())
