"""What Stripe answers, as the real library hands it over, and what the gateway makes of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from typing import Any

import pytest

from customer_jobs.embedded import free_port
from customer_jobs.sandbox import Sandbox
from tests.builders import EMAIL, settings_for
from worker.answers import (
    Answer,
    Answered,
    Frozen,
    KeyRefused,
    KeyReused,
    NotAnswered,
    RateLimited,
    Rejected,
    Transient,
)
from worker.gateway import Gateway


@pytest.fixture(scope="module")
def _sandbox() -> Iterator[Sandbox]:
    with Sandbox() as running:
        yield running


@pytest.fixture
def sandbox(_sandbox: Sandbox) -> Sandbox:
    _sandbox.clear()
    _sandbox.faults.clear()
    return _sandbox


@pytest.fixture
def gateway(sandbox: Sandbox) -> Iterator[Gateway]:
    with_keys = settings_for(
        stripe_api_base=sandbox.url,
        stripe_api_keys={
            "default": "sk_test_shop_0123456789",
            "expired": "sk_test_shop_expired",
            "revoked": "sk_test_shop_revoked",
            "reads_nothing": "rk_test_shop_noread_1",
            "writes_nothing": "rk_test_shop_nowrite_1",
        },
    )
    made = Gateway(with_keys)
    yield made
    made.close()


def create(
    gateway: Gateway, key: str = "key-1", credential: str = "default", account: str | None = None, **params: Any
) -> Answer:
    return gateway.create_customer(
        {"email": EMAIL} | params, credential=credential, stripe_account=account, idempotency_key=key
    )


def create_meeting(gateway: Gateway, fault: str, key: str = "key-1") -> Answer:
    return create(gateway, key, metadata={"sandbox": fault})


def fetch(gateway: Gateway, customer_id: str, credential: str = "default") -> Answer:
    return gateway.fetch_customer(customer_id, credential=credential, stripe_account=None)


def plain(value: Any) -> bool:
    """Whether a value is made of nothing but Python's own types and our dataclasses."""
    if is_dataclass(value) and not isinstance(value, type):
        return type(value).__module__.startswith(("worker.", "customer_jobs.")) and plain(asdict(value))
    if isinstance(value, dict):
        return all(plain(each) for pair in value.items() for each in pair)
    if isinstance(value, list | tuple):
        return all(map(plain, value))
    return value is None or type(value) in (str, int, float, bool)


def test_a_created_customer_is_answered(gateway: Gateway, sandbox: Sandbox) -> None:
    answer = create(gateway, name="Zoë", metadata={"a": "b"}, address={"city": "Köln"}, preferred_locales=["de", "en"])

    assert isinstance(answer, Answered)
    (customer,) = sandbox.customers()
    assert answer.body == customer
    assert (answer.http_status, answer.replayed) == (200, False)
    assert answer.request_id == sandbox.requests[0].request_id == answer.headers["Request-Id"]
    assert plain(answer)
    assert json.loads(json.dumps(answer.body)) == customer


def test_the_same_key_brings_the_same_customer_back(gateway: Gateway, sandbox: Sandbox) -> None:
    first, again = create(gateway), create(gateway)

    assert isinstance(first, Answered)
    assert isinstance(again, Answered)
    assert again.replayed
    assert again.body == first.body
    assert len(sandbox.customers()) == 1


def test_what_is_asked_reaches_stripe_and_nothing_else(gateway: Gateway, sandbox: Sandbox) -> None:
    create(gateway, "customer-jobs-1", account="acct_other")
    gateway.fetch_customer("cus_1", expand=["tax"], credential="default", stripe_account="acct_other")

    created, fetched = sandbox.requests
    assert (created.method, created.path, created.params) == ("POST", "/v1/customers", {"email": EMAIL})
    assert (created.idempotency_key, created.stripe_account) == ("customer-jobs-1", "acct_other")
    assert (fetched.method, fetched.path, fetched.params) == ("GET", "/v1/customers/cus_1", {"expand": ["tax"]})
    assert (fetched.idempotency_key, fetched.stripe_account) == (None, "acct_other")


def test_a_customer_id_cannot_be_another_path(gateway: Gateway, sandbox: Sandbox) -> None:
    fetch(gateway, "../charges")

    assert sandbox.requests[0].path == "/v1/customers/..%2Fcharges"


#: Fault: what a create comes back as, whether Stripe may have executed it.
OF_A_CREATE: dict[str, tuple[type[NotAnswered], bool]] = {
    "rate_limit": (RateLimited, False),
    "rate_limit_global": (RateLimited, False),
    "rate_limit_concurrency": (RateLimited, False),
    "rate_limit_global_concurrency": (RateLimited, False),
    "rate_limit_resource": (RateLimited, False),
    "lock_timeout": (Transient, False),
    "key_in_use": (Transient, False),
    "424": (Transient, False),
    "html_429": (Transient, True),
    "400": (Rejected, False),
    "401": (KeyRefused, False),
    "401_expired": (KeyRefused, False),
    "402": (Rejected, False),
    "403": (KeyRefused, False),
    "403_account": (Rejected, False),
    "404": (Rejected, False),
    "404_other_mode": (Rejected, False),
    "500": (Transient, True),
    "502": (Transient, True),
    "503": (Transient, True),
    "504": (Transient, True),
    "html_502": (Transient, True),
    "no_error": (Transient, True),
    "reset": (Transient, True),
    "close": (Transient, True),
    "hang_100ms": (Transient, True),
    "500_after": (Transient, True),
    "502_after": (Transient, True),
    "503_after": (Transient, True),
    "504_after": (Transient, True),
    "html_502_after": (Transient, True),
    "no_error_after": (Transient, True),
    "reset_after": (Transient, True),
    "close_after": (Transient, True),
    "hang_after_100ms": (Transient, True),
    "cut": (Transient, True),
    "html": (Transient, True),
    "empty": (Transient, True),
    "garbage": (Transient, True),
    "frozen_500": (Transient, True),
    "frozen_500_after": (Transient, True),
}


@pytest.mark.parametrize("fault", OF_A_CREATE)
def test_a_create_that_meets_a_fault(gateway: Gateway, sandbox: Sandbox, fault: str) -> None:
    kind, ambiguous = OF_A_CREATE[fault]

    answer = create_meeting(gateway, fault)

    assert type(answer) is kind
    assert isinstance(answer, NotAnswered)
    assert (isinstance(answer, Transient) and answer.ambiguous) == ambiguous
    assert not answer.replayed
    assert len(sandbox.requests) == 1
    assert answer.problem.http_status == sandbox.requests[0].status
    assert plain(answer)
    assert EMAIL not in repr(answer.problem)


#: Fault: what a fetch comes back as; it changes nothing, so it is never ambiguous.
OF_A_FETCH: dict[str, type[NotAnswered]] = {
    "rate_limit": RateLimited,
    "lock_timeout": Transient,
    "html_429": Transient,
    "401": KeyRefused,
    "403": KeyRefused,
    "403_account": Rejected,
    "404": Rejected,
    "404_other_mode": Rejected,
    "500": Transient,
    "html_502": Transient,
    "reset": Transient,
    "close": Transient,
    "cut": Transient,
    "html": Transient,
    "empty": Transient,
    "garbage": Transient,
}


@pytest.mark.parametrize("fault", OF_A_FETCH)
def test_a_fetch_that_meets_a_fault(gateway: Gateway, sandbox: Sandbox, fault: str) -> None:
    answer = fetch(gateway, f"cus_sandbox_{fault}")

    assert type(answer) is OF_A_FETCH[fault]
    assert not (isinstance(answer, Transient) and answer.ambiguous)
    assert len(sandbox.requests) == 1
    assert plain(answer)


@pytest.mark.parametrize("fault", ["frozen_500", "frozen_500_after"])
def test_a_500_that_is_repeated_is_frozen(gateway: Gateway, sandbox: Sandbox, fault: str) -> None:
    create_meeting(gateway, fault)

    again = create_meeting(gateway, fault)

    assert isinstance(again, Frozen)
    assert again.replayed
    assert len(sandbox.requests) == 2


@pytest.mark.parametrize("fault", ["500_after", "reset_after", "cut", "garbage"])
def test_the_deed_behind_a_lost_answer_is_replayed(gateway: Gateway, sandbox: Sandbox, fault: str) -> None:
    create_meeting(gateway, fault)

    again = create_meeting(gateway, fault)

    assert isinstance(again, Answered)
    assert again.replayed
    assert [again.body["id"]] == [customer["id"] for customer in sandbox.customers()]


def test_a_key_with_other_parameters_is_named(gateway: Gateway) -> None:
    create(gateway)

    answer = create(gateway, name="Somebody Else")

    assert isinstance(answer, KeyReused)
    assert (answer.problem.http_status, answer.problem.type) == (400, "idempotency_error")


def test_a_refusal_keeps_stripes_own_words(gateway: Gateway, sandbox: Sandbox) -> None:
    declined = create_meeting(gateway, "402")
    missing = fetch(gateway, "cus_missing")

    assert isinstance(declined, Rejected)
    problem = declined.problem
    assert (problem.type, problem.code, problem.http_status) == ("card_error", "card_declined", 402)
    assert problem.decline_code is not None
    assert problem.request_id == sandbox.requests[0].request_id
    assert isinstance(missing, Rejected)
    assert (missing.problem.code, missing.problem.param) == ("resource_missing", "id")
    assert "cus_missing" in (missing.problem.message or "")


def test_a_limit_says_which_it_was(gateway: Gateway) -> None:
    answers = [create_meeting(gateway, fault, key=fault) for fault in ("rate_limit", "rate_limit_global_concurrency")]

    assert [isinstance(answer, RateLimited) and answer.reason for answer in answers] == [
        "endpoint-rate",
        "global-concurrency",
    ]


@pytest.mark.parametrize(
    ("credential", "status", "code"),
    [("expired", 401, "api_key_expired"), ("revoked", 401, None), ("writes_nothing", 403, None)],
)
def test_a_key_that_may_not_create_is_told_apart(
    gateway: Gateway, credential: str, status: int, code: str | None
) -> None:
    answer = create(gateway, credential=credential)

    assert isinstance(answer, KeyRefused)
    assert (answer.problem.http_status, answer.problem.code) == (status, code)


def test_a_key_that_may_not_read_is_told_apart(gateway: Gateway) -> None:
    assert isinstance(fetch(gateway, "cus_1", credential="reads_nothing"), KeyRefused)


def test_an_account_out_of_reach_is_the_jobs_own_problem(gateway: Gateway) -> None:
    answer = create(gateway, account="acct_denied")

    assert isinstance(answer, Rejected)
    assert answer.problem.code == "account_invalid"


def test_a_deleted_customer_is_an_answer(gateway: Gateway, sandbox: Sandbox) -> None:
    created = create(gateway)
    assert isinstance(created, Answered)
    sandbox.delete_customer(created.body["id"])

    answer = fetch(gateway, created.body["id"])

    assert isinstance(answer, Answered)
    assert answer.body["deleted"] is True


def test_a_list_is_a_page_of_customers(gateway: Gateway) -> None:
    create(gateway, "one")
    create(gateway, "two", email="other@example.com")

    answer = gateway.list_customers({"email": EMAIL, "limit": 100}, credential="default", stripe_account=None)

    assert isinstance(answer, Answered)
    assert [customer["email"] for customer in answer.body["data"]] == [EMAIL]
    assert plain(answer)


def test_a_connection_that_is_refused_was_certainly_not_used() -> None:
    nobody = Gateway(settings_for(stripe_api_base=f"http://127.0.0.1:{free_port()}"))

    answer = create(nobody)

    assert isinstance(answer, Transient)
    assert not answer.ambiguous
    assert answer.problem.code == "no_answer"
    assert answer.problem.http_status is None


def test_a_host_without_an_address_was_certainly_not_reached() -> None:
    nowhere = Gateway(settings_for(stripe_api_base="http://stripe.invalid"))

    answer = create(nowhere)

    assert isinstance(answer, Transient)
    assert not answer.ambiguous


def test_a_read_that_takes_too_long_is_ambiguous(sandbox: Sandbox) -> None:
    impatient = Gateway(settings_for(stripe_api_base=sandbox.url), read_timeout_seconds=0.1)

    answer = create_meeting(impatient, "hang_after_5s")
    impatient.close()

    assert isinstance(answer, Transient)
    assert answer.ambiguous
    assert "timeout" in (answer.problem.message or "").lower()


def test_a_key_is_named_without_being_shown(gateway: Gateway) -> None:
    named = gateway.fingerprint("default")

    assert named == Gateway(settings_for()).fingerprint("default")
    assert named != gateway.fingerprint("expired")
    assert "sk_test" not in named


def test_the_account_of_a_key_is_asked_for_once(gateway: Gateway, sandbox: Sandbox) -> None:
    shown = gateway.keys()
    gateway.keys()

    keys = {key.credential: key for key in shown}
    assert keys["default"].account_id == "acct_shop"
    assert not keys["default"].livemode
    assert keys["expired"].account_id is None
    assert gateway.identities("default") == ("acct_shop", gateway.fingerprint("default"))
    assert gateway.identities("expired") == (gateway.fingerprint("expired"),)
    of_default = [request for request in sandbox.requests if request.endpoint == "account" and request.status == 200]
    assert len({request.key for request in of_default}) == len(of_default)


def test_threads_share_a_gateway(gateway: Gateway, sandbox: Sandbox) -> None:
    threads = [threading.Thread(target=create, args=(gateway, f"key-{number}")) for number in range(8)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(sandbox.customers()) == 8
    assert len(sandbox.requests) == 8
