"""Settling a create that may have been executed: the customer is looked for and adopted, and never made again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, select
from structlog.testing import capture_logs

from customer_jobs import lifecycle
from customer_jobs.database import reading, writing
from customer_jobs.problems import OUTCOME_UNKNOWN
from customer_jobs.producer import CustomerJobs
from customer_jobs.request import Request
from customer_jobs.sandbox import Sandbox
from customer_jobs.schema import credentials, customers, jobs, lanes
from customer_jobs.sql import now
from tests.builders import (
    EMAIL,
    Worker,
    add_job,
    as_read,
    change,
    create,
    dispatched,
    events_of,
    job_row,
    later,
    ledger,
    rows,
)
from worker import runner
from worker.answers import Answer
from worker.dispatcher import upkeep
from worker.dispatcher.limits import Bucket
from worker.gateway import Gateway
from worker.reconcile import LOOKS, OFTEN
from worker.retry import CREATE_WINDOW, RetryPolicy

POLICY = RetryPolicy(window=CREATE_WINDOW)
DAY_SECONDS = 24 * 3600.0
Json = dict[str, Any]


class Clock:
    """The sandbox's clock, which a test may set back before it lets its rows grow older."""

    behind_seconds = 0.0

    def __call__(self) -> float:
        return time.time() - self.behind_seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sandbox(clock: Clock) -> Iterator[Sandbox]:
    with Sandbox(clock=clock) as running:
        yield running


def add_create(engine: Engine, fault: str | None = None, **columns: Any) -> str:
    """A create that meets a fault; its body has an e-mail unless the columns say otherwise."""
    body = columns.pop("body", {"email": EMAIL})
    metadata = {"metadata": {"sandbox": fault}} if fault else {}
    return add_job(engine, payload={"body": body | metadata}, **columns)


def settle(worker: Worker, job_id: str, minutes: int = 6) -> Json:
    """The row of a job once it is final, some minutes later at the most."""
    for _ in range(minutes):
        worker.work()
        row = job_row(worker.engine, job_id)
        if row["finished_at"] is not None:
            return row
        later(worker.engine, 61, job_id)
    raise AssertionError(f"still {row['state']} after {minutes} minutes")


def sends(sandbox: Sandbox) -> list[str | None]:
    """The idempotency keys of the creates."""
    return [request.idempotency_key for request in sandbox.requests if request.method == "POST"]


def looks(sandbox: Sandbox) -> list[Json]:
    """What the lists asked for."""
    return [request.params for request in sandbox.requests if request.endpoint == "list"]


def the_customer(sandbox: Sandbox) -> Json:
    (customer,) = sandbox.customers()
    return customer


def rescue(worker: Worker) -> None:
    """End the attempts whose lease ran out, as the dispatcher does."""
    upkeep.rescue(worker.engine, worker.holder, lambda tx, held: worker.runner.abandon(tx, held, POLICY))


def test_a_frozen_500_behind_the_deed_is_adopted(engine: Engine, worker: Worker, sandbox: Sandbox) -> None:
    job_id = add_create(engine, "frozen_500_after", external_id="user-1")

    job = settle(worker, job_id)

    customer = the_customer(sandbox)
    assert (job["state"], job["outcome"], job["customer_id"]) == ("succeeded", "adopted", customer["id"])
    assert job["result"]["response"] == customer
    assert job["result"]["customer_email"] == EMAIL
    assert "Request-Id" in job["result"]["headers"]
    assert sends(sandbox) == [f"customer-jobs-{job_id}"] * 2
    assert looks(sandbox) == [{"email": EMAIL, "limit": "100"}]
    assert [each["verdict"] for each in ledger(engine, job_id)] == ["retry", "failed", "succeeded"]
    assert job["attempt"] == 2
    (copy,) = rows(engine, customers)
    assert (copy["id"], copy["external_id"]) == (customer["id"], "user-1")
    (event,) = events_of(engine, job_id)
    assert event["data"]["outcome"] == "adopted"


def test_a_frozen_500_without_the_deed_is_unknown_after_three_looks_over_two_minutes(
    engine: Engine, worker: Worker, sandbox: Sandbox
) -> None:
    job_id = add_create(engine, "frozen_500", external_id="user-1")
    worker.work()
    pauses = []

    while job_row(engine, job_id)["finished_at"] is None:
        waiting = job_row(engine, job_id)
        last = ledger(engine, job_id)[-1]["finished_at"]
        pauses.append(round((waiting["due_at"] - last).total_seconds()))
        assert waiting["reconciling"]
        later(engine, 61, job_id)
        worker.work()

    job = job_row(engine, job_id)
    assert pauses == [1, 60, 60]
    assert (job["state"], job["error"]["code"], job["error"]["transient"]) == ("failed", OUTCOME_UNKNOWN, True)
    assert "customer_jobs_id" in job["error"]["remedy"]
    assert job["error"]["http_status"] == 500
    assert job["error"]["request_id"] == sandbox.requests[1].request_id
    assert sandbox.customers() == []
    assert len(sends(sandbox)) == 2
    assert {request.path for request in sandbox.requests} == {"/v1/customers"}  # never /v1/customers/search
    assert job["first_sent_at"] is not None  # It keeps its external_id.
    assert len(events_of(engine, job_id)) == 1


@pytest.mark.parametrize(("fault", "ends"), [("500_after", "adopted"), ("reset", OUTCOME_UNKNOWN)])
def test_once_stripe_may_have_forgotten_the_key_nothing_is_sent(
    engine: Engine, worker: Worker, sandbox: Sandbox, clock: Clock, fault: str, ends: str
) -> None:
    job_id = add_create(engine, fault, body={"name": "Jenny Rosen"})
    clock.behind_seconds = 23 * 3600
    worker.dispatch_and_attempt(job_id)
    clock.behind_seconds = 0
    later(engine, 23 * 3600, job_id)  # The workers were stopped meanwhile.

    job = settle(Worker(engine, sandbox), job_id)

    assert ends in (job["outcome"], (job["error"] or {}).get("code"))
    assert len(sends(sandbox)) == 1


def test_shortly_before_stripe_forgets_the_key_it_is_sent(engine: Engine, worker: Worker, sandbox: Sandbox) -> None:
    job_id = add_create(engine, "500_after")
    worker.dispatch_and_attempt(job_id)
    later(engine, 23 * 3600 - 60, job_id)

    job = settle(worker, job_id)

    assert (job["outcome"], len(sends(sandbox))) == ("replayed", 2)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_retry_that_would_come_too_late_comes_as_a_look(engine: Engine, sandbox: Sandbox) -> None:
    hesitant = Worker(engine, sandbox, draw=0.999)
    job_id = add_create(engine, "500x30", attempt=15)
    hesitant.dispatch_and_attempt(job_id)
    later(engine, 22.5 * 3600, job_id)
    hesitant.dispatch_and_attempt(job_id)
    row = job_row(engine, job_id)

    assert row["due_at"] - row["first_sent_at"] < timedelta(hours=23, seconds=1)
    later(engine, 3600, job_id)
    hesitant.work()
    hesitant.work()
    assert job_row(engine, job_id)["reconciling"]
    assert len(sends(sandbox)) == 2


@pytest.mark.parametrize(("fault", "ends"), [("cut", "adopted"), ("reset", OUTCOME_UNKNOWN)])
def test_the_last_attempt_may_have_been_executed(
    engine: Engine, worker: Worker, sandbox: Sandbox, fault: str, ends: str
) -> None:
    job_id = add_create(engine, fault, max_attempts=1)

    job = settle(worker, job_id)

    assert ends in (job["outcome"], (job["error"] or {}).get("code"))
    assert len(sends(sandbox)) == 1


def test_a_clear_refusal_does_not_settle_what_was_open_before(engine: Engine, worker: Worker, sandbox: Sandbox) -> None:
    job_id = add_create(engine, "reset_after")
    worker.dispatch_and_attempt(job_id)
    sandbox.faults.add("402", method="POST")
    # A rule does not strike while a customer has a script of its own; this one has run out.
    change(engine, job_id, params=None, payload={"body": {"email": EMAIL}})

    job = settle(worker, job_id)

    assert (job["state"], job["outcome"], job["customer_id"]) == ("succeeded", "adopted", the_customer(sandbox)["id"])


def test_the_last_attempt_was_abandoned(engine: Engine, worker: Worker, sandbox: Sandbox) -> None:
    job_id = add_create(engine, max_attempts=1)

    def dies_after_the_deed(stripe: Gateway, request: Request) -> Answer:
        create(stripe, request)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        worker.runner.attempt(dispatched(engine, job_id), dies_after_the_deed, POLICY, worker="w1")
    later(engine, 20, job_id)
    rescue(worker)

    job = settle(worker, job_id)

    assert (job["state"], job["outcome"], job["customer_id"]) == ("succeeded", "adopted", the_customer(sandbox)["id"])
    assert [each["verdict"] for each in ledger(engine, job_id)] == ["abandoned", "succeeded"]
    assert len(sends(sandbox)) == 1


def test_a_look_may_be_abandoned_too(engine: Engine, worker: Worker, sandbox: Sandbox) -> None:
    job_id = add_create(engine, "cut", max_attempts=1)
    worker.dispatch_and_attempt(job_id)
    sandbox.hold(lambda request: request.endpoint == "list")
    later(engine, 2, job_id)
    dispatched(engine, job_id)
    with writing(engine) as transaction:  # A worker claims it for a look, and is heard of no more.
        looks_for_it = lifecycle.Sending("{}", "key", None, may_create=False, uses_attempt=False)
        assert lifecycle.claim(transaction, as_read(transaction, job_id), worker="w2", sending=looks_for_it)
    later(engine, 20, job_id)
    rescue(worker)
    sandbox.release()

    job = settle(worker, job_id)

    assert (job["outcome"], job["attempt"], len(sends(sandbox))) == ("adopted", 1, 1)


def test_an_email_that_was_changed_meanwhile_hides_nobody(engine: Engine, worker: Worker, sandbox: Sandbox) -> None:
    job_id = add_create(engine, "500_after", max_attempts=1)
    worker.dispatch_and_attempt(job_id)
    customer = sandbox.update_customer(the_customer(sandbox)["id"], email="other@example.com")

    job = settle(worker, job_id)

    assert (job["outcome"], job["customer_id"]) == ("adopted", customer["id"])
    assert job["result"]["customer_email"] == "other@example.com"
    assert [sorted(asked) for asked in looks(sandbox)] == [["email", "limit"], ["created", "limit"]]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("body", [{}, {"name": "Jenny Rosen"}, {"email": ""}, {"email": "  "}])
def test_a_customer_without_an_email_is_found_by_when_it_was_made(
    engine: Engine, worker: Worker, sandbox: Sandbox, body: Json
) -> None:
    job_id = add_create(engine, "500_after", body=body, max_attempts=1)

    job = settle(worker, job_id)

    assert (job["outcome"], job["customer_id"]) == ("adopted", the_customer(sandbox)["id"])
    (asked,) = looks(sandbox)
    sent_at = ledger(engine, job_id)[0]["started_at"].timestamp()
    assert int(asked["created"]["gte"]) == pytest.approx(sent_at - 600, abs=2)
    assert int(asked["created"]["lte"]) == pytest.approx(sent_at + 600, abs=2)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("body", [{"name": "Jenny Rosen"}, {"email": EMAIL}], ids=["no e-mail", "a shared e-mail"])
def test_thousands_of_other_customers_hide_nobody(engine: Engine, worker: Worker, sandbox: Sandbox, body: Json) -> None:
    job_id = add_create(engine, "cut", body=body, max_attempts=1)
    others(sandbox, 1_000, body)
    worker.dispatch_and_attempt(job_id)
    others(sandbox, 3_000, body)

    job = settle(worker, job_id)

    mine = next(each for each in sandbox.customers() if each["metadata"].get("customer_jobs_id") == job_id)
    assert (job["outcome"], job["customer_id"]) == ("adopted", mine["id"])
    assert len(looks(sandbox)) == 41
    assert len(sends(sandbox)) == 1


def test_every_page_of_a_look_counts_against_the_limits(engine: Engine, sandbox: Sandbox) -> None:
    worker = Worker(engine, sandbox, rate_limit_fetch=100, rate_limit_account=100)
    job_id = add_create(engine, "cut", body={"name": "Jenny Rosen"}, max_attempts=1)
    worker.dispatch_and_attempt(job_id)
    others(sandbox, 1_000, {"name": "Jenny Rosen"})
    change(engine, job_id, due_at=now())

    worker.work()

    assert job_row(engine, job_id)["outcome"] == "adopted"
    pages = len(looks(sandbox))
    assert pages == 11
    most = Bucket.new(100).capacity
    tokens = {row["kind"]: row["tokens"] for row in rows(engine, lanes)}
    assert set(tokens) == {"customer.list", "*"}
    assert all(each <= most - pages for each in tokens.values())


def others(sandbox: Sandbox, count: int, params: Json) -> None:
    """Customers that somebody else made just now."""
    for number in range(count):
        theirs = {"customer_jobs_id": f"other-{number}"} if number % 2 else {}
        sandbox._store.create("acct_shop", "test", params | {"metadata": theirs}, {})


def test_an_email_alone_makes_nobody_ours(engine: Engine, worker: Worker, sandbox: Sandbox) -> None:
    others(sandbox, 3, {"email": EMAIL})
    job_id = add_create(engine, "500", max_attempts=1)

    job = settle(worker, job_id)

    assert (job["state"], job["error"]["code"], job["customer_id"]) == ("failed", OUTCOME_UNKNOWN, None)


def test_of_two_the_older_is_adopted_and_that_is_logged(
    engine: Engine, worker: Worker, sandbox: Sandbox, clock: Clock
) -> None:
    job_id = add_create(engine, "500_after", max_attempts=1)
    worker.dispatch_and_attempt(job_id)
    newer = the_customer(sandbox)
    clock.behind_seconds = 60
    older, _ = sandbox._store.create("acct_shop", "test", {"email": EMAIL, "metadata": newer["metadata"]}, {})

    with capture_logs() as logged:
        job = settle(worker, job_id)

    assert job["customer_id"] == older["id"]
    (line,) = [each for each in logged if each["event"] == "several customers of one job"]
    assert (line["log_level"], line["customer_ids"]) == ("error", [older["id"], newer["id"]])


def made_unknown_before_it_answers(worker: Worker) -> Callable[[Gateway, Request], Answer]:
    """A call that takes so long that others give its job up, and then makes the customer after all."""

    def call(stripe: Gateway, request: Request) -> Answer:
        job_id = request.idempotency_key.removeprefix("customer-jobs-")
        later(worker.engine, 20, job_id)
        rescue(worker)
        assert settle(worker, job_id)["error"]["code"] == OUTCOME_UNKNOWN
        return create(stripe, request)

    return call


def test_a_late_answer_after_all_is_adopted_by_a_new_job(engine: Engine, worker: Worker, sandbox: Sandbox) -> None:
    job_id = add_create(engine, external_id="user-1", context={"order": 7}, max_attempts=1)

    recorded = worker.runner.attempt(
        dispatched(engine, job_id), made_unknown_before_it_answers(worker), POLICY, worker="w1"
    )

    (successor,) = [row for row in rows(engine, jobs) if row["retry_of"] == job_id]
    job = settle(worker, successor["id"])
    assert recorded is not None
    assert recorded.code == "lease_lost"
    assert job_row(engine, job_id)["state"] == "failed"
    assert (job["state"], job["outcome"], job["customer_id"]) == ("succeeded", "adopted", the_customer(sandbox)["id"])
    assert (job["external_id"], job["context"]) == ("user-1", {"order": 7})
    assert ledger(engine, job_id)[0]["verdict"] == "succeeded"
    assert len(sends(sandbox)) == 1
    assert len(looks(sandbox)) == 6  # Three looks, each by e-mail and by time; the new job knew whom to ask for.


def test_a_late_answer_reaches_the_job_that_a_person_has_retried_meanwhile(
    engine: Engine, worker: Worker, sandbox: Sandbox
) -> None:
    job_id = add_create(engine, external_id="user-1", max_attempts=1)
    retried = []

    def call(stripe: Gateway, request: Request) -> Answer:
        answer = made_unknown_before_it_answers(worker)(stripe, request)
        retried.append(CustomerJobs(engine).retry(job_id).id)
        return answer

    worker.runner.attempt(dispatched(engine, job_id), call, POLICY, worker="w1")

    assert job_row(engine, retried[0])["candidate_customer_id"] == the_customer(sandbox)["id"]
    assert settle(worker, retried[0])["outcome"] == "adopted"
    assert len(sends(sandbox)) == 1


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_an_unknown_outcome_retried_by_hand_is_looked_for_and_then_sent_anew(
    engine: Engine, worker: Worker, sandbox: Sandbox
) -> None:
    sandbox.faults.add("500", method="POST", times=1)
    job_id = add_create(engine, max_attempts=1, external_id="user-1")
    assert settle(worker, job_id)["error"]["code"] == OUTCOME_UNKNOWN

    retried = CustomerJobs(engine).retry(job_id)
    job = settle(worker, retried.id)

    customer = the_customer(sandbox)
    assert (job["outcome"], job["customer_id"], job["external_id"]) == ("created", customer["id"], "user-1")
    assert customer["metadata"]["customer_jobs_id"] == retried.id
    assert sends(sandbox) == [f"customer-jobs-{job_id}", f"customer-jobs-{retried.id}"]
    assert len(looks(sandbox)) == 12


def test_a_customer_that_was_named_and_is_gone_is_not_made_once_more(
    engine: Engine, worker: Worker, sandbox: Sandbox
) -> None:
    sandbox.faults.add("500", method="POST", times=1)
    job_id = add_create(engine, max_attempts=1)
    settle(worker, job_id)

    # As a late answer or an event of Stripe's does it, unasked; the customer is deleted meanwhile.
    with writing(engine) as transaction:
        made = lifecycle.retry_by_hand(transaction, job_row(engine, job_id), candidate_customer_id="cus_gone")
    assert made is not None
    job = settle(worker, made["id"])

    assert (job["state"], job["error"]["code"]) == ("failed", OUTCOME_UNKNOWN)
    assert sends(sandbox) == [f"customer-jobs-{job_id}"]


@pytest.mark.parametrize("behind", ["request_of", "look"])
def test_a_customer_that_is_named_during_the_last_look_is_not_made_once_more(
    engine: Engine, worker: Worker, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, behind: str
) -> None:
    sandbox.faults.add("500", method="POST", times=1)
    job_id = add_create(engine, max_attempts=1)
    settle(worker, job_id)
    retried = CustomerJobs(engine).retry(job_id).id
    passed: list[object] = []
    step = getattr(runner, behind)

    def and_then_an_event_arrives(*arguments: object) -> object:
        passed.append(step(*arguments))
        if len(passed) == LOOKS:
            change(engine, retried, candidate_customer_id="cus_gone")
        return passed[-1]

    monkeypatch.setattr(runner, behind, and_then_an_event_arrives)
    job = settle(worker, retried)

    assert (job["state"], job["error"]["code"]) == ("failed", OUTCOME_UNKNOWN)
    assert sends(sandbox) == [f"customer-jobs-{job_id}"]
    assert "cus_gone" in [request.path.rpartition("/")[2] for request in sandbox.requests]


def test_an_unknown_outcome_retried_by_hand_finds_what_the_old_job_made(
    engine: Engine, worker: Worker, sandbox: Sandbox
) -> None:
    job_id = add_create(engine, "500_after", max_attempts=1, external_id="user-1")
    sandbox.faults.add("403_account", method="GET", path="/v1/customers")
    assert settle(worker, job_id)["error"]["code"] == OUTCOME_UNKNOWN
    sandbox.faults.clear()

    job = settle(worker, CustomerJobs(engine).retry(job_id).id)

    assert (job["outcome"], job["customer_id"]) == ("adopted", the_customer(sandbox)["id"])
    assert len(sends(sandbox)) == 1


def test_a_stuck_key_is_settled_by_a_look_if_something_was_open(
    engine: Engine, worker: Worker, sandbox: Sandbox
) -> None:
    job_id = add_create(engine, "500_after")
    worker.dispatch_and_attempt(job_id)
    change(engine, job_id, params='{"email": "jenny.rosen@example.com", "name": "Somebody Else"}')

    with capture_logs() as logged:
        job = settle(worker, job_id)

    assert (job["outcome"], job["customer_id"]) == ("adopted", the_customer(sandbox)["id"])
    assert [each["log_level"] for each in logged if each["event"] == "idempotency key is stuck"] == ["error"]


def test_a_stuck_key_fails_if_nothing_was_open(engine: Engine, worker: Worker, sandbox: Sandbox) -> None:
    job_id = add_create(engine, external_id="user-1")
    key = f"customer-jobs-{job_id}"
    worker.gateway.create_customer({}, credential="default", stripe_account=None, idempotency_key=key)

    with capture_logs() as logged:
        job = settle(worker, job_id)

    assert (job["state"], job["error"]["type"], job["first_sent_at"]) == ("failed", "idempotency_error", None)
    assert "idempotency key is stuck" in [each["event"] for each in logged]
    assert looks(sandbox) == []


def test_a_named_candidate_is_asked_for_first(engine: Engine, worker: Worker, sandbox: Sandbox) -> None:
    job_id = add_create(engine, "500_after", max_attempts=1)
    worker.dispatch_and_attempt(job_id)
    with writing(engine) as transaction:
        assert lifecycle.suggest(transaction, job_id, the_customer(sandbox)["id"]) == 1
    worker.work()  # At once, not in a second.

    job = job_row(engine, job_id)
    assert (job["outcome"], job["customer_id"]) == ("adopted", the_customer(sandbox)["id"])
    assert [request.endpoint for request in sandbox.requests] == ["create", "retrieve"]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("candidate", ["somebody else's", "missing", "deleted", "no id"])
def test_a_candidate_that_is_not_ours_misleads_nobody(
    engine: Engine, worker: Worker, sandbox: Sandbox, candidate: str
) -> None:
    other, _ = sandbox._store.create("acct_shop", "test", {"email": EMAIL}, {})
    gone, _ = sandbox._store.create("acct_shop", "test", {"email": EMAIL}, {})
    sandbox.delete_customer(gone["id"])
    named = {"somebody else's": other["id"], "missing": "cus_missing", "deleted": gone["id"], "no id": "../charges"}
    job_id = add_create(engine, "500_after", max_attempts=1, candidate_customer_id=named[candidate])

    job = settle(worker, job_id)

    mine = next(each for each in sandbox.customers() if each["metadata"].get("customer_jobs_id") == job_id)
    assert (job["outcome"], job["customer_id"]) == ("adopted", mine["id"])


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("fault", ["rate_limit", "500", "garbage", "cut"])
def test_whoever_cannot_look_looks_again(engine: Engine, worker: Worker, sandbox: Sandbox, fault: str) -> None:
    job_id = add_create(engine, "500_after", max_attempts=1)
    worker.dispatch_and_attempt(job_id)
    sandbox.faults.add(fault, method="GET", times=5)  # More often than it looks in vain.

    job = settle(worker, job_id, minutes=8)

    assert (job["outcome"], job["customer_id"]) == ("adopted", the_customer(sandbox)["id"])
    assert len(sends(sandbox)) == 1
    assert (len(looks(sandbox)), len(ledger(engine, job_id))) == (6, 7)


@pytest.mark.parametrize("fault", ["rate_limit", "500"])
def test_looks_that_stripe_does_not_answer_become_rarer(
    engine: Engine, worker: Worker, sandbox: Sandbox, fault: str
) -> None:
    job_id = add_create(engine, "500_after", max_attempts=1)
    worker.dispatch_and_attempt(job_id)
    sandbox.faults.add(fault, method="GET")
    later(engine, 2, job_id)

    minutes = []
    for _ in range(13):
        worker.work()
        with reading(engine) as transaction:
            left = job_row(engine, job_id)["due_at"] - transaction.value(select(now()))
        minutes.append(round(left.total_seconds() / 60))
        later(engine, left.total_seconds() + 1, job_id)

    # What has its turn at a limit waits for that; what is away may be away for hours.
    rarer = [*[1] * OFTEN, 1, 2, 4, 8, 16, 32, 60, 60]
    assert minutes == ([1] * len(rarer) if fault == "rate_limit" else rarer)


def test_a_key_refused_while_looking_pauses_and_the_look_follows(
    engine: Engine, worker: Worker, sandbox: Sandbox
) -> None:
    job_id = add_create(engine, "500_after", max_attempts=1)
    worker.dispatch_and_attempt(job_id)
    sandbox.faults.add("401", method="GET", times=1)
    later(engine, 2, job_id)
    worker.work()
    (paused,) = rows(engine, credentials)
    later(engine, 120, job_id)
    worker.work()

    assert paused["paused_at"] is not None
    assert (job_row(engine, job_id)["state"], len(looks(sandbox))) == ("retrying", 1)
    rotated = Worker(engine, sandbox, stripe_api_keys={"default": "sk_test_shop_rotated"})
    change(engine, job_id, sent_to=rotated.gateway.identities("default")[0])
    assert settle(rotated, job_id)["outcome"] == "adopted"


def test_a_look_that_stripe_refuses_for_good_ends(engine: Engine, worker: Worker, sandbox: Sandbox) -> None:
    job_id = add_create(engine, "500_after", max_attempts=1, stripe_account="acct_connected")
    worker.dispatch_and_attempt(job_id)
    sandbox.faults.add("403_account", method="GET")

    job = settle(worker, job_id)

    assert (job["state"], job["error"]["code"]) == ("failed", OUTCOME_UNKNOWN)
    assert job["error"]["http_status"] == 403
    assert rows(engine, credentials)[0]["paused_at"] is None


def test_an_email_that_the_list_refuses_leaves_the_look_by_time(
    engine: Engine, worker: Worker, sandbox: Sandbox
) -> None:
    job_id = add_create(engine, "500_after", max_attempts=1)
    worker.dispatch_and_attempt(job_id)
    sandbox.faults.add("400", method="GET", times=1)

    job = settle(worker, job_id)

    assert (job["outcome"], job["customer_id"]) == ("adopted", the_customer(sandbox)["id"])


def test_a_job_that_looks_keeps_nobody_from_creating(engine: Engine, worker: Worker) -> None:
    stuck = add_create(engine, "frozen_500")
    worker.work()
    others = [add_create(engine, body={"email": f"{number}@example.com"}) for number in range(3)]
    worker.work()

    assert job_row(engine, stuck)["reconciling"]
    assert [job_row(engine, each)["state"] for each in others] == ["succeeded"] * 3
