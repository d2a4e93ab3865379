"""The life of an attempt: claimed once, called once, recorded whole, and the same request every time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event, select

from customer_jobs import CustomerJobs, Job
from customer_jobs.database import open_engine, writing
from customer_jobs.embedded import free_port
from customer_jobs.sandbox import Sandbox
from customer_jobs.schema import credentials, customers, jobs
from customer_jobs.sql import now
from customer_jobs.vocabulary import State
from tests.builders import (
    EMAIL,
    KEY,
    Worker,
    add_fetch,
    add_job,
    change,
    create,
    dispatched,
    events_of,
    job_row,
    later,
    ledger,
    rows,
)
from tests.proxy import Proxy
from worker.credentials import Key, bind
from worker.gateway import fingerprint
from worker.retry import RetryPolicy
from worker.runner import Runner


@pytest.fixture
def worker(engine: Engine, sandbox: Sandbox) -> Worker:
    return Worker(engine, sandbox, draw=0.5)


def create_meeting(engine: Engine, faults: str, **columns: Any) -> str:
    """The id of a create whose attempts meet these faults, one after the other."""
    body = {"email": EMAIL, "metadata": {"sandbox": faults}}
    return add_job(engine, payload={"body": body}, **columns)


def attempts_until_final(worker: Worker, job_id: str, most: int = 12) -> Job:
    """The job after as many attempts as it takes, none of which waits until it is due."""
    for _ in range(most):
        worker.dispatch_and_attempt(job_id)
        if (job := CustomerJobs(worker.engine).get(job_id)) and job.final:
            return job
    raise AssertionError(f"not final after {most} attempts")


def test_a_create_goes_the_whole_way(engine: Engine, worker: Worker, sandbox: Sandbox) -> None:
    job_id = add_job(engine, external_id="user-1", stripe_account="acct_other", context={"order": 7})

    recorded = worker.dispatch_and_attempt(job_id)

    (request,) = sandbox.requests
    (customer,) = sandbox.customers()
    assert request.params == {"email": EMAIL, "metadata": {"customer_jobs_id": job_id, "external_id": "user-1"}}
    assert (request.idempotency_key, request.stripe_account) == (f"customer-jobs-{job_id}", "acct_other")
    assert recorded is not None
    assert (recorded.state, recorded.outcome) == (State.SUCCEEDED, "created")
    row = job_row(engine, job_id)
    assert (row["state"], row["outcome"], row["customer_id"]) == (State.SUCCEEDED, "created", customer["id"])
    assert row["result"]["response"] == customer
    assert row["result"]["headers"]["Request-Id"] == request.request_id
    (attempt,) = ledger(engine, job_id)
    assert (attempt["verdict"], attempt["http_status"], attempt["worker"]) == ("succeeded", 200, "w1")
    assert (attempt["request_id"], attempt["idempotency_key"]) == (request.request_id, request.idempotency_key)
    assert attempt["duration_ms"] > 0
    (event,) = events_of(engine, job_id)
    assert (event["data"]["customer_id"], event["data"]["context"]) == (customer["id"], {"order": 7})
    assert [copy["external_id"] for copy in rows(engine, customers)] == ["user-1"]


def test_a_fetch_goes_the_whole_way(engine: Engine, worker: Worker, sandbox: Sandbox) -> None:
    sandbox_id = "cus_sandbox_ok"
    job_id = add_fetch(engine, payload={"customer_id": sandbox_id, "expand": ["tax"]}, customer_id=sandbox_id)

    worker.dispatch_and_attempt(job_id)

    (request,) = sandbox.requests
    row = job_row(engine, job_id)
    assert (request.method, request.path) == ("GET", f"/v1/customers/{sandbox_id}")
    assert (row["state"], row["outcome"], row["customer_id"]) == (State.SUCCEEDED, "found", sandbox_id)
    assert ledger(engine, job_id)[0]["idempotency_key"] is None


def test_a_deleted_customer_is_a_success_that_says_so(engine: Engine, worker: Worker, sandbox: Sandbox) -> None:
    worker.dispatch_and_attempt(add_job(engine))
    (customer,) = sandbox.customers()
    sandbox.delete_customer(customer["id"])
    job_id = add_fetch(engine, payload={"customer_id": customer["id"]}, customer_id=customer["id"])

    worker.dispatch_and_attempt(job_id)

    row = job_row(engine, job_id)
    assert (row["state"], row["outcome"], row["livemode"]) == (State.SUCCEEDED, "deleted", False)
    (copy,) = rows(engine, customers)
    assert (copy["deleted"], copy["email"]) == (True, EMAIL)


def test_a_doubled_message_makes_one_call(engine: Engine, worker: Worker, sandbox: Sandbox) -> None:
    job_id = dispatched(engine)

    first, second = worker.attempt(job_id), worker.attempt(job_id)

    assert first is not None
    assert second is None
    assert len(sandbox.requests) == 1
    assert len(ledger(engine, job_id)) == 1


def test_messages_that_arrive_at_once_make_one_call(engine: Engine, worker: Worker, sandbox: Sandbox) -> None:
    job_id = dispatched(engine)

    with ThreadPoolExecutor(5) as pool:
        recorded = list(pool.map(lambda _: worker.attempt(job_id), range(5)))

    assert sum(each is not None for each in recorded) == 1
    assert len(sandbox.requests) == 1


@pytest.mark.parametrize("job_id", ["0b1c9f1e-5b0c-4b55-9d2f-0c8b1b0f6a1d"])
def test_a_message_of_a_job_that_is_gone_does_nothing(worker: Worker, sandbox: Sandbox, job_id: str) -> None:
    assert worker.runner.attempt(job_id, create, RetryPolicy(), worker="w1") is None
    assert sandbox.requests == []


def test_being_rate_limited_uses_up_no_attempt(engine: Engine, worker: Worker, sandbox: Sandbox) -> None:
    job_id = create_meeting(engine, "rate_limit*3")

    for _ in range(3):
        worker.dispatch_and_attempt(job_id)
    waiting = job_row(engine, job_id)
    worker.dispatch_and_attempt(job_id)

    row = job_row(engine, job_id)
    assert (waiting["state"], waiting["attempt"], waiting["first_sent_at"]) == (State.RETRYING, 0, None)
    assert (row["state"], row["outcome"], row["attempt"]) == (State.SUCCEEDED, "created", 1)
    assert [each["verdict"] for each in ledger(engine, job_id)] == ["rate_limited"] * 3 + ["succeeded"]
    assert ledger(engine, job_id)[0]["rate_limited_reason"] == "endpoint-rate"
    assert len({request.idempotency_key for request in sandbox.requests}) == 1


def test_being_rate_limited_backs_off_further_each_time(engine: Engine, worker: Worker) -> None:
    job_id = create_meeting(engine, "rate_limit*3")

    delays = [getattr(worker.dispatch_and_attempt(job_id), "delay_seconds", None) for _ in range(3)]

    assert delays == [0.5, 1.0, 2.0]


def test_being_rate_limited_for_three_days_is_the_end(engine: Engine, worker: Worker) -> None:
    job_id = create_meeting(engine, "rate_limit*2")
    worker.dispatch_and_attempt(job_id)
    later(engine, 3 * 86_400, job_id)

    worker.dispatch_and_attempt(job_id)

    row = job_row(engine, job_id)
    assert (row["state"], row["error"]["code"], row["attempt"]) == (State.FAILED, "rate_limited_too_long", 1)
    assert row["first_sent_at"] is None


@pytest.mark.parametrize("fault", ["lock_timeout", "key_in_use", "424"])
def test_what_was_not_executed_is_tried_again(engine: Engine, worker: Worker, sandbox: Sandbox, fault: str) -> None:
    job_id = create_meeting(engine, fault)

    recorded = worker.dispatch_and_attempt(job_id)
    waiting = job_row(engine, job_id)
    worker.dispatch_and_attempt(job_id)

    assert recorded is not None
    assert recorded.delay_seconds == 0.5
    assert (waiting["state"], waiting["attempt"], waiting["first_sent_at"]) == (State.RETRYING, 1, None)
    assert waiting["error"]["transient"] is True
    assert waiting["error"]["remedy"] == "nothing to do: the job tries again by itself"
    assert job_row(engine, job_id)["outcome"] == "created"
    assert len(sandbox.customers()) == 1


@pytest.mark.parametrize("fault", ["500_after", "reset_after", "cut", "html_502_after", "garbage"])
def test_a_deed_whose_answer_was_lost_is_replayed(engine: Engine, worker: Worker, sandbox: Sandbox, fault: str) -> None:
    job_id = create_meeting(engine, fault)

    worker.dispatch_and_attempt(job_id)
    waiting = job_row(engine, job_id)
    worker.dispatch_and_attempt(job_id)

    first, second = ledger(engine, job_id)
    assert waiting["state"] == State.RETRYING
    assert waiting["first_sent_at"] is not None
    assert (first["verdict"], first["ambiguous"]) == ("retry", True)
    assert (second["verdict"], second["replayed"]) == ("succeeded", True)
    assert job_row(engine, job_id)["outcome"] == "replayed"
    assert len(sandbox.customers()) == 1


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("400", 400, "parameter_invalid_empty"),
        ("401", 401, None),
        ("402", 402, "card_declined"),
        ("403", 403, None),
        ("403_account", 403, "account_invalid"),
        ("404", 404, "resource_missing"),
    ],
)
def test_what_would_be_refused_again_fails_at_once(
    engine: Engine, worker: Worker, sandbox: Sandbox, fault: str, status: int, code: str | None
) -> None:
    job_id = create_meeting(engine, fault)

    recorded = worker.dispatch_and_attempt(job_id)

    row = job_row(engine, job_id)
    assert recorded is not None
    assert recorded.state == State.FAILED
    assert (row["state"], row["error"]["http_status"], row["error"]["code"]) == (State.FAILED, status, code)
    assert row["error"]["request_id"] == sandbox.requests[0].request_id
    assert (row["error"]["transient"], bool(row["error"]["remedy"])) == (False, True)
    assert row["first_sent_at"] is None
    assert ledger(engine, job_id)[0]["verdict"] == "failed"
    (event,) = events_of(engine, job_id)
    assert event["data"]["error"]["http_status"] == status
    assert EMAIL not in str(event["data"])


def test_a_refused_key_pauses_its_credential(engine: Engine, worker: Worker) -> None:
    job_id = create_meeting(engine, "401")
    other = add_job(engine)

    worker.dispatch_and_attempt(job_id)
    worker.work()

    (row,) = rows(engine, credentials)
    assert row["paused_at"] is not None
    assert "401" in row["reason"]
    assert job_row(engine, other)["state"] == State.QUEUED


def test_a_job_ends_when_its_attempts_are_used_up(engine: Engine, worker: Worker, sandbox: Sandbox) -> None:
    job_id = create_meeting(engine, "424*9", max_attempts=3)

    for _ in range(3):
        worker.dispatch_and_attempt(job_id)

    row = job_row(engine, job_id)
    assert (row["state"], row["attempt"], row["error"]["http_status"]) == (State.FAILED, 3, 424)
    assert row["error"]["transient"] is True
    assert len(sandbox.requests) == 3


@pytest.mark.parametrize("faults", ["500*9", "500_after*9", "frozen_500_after", "reset*9"])
def test_a_create_of_unknown_outcome_is_looked_for_and_made_at_most_once(
    engine: Engine, worker: Worker, sandbox: Sandbox, faults: str
) -> None:
    job_id = create_meeting(engine, faults, max_attempts=2)

    job = attempts_until_final(worker, job_id)

    keys = {request.idempotency_key for request in sandbox.requests if request.method == "POST"}
    assert keys == {f"customer-jobs-{job_id}"}
    if sandbox.customers():
        assert (job.state, job.outcome, job.customer_id) == (State.SUCCEEDED, "adopted", sandbox.customers()[0]["id"])
    else:
        assert job.state == State.FAILED
        assert job.error is not None
        assert job.error["code"] == "outcome_unknown"
        assert "customer_jobs_id" in job.error["remedy"]
    assert len(events_of(engine, job_id)) == 1


def test_a_retry_by_hand_of_an_unknown_outcome_adopts_what_is_there(
    engine: Engine, worker: Worker, sandbox: Sandbox
) -> None:
    job_id = create_meeting(engine, "reset_after*9", max_attempts=1, external_id="user-1")
    worker.dispatch_and_attempt(job_id)
    change(engine, job_id, state=State.FAILED, finished_at=now(), reconciling=False, error={"code": "outcome_unknown"})

    new = CustomerJobs(engine).retry(job_id)
    job = attempts_until_final(worker, new.id)

    assert (job.outcome, job.external_id) == ("adopted", "user-1")
    assert len(sandbox.customers()) == 1


def test_a_changed_key_makes_no_second_call(engine: Engine, worker: Worker, sandbox: Sandbox) -> None:
    job_id = create_meeting(engine, "reset_after")
    worker.dispatch_and_attempt(job_id)
    with_another_key = Worker(engine, sandbox, stripe_api_keys={"default": "sk_test_elsewhere_9"})

    with_another_key.dispatch_and_attempt(job_id)

    row = job_row(engine, job_id)
    assert (row["state"], row["error"]["code"]) == (State.FAILED, "outcome_unknown")
    assert len(sandbox.requests) == 1
    assert row["first_sent_at"] is not None
    assert row["sent_to"] == fingerprint(KEY)


def test_an_account_that_another_worker_learnt_is_the_one_the_create_was_sent_to(
    engine: Engine, worker: Worker
) -> None:
    job_id = create_meeting(engine, "reset_after")
    worker.dispatch_and_attempt(job_id)
    change(engine, job_id, sent_to="acct_shop")
    key = Key("default", fingerprint(KEY), livemode=False, account_id="acct_shop")
    with writing(engine) as transaction:
        bind(transaction, [key])

    worker.dispatch_and_attempt(job_id)

    assert job_row(engine, job_id)["state"] == State.SUCCEEDED


def test_a_changed_key_hinders_nothing_that_was_certainly_not_executed(
    engine: Engine, worker: Worker, sandbox: Sandbox
) -> None:
    job_id = add_job(engine)
    sandbox.faults.add("rate_limit", times=1)
    worker.dispatch_and_attempt(job_id)

    Worker(engine, sandbox, stripe_api_keys={"default": "sk_test_elsewhere_9"}).dispatch_and_attempt(job_id)

    assert job_row(engine, job_id)["outcome"] == "created"
    assert len(sandbox.customers("acct_elsewhere")) == 1


def test_what_was_sent_first_is_sent_ever_after(engine: Engine, worker: Worker, sandbox: Sandbox) -> None:
    job_id = create_meeting(engine, "reset, 424, reset")
    worker.dispatch_and_attempt(job_id)
    change(engine, job_id, payload={"body": {"name": "changed"}}, external_id="changed")
    worker.dispatch_and_attempt(job_id)
    change(engine, job_id, payload={}, context=None)

    worker.dispatch_and_attempt(job_id)
    worker.dispatch_and_attempt(job_id)

    first, *others = sandbox.requests
    assert [request.params for request in others] == [first.params] * 3
    assert {request.idempotency_key for request in others} == {first.idempotency_key}
    assert job_row(engine, job_id)["outcome"] == "created"


def test_a_fetch_asks_the_same_whatever_its_payload_says_later(
    engine: Engine, worker: Worker, sandbox: Sandbox
) -> None:
    job_id = add_fetch(engine, payload={"customer_id": "cus_sandbox_500"})
    worker.dispatch_and_attempt(job_id)
    change(engine, job_id, payload=7)

    worker.dispatch_and_attempt(job_id)

    assert [request.path for request in sandbox.requests] == ["/v1/customers/cus_sandbox_500"] * 2
    assert job_row(engine, job_id)["outcome"] == "found"


def test_a_fetch_that_nobody_answers_is_not_ambiguous(engine: Engine, sandbox: Sandbox) -> None:
    nobody = Worker(engine, sandbox, stripe_api_base=f"http://127.0.0.1:{free_port()}")
    job_id = add_fetch(engine)

    nobody.dispatch_and_attempt(job_id)

    row = job_row(engine, job_id)
    assert (row["state"], row["error"]["code"], row["error"]["type"]) == (
        State.RETRYING,
        "no_answer",
        "api_connection_error",
    )
    assert ledger(engine, job_id)[0]["ambiguous"] is False


def test_a_create_that_found_no_door_is_not_ambiguous(engine: Engine, sandbox: Sandbox) -> None:
    nobody = Worker(engine, sandbox, stripe_api_base=f"http://127.0.0.1:{free_port()}")
    job_id = add_job(engine)

    nobody.dispatch_and_attempt(job_id)

    assert job_row(engine, job_id)["first_sent_at"] is None
    assert CustomerJobs(engine).cancel(job_id)


def test_a_local_copy_that_is_young_enough_is_the_answer(engine: Engine, worker: Worker, sandbox: Sandbox) -> None:
    worker.dispatch_and_attempt(add_job(engine))
    (customer,) = sandbox.customers()
    asked = {"customer_id": customer["id"], "max_age_seconds": 60}
    job_id = add_fetch(engine, payload=asked, customer_id=customer["id"])

    worker.dispatch_and_attempt(job_id)

    row = job_row(engine, job_id)
    assert (row["outcome"], row["result"]["response"]) == ("fresh", customer)
    assert len(sandbox.requests) == 1


def between_statements(engine: Engine, words: str, meanwhile: Callable[[], object], *, after: int = 0) -> None:
    """Let something happen before a statement with these words is executed, behind so many others with them."""

    def before(_: object, __: object, statement: str, *___: object) -> None:
        if words in statement and happens:
            happens.pop()()

    happens: list[Callable[[], object]] = [meanwhile, *(lambda: None for _ in range(after))]
    event.listen(engine, "before_cursor_execute", before)


@pytest.mark.parametrize("database", ["postgresql"])  # SQLite reads one state of things, and lets nobody write between.
def test_a_create_that_is_to_look_meanwhile_is_not_sent(
    engine: Engine, worker: Worker, sandbox: Sandbox, database_url: str
) -> None:
    other = open_engine(database_url)
    job_id = dispatched(engine, create_meeting(engine, "frozen_500_after"))

    def others_try_and_give_up() -> None:
        elsewhere = Worker(other, sandbox)
        elsewhere.attempt(job_id)
        elsewhere.dispatch_and_attempt(job_id)  # The answer is frozen under its key, and it is to look from now on.
        assert job_row(other, dispatched(other, job_id))["reconciling"]

    between_statements(engine, "WITH claimed", others_try_and_give_up)
    recorded = worker.attempt(job_id)
    other.dispose()

    assert recorded is None
    assert len(sandbox.requests) == 2
    assert job_row(engine, job_id)["state"] == State.DISPATCHED


@pytest.mark.parametrize("database", ["postgresql"])  # As above.
def test_a_fetch_that_links_meanwhile_is_not_passed_by(
    engine: Engine, worker: Worker, sandbox: Sandbox, database_url: str
) -> None:
    other = open_engine(database_url)
    customer_id = "cus_sandbox_ok"
    payload = {"customer_id": customer_id, "expand": []}
    fetching = add_fetch(engine, payload=payload, customer_id=customer_id, external_id="user-1")
    job_id = dispatched(engine, add_job(engine, external_id="user-1"))

    def the_fetch_ends() -> None:
        Worker(other, sandbox).dispatch_and_attempt(fetching)

    # Whichever is asked first: for a fetch under way, or for the copy that it writes.
    between_statements(engine, "LIMIT", the_fetch_ends, after=1)
    worker.attempt(job_id)
    other.dispose()

    row = job_row(engine, job_id)
    assert (row["outcome"], row["customer_id"]) == ("linked", customer_id)
    assert [request.method for request in sandbox.requests] == ["GET"]


def test_an_external_id_that_a_fetch_linked_needs_no_create(engine: Engine, worker: Worker, sandbox: Sandbox) -> None:
    worker.dispatch_and_attempt(add_job(engine))
    (customer,) = sandbox.customers()
    fetch = add_fetch(engine, payload={"customer_id": customer["id"]}, external_id="user-1")
    worker.dispatch_and_attempt(fetch)
    job_id = add_job(engine, external_id="user-1")

    worker.dispatch_and_attempt(job_id)

    row = job_row(engine, job_id)
    assert (row["outcome"], row["customer_id"]) == ("linked", customer["id"])
    assert [request.method for request in sandbox.requests] == ["POST", "GET"]


def test_an_answer_outlasts_a_database_that_goes_away(postgres_database_url: str, sandbox: Sandbox) -> None:
    direct = open_engine(postgres_database_url)
    with Proxy.before(postgres_database_url) as proxy:
        behind = open_engine(proxy.through(postgres_database_url))
        worker = Worker(behind, sandbox)
        job_id = dispatched(direct)
        sandbox.hold(after=True)
        thread = threading.Thread(target=worker.attempt, args=(job_id,))
        thread.start()
        sandbox.wait_until_held()
        proxy.refuse()
        proxy.reset()
        sandbox.release()
        until_answered(sandbox)
        before = job_row(direct, job_id)["state"]
        proxy.accept()
        thread.join(30)
        behind.dispose()

    row = job_row(direct, job_id)
    direct.dispose()
    assert before == State.RUNNING
    assert (row["state"], row["outcome"]) == (State.SUCCEEDED, "created")
    assert len(sandbox.requests) == 1


def until_answered(sandbox: Sandbox) -> None:
    sandbox.wait_until_request(lambda request: request.finished_at is not None)


def test_no_transaction_is_open_while_stripe_is_asked(engine: Engine, worker: Worker, sandbox: Sandbox) -> None:
    job_id = dispatched(engine)
    sandbox.hold()
    thread = threading.Thread(target=worker.attempt, args=(job_id,))
    thread.start()
    sandbox.wait_until_held()

    with writing(engine) as transaction:
        locked = transaction.row(select(jobs.c.state).where(jobs.c.id == job_id).with_for_update(nowait=True))
    other = add_job(engine)
    sandbox.release()
    thread.join(10)

    assert locked == {"state": State.RUNNING}
    assert job_row(engine, other)["state"] == State.QUEUED
    assert job_row(engine, job_id)["state"] == State.SUCCEEDED


def test_an_answer_that_comes_too_late_is_refused_and_kept_in_the_ledger(
    engine: Engine, worker: Worker, sandbox: Sandbox
) -> None:
    job_id = dispatched(engine)
    sandbox.hold(after=True)
    thread = threading.Thread(target=worker.attempt, args=(job_id,))
    thread.start()
    sandbox.wait_until_held()
    change(engine, job_id, lease_token="0b1c9f1e-5b0c-4b55-9d2f-0c8b1b0f6a1d")
    sandbox.release()
    thread.join(10)

    (attempt,) = ledger(engine, job_id)
    assert job_row(engine, job_id)["state"] == State.RUNNING
    assert (attempt["verdict"], attempt["http_status"]) == ("succeeded", 200)
    assert events_of(engine, job_id) == []


def test_a_truth_that_comes_after_outcome_unknown_starts_the_job_that_adopts_it(
    engine: Engine, worker: Worker, sandbox: Sandbox
) -> None:
    job_id = dispatched(engine, add_job(engine, external_id="user-1"))
    sandbox.hold(after=True)
    thread = threading.Thread(target=worker.attempt, args=(job_id,))
    thread.start()
    sandbox.wait_until_held()
    given_up = {"state": State.FAILED, "finished_at": now(), "lease_token": None, "lease_expires_at": None}
    change(engine, job_id, **given_up, error={"code": "outcome_unknown"})
    sandbox.release()
    thread.join(10)

    worker.work()

    (new,) = rows(engine, jobs, retry_of=job_id)
    assert (new["outcome"], new["external_id"]) == ("adopted", "user-1")
    assert [customer["id"] for customer in sandbox.customers()] == [new["customer_id"]]


def test_a_long_call_keeps_its_lease(engine: Engine, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.leases.EXTEND_EVERY_SECONDS", 0.05)
    worker = Worker(engine, sandbox)
    job_id = dispatched(engine)
    sandbox.hold()
    thread = threading.Thread(target=worker.attempt, args=(job_id,))
    thread.start()
    sandbox.wait_until_held()
    change(engine, job_id, lease_expires_at=now(1))

    extended = until_lease_lasts(engine, job_id, seconds=10)
    sandbox.release()
    thread.join(10)

    assert extended
    assert job_row(engine, job_id)["state"] == State.SUCCEEDED


def until_lease_lasts(engine: Engine, job_id: str, *, seconds: float) -> bool:
    """Whether the lease is extended that far within five seconds."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with writing(engine) as transaction:
            row = transaction.row(select(jobs.c.lease_expires_at, now().label("at")).where(jobs.c.id == job_id))
        if row is not None and row["lease_expires_at"] - row["at"] > timedelta(seconds=seconds):
            return True
        time.sleep(0.01)
    return False


def test_the_dispatcher_is_woken_by_every_end(engine: Engine, worker: Worker) -> None:
    woken: list[int] = []
    runner = Runner(engine, worker.gateway, when_recorded=lambda: woken.append(1))

    runner.attempt(dispatched(engine), create, RetryPolicy(), worker="w1")

    assert woken == [1]
