"""Keys by name: what a name is bound to, what happens when Stripe refuses its key, and for whom a call is made."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, update
from structlog.testing import capture_logs

from customer_jobs.database import writing
from customer_jobs.errors import InvalidSetting
from customer_jobs.producer import CustomerJobs
from customer_jobs.request import Request
from customer_jobs.sandbox import Sandbox
from customer_jobs.schema import credentials, jobs, lanes
from customer_jobs.sql import now
from customer_jobs.vocabulary import KEY_REFUSED, State
from tests.builders import (
    EMAIL,
    KEY,
    Worker,
    add_fetch,
    add_job,
    age,
    create,
    dispatched,
    job_row,
    later,
    ledger,
    rows,
    settings_for,
)
from worker.answers import Answer
from worker.credentials import Key, bind
from worker.gateway import Gateway
from worker.retry import RetryPolicy
from worker.runner import ELSEWHERE_PAUSE_SECONDS

THREADS = 16
EXPIRED, VALID = "sk_test_shop_expired", "sk_test_shop_rotated"
TEST_KEY = Key("default", "key_1", livemode=False, account_id="acct_1")


def bound(engine: Engine, *keys: Key) -> dict[str, str]:
    with writing(engine) as transaction:
        return bind(transaction, keys)


def worker_with(engine: Engine, sandbox: Sandbox, key: str, **fields: Any) -> Worker:
    return Worker(engine, sandbox, stripe_api_keys={"default": key}, **fields)


def states(engine: Engine, job_ids: Sequence[str]) -> dict[str, int]:
    """How many jobs are in which state."""
    found: dict[str, int] = {}
    for row in rows(engine, jobs):
        if row["id"] in job_ids:
            found[row["state"]] = found.get(row["state"], 0) + 1
    return found


def test_a_name_is_bound_to_mode_and_account(engine: Engine) -> None:
    accounts = bound(engine, TEST_KEY, Key("eu", "key_2", livemode=True, account_id=None))

    assert accounts == {"default": "acct_1"}
    of_default, of_eu = rows(engine, credentials)
    assert (of_default["name"], of_default["livemode"], of_default["account_id"]) == ("default", False, "acct_1")
    assert (of_eu["name"], of_eu["livemode"], of_eu["account_id"]) == ("eu", True, None)
    assert of_default["key_fingerprint"] == "key_1"


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (Key("default", "key_2", livemode=True, account_id="acct_1"), "is a live key, but in this database"),
        (Key("default", "key_2", livemode=False, account_id="acct_2"), "belongs to acct_2, but in this database"),
    ],
)
def test_a_key_of_another_world_is_refused_with_the_remedy(engine: Engine, key: Key, says: str) -> None:
    bound(engine, TEST_KEY)

    with pytest.raises(InvalidSetting) as refused:
        bound(engine, key)

    assert "STRIPE_API_KEY" in str(refused.value)
    assert says in str(refused.value)
    assert "STRIPE_API_KEY_<NAME>" in str(refused.value)
    assert rows(engine, credentials)[0]["key_fingerprint"] == "key_1"


def test_another_key_of_the_same_account_takes_over(engine: Engine) -> None:
    bound(engine, TEST_KEY)

    accounts = bound(engine, Key("default", "key_2", livemode=False, account_id="acct_1"))

    assert accounts == {"default": "acct_1"}
    assert rows(engine, credentials)[0]["key_fingerprint"] == "key_2"


@pytest.mark.parametrize(
    ("reason", "is_lifted"), [(f"{KEY_REFUSED}: 401", True), ("maintenance", False), (None, False)]
)
def test_a_new_key_lifts_only_the_pause_that_the_old_one_caused(
    engine: Engine, reason: str | None, is_lifted: bool
) -> None:
    bound(engine, TEST_KEY)
    with writing(engine) as transaction:
        transaction.change(update(credentials).values(paused_at=now(), reason=reason))

    bound(engine, Key("default", "key_2", livemode=False, account_id="acct_1"))

    (row,) = rows(engine, credentials)
    assert (row["paused_at"] is None) is is_lifted
    assert row["reason"] == (None if is_lifted else reason)


def test_a_key_whose_account_stripe_does_not_tell_is_taken_at_its_fingerprint(engine: Engine) -> None:
    bound(engine, TEST_KEY)

    same = bound(engine, Key("default", "key_1", livemode=False, account_id=None))
    other = bound(engine, Key("default", "key_2", livemode=False, account_id=None))

    assert (same, other) == ({"default": "acct_1"}, {})


def test_an_account_counts_only_for_the_key_that_it_was_told_for(engine: Engine) -> None:
    bound(engine, TEST_KEY)
    silent = Key("default", "key_2", livemode=False, account_id=None)

    starts = [bound(engine, silent) for _ in range(3)]

    assert starts == [{}] * 3
    with pytest.raises(InvalidSetting, match=r"belongs to acct_2, but .* stands for acct_1;"):
        bound(engine, Key("default", "key_3", livemode=False, account_id="acct_2"))
    assert bound(engine, silent) == {}
    told = bound(engine, Key("default", "key_2", livemode=False, account_id="acct_1"))
    assert [told, bound(engine, silent)] == [{"default": "acct_1"}] * 2


def test_a_key_that_tells_no_account_sends_nothing_again_however_often_a_worker_starts(
    engine: Engine, sandbox: Sandbox
) -> None:
    def started(key: str) -> Worker:
        worker = worker_with(engine, sandbox, key)
        worker.gateway.trust(bound(engine, *worker.gateway.keys()))
        return worker

    job_id = add_job(engine, payload={"body": {"email": EMAIL, "metadata": {"sandbox": "reset_after"}}})
    started(KEY).dispatch_and_attempt(job_id)
    by_mistake = [started("rk_test_elsewhere_noaccount") for _ in range(2)][-1]

    by_mistake.dispatch_and_attempt(job_id)

    assert job_row(engine, job_id)["error"]["code"] == "outcome_unknown"
    assert sandbox.customers("acct_elsewhere") == []


def test_a_worker_asks_stripe_whose_its_keys_are(sandbox: Sandbox) -> None:
    keys = {"default": "sk_test_shop_1", "eu": "sk_live_eu_1", "shy": "rk_test_shop_noaccount", "old": EXPIRED}
    gateway = Gateway(settings_for(stripe_api_base=sandbox.url, stripe_api_keys=keys, allow_live_mode=True))

    shown = gateway.keys()

    assert [(key.credential, key.livemode, key.account_id) for key in shown] == [
        ("default", False, "acct_shop"),
        ("eu", True, "acct_eu"),
        ("old", False, None),
        ("shy", False, None),
    ]
    assert not any("sk_" in repr(key) or "rk_" in repr(key) for key in shown)


def test_each_credential_calls_with_its_own_key(engine: Engine, sandbox: Sandbox) -> None:
    worker = Worker(engine, sandbox, stripe_api_keys={"default": KEY, "eu": "sk_test_eu_1"})
    here, there = add_job(engine), add_job(engine, credential="eu")
    worker.work()

    made = {customer["metadata"]["customer_jobs_id"]: customer for customer in sandbox.customers()}
    assert [job_row(engine, each)["state"] for each in (here, there)] == ["succeeded"] * 2
    assert [each["id"] for each in sandbox.customers(account="acct_shop")] == [made[here]["id"]]
    assert [each["id"] for each in sandbox.customers(account="acct_eu")] == [made[there]["id"]]


def test_a_name_that_no_worker_knows_fails_at_the_first_attempt(engine: Engine, sandbox: Sandbox) -> None:
    worker = Worker(engine, sandbox)
    job_id = add_job(engine, credential="us", external_id="user-1")

    worker.work()

    job = job_row(engine, job_id)
    assert (job["state"], job["error"]["code"], job["attempt"]) == ("failed", "unknown_credential", 1)
    assert "'us'" in job["error"]["remedy"]
    assert job["first_sent_at"] is None
    assert sandbox.requests == []
    assert len(ledger(engine, job_id)) == 1


def test_a_worker_without_a_key_leaves_its_jobs_to_those_that_have_one(engine: Engine, sandbox: Sandbox) -> None:
    job_id = add_job(engine, credential="eu")
    new = Worker(engine, sandbox, stripe_api_keys={"default": KEY, "eu": "sk_test_eu_1"})
    old = Worker(engine, sandbox)

    with capture_logs() as logs:
        for _ in range(3):
            assert old.dispatch_and_attempt(job_id) is None
    put_back = job_row(engine, job_id)
    later(engine, 2)
    new.work()

    assert (put_back["state"], put_back["attempt"], put_back["first_sent_at"]) == (State.RETRYING, 0, None)
    assert put_back["due_at"] > put_back["created_at"] + timedelta(seconds=ELSEWHERE_PAUSE_SECONDS)
    assert [each["credential"] for each in logs if each["event"] == "no key here"] == ["eu"]
    assert (job_row(engine, job_id)["state"], len(ledger(engine, job_id))) == (State.SUCCEEDED, 1)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("key", "status"), [(EXPIRED, 401), ("sk_test_shop_revoked", 401), ("rk_test_shop_nowrite", 403)]
)
def test_with_a_wrong_key_the_queue_waits(engine: Engine, sandbox: Sandbox, key: str, status: int) -> None:
    queued = [add_job(engine, payload={"body": {"email": f"{number}@example.com"}}) for number in range(40)]
    worker = worker_with(engine, sandbox, key)

    worker.work()

    after = states(engine, queued)
    assert (after.pop("failed"), sum(after.values())) == (1, 39)
    assert after.keys() <= {"queued", "retrying"}
    (failed,) = rows(engine, jobs, state="failed")
    assert (failed["error"]["http_status"], failed["error"]["transient"]) == (status, False)
    assert "'default'" in failed["error"]["remedy"]
    (credential,) = rows(engine, credentials)
    assert credential["paused_at"] is not None
    assert str(status) in credential["reason"]
    assert "sk_" not in credential["reason"]
    assert len(sandbox.requests) == 1


def test_of_five_hundred_jobs_and_a_wrong_key_only_those_in_flight_fail(engine: Engine, sandbox: Sandbox) -> None:
    bodies = ({"body": {"email": f"{number}@example.com"}} for number in range(500))
    queued = [job.id for job in CustomerJobs(engine).create_customers(bodies)]
    wrong = worker_with(engine, sandbox, EXPIRED)
    in_the_air = threading.Barrier(THREADS)

    def all_at_once(stripe: Gateway, request: Request) -> Answer:
        in_the_air.wait(10)
        return create(stripe, request)

    with ThreadPoolExecutor(THREADS) as threads:
        for _ in range(5):
            for _ in range(2):
                age(engine, 1, lanes)
                wrong.dispatch.run_once()
            taken, wrong.published[:] = [job_id for _, job_id in wrong.published], []
            list(threads.map(lambda job: wrong.runner.attempt(job, all_at_once, RetryPolicy(), worker="w1"), taken))
    after = states(engine, queued)

    assert after["failed"] == len(sandbox.requests) == THREADS
    assert sum(after.values()) == 500
    right = worker_with(engine, sandbox, VALID)
    for _ in range(2):
        age(engine, 1, lanes)
        right.dispatch.run_once()
    for _, job_id in right.published:
        right.attempt(job_id)
    resumed = states(engine, queued)
    assert (resumed["failed"], resumed["succeeded"]) == (after["failed"], len(right.published))
    assert len(sandbox.customers()) == len(right.published) == THREADS


def test_the_jobs_that_failed_for_the_key_are_retried_by_hand(engine: Engine, sandbox: Sandbox) -> None:
    job_id = add_job(engine, external_id="user-1")
    worker_with(engine, sandbox, EXPIRED).work()
    right = worker_with(engine, sandbox, VALID)

    retried = CustomerJobs(engine).retry(job_id)
    right.work()

    assert job_row(engine, retried.id)["state"] == "succeeded"
    assert [each["metadata"]["external_id"] for each in sandbox.customers()] == ["user-1"]


def test_a_retry_by_hand_tries_the_same_key_again(engine: Engine, sandbox: Sandbox) -> None:
    both = [add_job(engine), add_job(engine)]
    worker = worker_with(engine, sandbox, KEY)
    sandbox.faults.add("403", times=1)  # Until somebody gives the key the permission.
    worker.work()
    (failed,) = rows(engine, jobs, state="failed")

    assert rows(engine, credentials)[0]["paused_at"] is not None
    retried = CustomerJobs(engine).retry(failed["id"])
    later(engine, 2)
    worker.work()

    assert rows(engine, credentials)[0]["paused_at"] is None
    assert states(engine, [*both, retried.id]) == {"failed": 1, "succeeded": 2}


def test_a_worker_with_an_old_key_neither_pauses_nor_fails_the_new_ones_jobs(engine: Engine, sandbox: Sandbox) -> None:
    old = worker_with(engine, sandbox, EXPIRED)
    new = worker_with(engine, sandbox, VALID)
    first, *others = [add_job(engine, payload={"body": {"name": str(number)}}) for number in range(5)]

    old.dispatch_and_attempt(first)
    for job_id in others:
        assert old.dispatch_and_attempt(job_id) is None
    assert rows(engine, credentials)[0]["paused_at"] is None
    assert states(engine, others) == {"retrying": 4}
    later(engine, 2)
    new.work()

    assert states(engine, [first, *others]) == {"failed": 1, "succeeded": 4}


def test_other_credentials_go_on(engine: Engine, sandbox: Sandbox) -> None:
    worker = Worker(engine, sandbox, stripe_api_keys={"default": EXPIRED, "eu": "sk_test_eu_1"})
    lost, made = add_job(engine), add_job(engine, credential="eu")

    worker.work()

    assert (job_row(engine, lost)["state"], job_row(engine, made)["state"]) == ("failed", "succeeded")


def test_a_job_that_was_handed_out_before_the_pause_waits_too(engine: Engine, sandbox: Sandbox) -> None:
    worker = worker_with(engine, sandbox, EXPIRED)
    early, late = add_job(engine), add_job(engine, payload={"body": {}})
    dispatched(engine, late)
    worker.dispatch_and_attempt(early)

    assert worker.attempt(late) is None

    row = job_row(engine, late)
    assert (row["state"], row["attempt"], ledger(engine, late)) == (State.RETRYING, 0, [])


def test_a_connected_account_is_named_to_stripe(engine: Engine, sandbox: Sandbox) -> None:
    worker = Worker(engine, sandbox)
    created = add_job(engine, stripe_account="acct_connected")
    fetched = add_fetch(
        engine,
        stripe_account="acct_connected",
        payload={"customer_id": "cus_sandbox_ok", "expand": []},
        customer_id="cus_sandbox_ok",
    )
    worker.work()

    assert states(engine, [created, fetched]) == {"succeeded": 2}
    assert {request.stripe_account for request in sandbox.requests} == {"acct_connected"}
    assert job_row(engine, created)["customer_id"] in {
        each["id"] for each in sandbox.customers(account="acct_connected")
    }
    assert job_row(engine, created)["result"]["response"]["email"] == EMAIL


def test_an_account_out_of_reach_is_its_jobs_trouble_and_nobody_elses(engine: Engine, sandbox: Sandbox) -> None:
    worker = Worker(engine, sandbox)
    lost = add_job(engine, stripe_account="acct_denied", external_id="user-1")
    made = add_job(engine)
    worker.work()

    job = job_row(engine, lost)
    assert (job["state"], job["error"]["code"], job["error"]["http_status"]) == ("failed", "account_invalid", 403)
    assert "stripe_account" in job["error"]["remedy"]
    assert job["first_sent_at"] is None
    assert job_row(engine, made)["state"] == "succeeded"
    assert rows(engine, credentials)[0]["paused_at"] is None


def test_one_name_seen_by_many_at_once_is_one_row(engine: Engine) -> None:
    barrier = threading.Barrier(4)

    def see(_: int) -> dict[str, str]:
        barrier.wait()
        return bound(engine, TEST_KEY)

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(see, range(4))) == [{"default": "acct_1"}] * 4

    assert len(rows(engine, credentials)) == 1
