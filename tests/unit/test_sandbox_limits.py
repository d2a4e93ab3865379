"""The sandbox's limiter: pure, and as the library meets it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import stripe

from customer_jobs.sandbox import Limits, Sandbox
from customer_jobs.sandbox.limits import Limiter, changed
from tests.unit.sandbox_client import customers, seen


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as running:
        yield running


def admitted(limiter: Limiter, requests: int, now: float, endpoint: str = "create") -> int:
    return [limiter.admit("acct_shop", endpoint, now) for _ in range(requests)].count(None)


def test_a_bucket_gives_its_capacity_at_once_and_then_the_rate() -> None:
    limiter = Limiter(Limits(rate=25, bucket_seconds=1.0))

    assert admitted(limiter, 100, now=0.0) == 25
    assert admitted(limiter, 100, now=0.2) == 5
    assert admitted(limiter, 100, now=60.0) == 25


def test_a_bucket_without_seconds_still_holds_one_request() -> None:
    limiter = Limiter(Limits(rate=25, bucket_seconds=0.0))

    assert [admitted(limiter, 10, now=moment) for moment in (0.0, 0.02, 0.04, 1.0)] == [1, 0, 1, 1]


def test_endpoints_have_their_own_allowance_under_that_of_the_account() -> None:
    limiter = Limiter(Limits(rate=4, account_rate=6))

    assert admitted(limiter, 10, now=0.0) == 4
    assert limiter.admit("acct_shop", "create", 0.0) == "endpoint-rate"
    assert admitted(limiter, 10, now=0.0, endpoint="retrieve") == 2
    assert limiter.admit("acct_shop", "retrieve", 0.0) == "global-rate"
    assert limiter.admit("acct_other", "create", 0.0) is None


def test_requests_under_way_are_limited_until_they_leave() -> None:
    limiter = Limiter(Limits(concurrency=1, account_concurrency=2))

    assert limiter.admit("acct_shop", "create", 0.0) is None
    assert limiter.admit("acct_shop", "create", 0.0) == "endpoint-concurrency"
    assert limiter.admit("acct_shop", "retrieve", 0.0) is None
    assert limiter.admit("acct_shop", "list", 0.0) == "global-concurrency"

    limiter.leave("acct_shop", "create")

    assert limiter.admit("acct_shop", "create", 0.0) is None


def test_a_refused_request_uses_nothing_up() -> None:
    limiter = Limiter(Limits(rate=1, account_rate=5))

    assert admitted(limiter, 100, now=0.0) == 1
    assert admitted(limiter, 100, now=0.0, endpoint="retrieve") == 1
    assert admitted(limiter, 100, now=0.0, endpoint="list") == 1


@pytest.mark.parametrize("changes", [{"rate": 0}, {"rate": -1}, {"speed": 1}, {"rate": "fast"}, {"bucket_seconds": -1}])
def test_limits_that_make_no_sense_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must|unknown"):
        changed(Limits(), changes)


def test_a_rate_limited_request_was_not_executed_and_says_why(sandbox: Sandbox) -> None:
    sandbox.set_limits(rate=0.001, bucket_seconds=0.0)
    created = customers(sandbox).create({"email": "a@example.com"}, {"idempotency_key": "one"})

    with pytest.raises(stripe.RateLimitError) as caught:
        customers(sandbox).create({"email": "b@example.com"}, {"idempotency_key": "two"})

    assert seen(caught).error.code == "rate_limit"
    assert seen(caught).headers["Stripe-Rate-Limited-Reason"] == "endpoint-rate"
    assert seen(caught).headers["Stripe-Should-Retry"] == "false"
    assert "Retry-After" not in seen(caught).headers
    assert sandbox.requests[-1].rate_limited_reason == "endpoint-rate"
    assert customers(sandbox).retrieve(created.id).id == created.id
    assert len(sandbox.customers()) == 1


def test_limits_can_be_changed_in_mid_run(sandbox: Sandbox) -> None:
    sandbox.set_limits(account_rate=0.001, bucket_seconds=0.0)
    customers(sandbox).create()
    with pytest.raises(stripe.RateLimitError) as caught:
        customers(sandbox).list()
    assert seen(caught).headers["Stripe-Rate-Limited-Reason"] == "global-rate"

    sandbox.set_limits(account_rate=None)

    assert len(customers(sandbox).list().data) == 1


def test_too_many_at_once_are_refused(sandbox: Sandbox) -> None:
    sandbox.set_limits(concurrency=1)
    sandbox.hold()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(customers(sandbox).create)
        sandbox.wait_until_held()

        with pytest.raises(stripe.RateLimitError) as caught:
            customers(sandbox).create()
        sandbox.release()

        assert seen(caught).headers["Stripe-Rate-Limited-Reason"] == "endpoint-concurrency"
        assert first.result().object == "customer"
    assert customers(sandbox).create().object == "customer"
