"""Every fault of the sandbox's vocabulary: what the caller sees, and whether the deed was done."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
import stripe
from stripe import RequestsClient, StripeClient

from customer_jobs.sandbox import FAULTS, Sandbox, UnknownFaultError
from customer_jobs.sandbox.faults import fault_at, parse_fault, parse_probabilities, parse_script
from tests.unit.sandbox_client import create, customers, seen

#: Status, code and reason of what is answered before the deed, in Stripe's envelope.
REFUSALS: dict[str, tuple[int, str | None, str | None]] = {
    "rate_limit": (429, "rate_limit", "endpoint-rate"),
    "rate_limit_global": (429, "rate_limit", "global-rate"),
    "rate_limit_concurrency": (429, "rate_limit", "endpoint-concurrency"),
    "rate_limit_global_concurrency": (429, "rate_limit", "global-concurrency"),
    "rate_limit_resource": (429, "rate_limit", "resource-specific"),
    "lock_timeout": (429, "lock_timeout", None),
    "key_in_use": (409, "idempotency_key_in_use", None),
    "400": (400, "parameter_invalid_empty", None),
    "401": (401, None, None),
    "401_expired": (401, "api_key_expired", None),
    "402": (402, "card_declined", None),
    "403": (403, None, None),
    "403_account": (403, "account_invalid", None),
    "404": (404, "resource_missing", None),
    "404_other_mode": (404, "resource_missing", None),
    "424": (424, None, None),
    "500": (500, None, None),
    "502": (502, None, None),
    "503": (503, None, None),
    "504": (504, None, None),
}
#: Status of what is not Stripe's envelope, None without any; the deed is not done.
SPOILED = {"html_429": 429, "html_502": 502, "no_error": 500, "reset": None, "close": None, "hang": None}
#: The same after the deed.
LOST = {
    "500_after": 500,
    "502_after": 502,
    "503_after": 503,
    "504_after": 504,
    "html_502_after": 502,
    "no_error_after": 500,
    "reset_after": None,
    "close_after": None,
    "hang_after": None,
    "cut": None,
    "html": 200,
    "empty": 200,
    "garbage": 200,
}
PASSING = {"ok", "slow", "drip", "deleted"}
FROZEN = {"frozen_500", "frozen_500_after"}


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as running:
        yield running


def written(name: str) -> str:
    return f"{name}_20ms" if FAULTS[name].seconds else name


def test_every_fault_of_the_vocabulary_is_tested_here() -> None:
    assert set(FAULTS) == {*REFUSALS, *SPOILED, *LOST, *PASSING, *FROZEN}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_answered_in_stripes_envelope_and_nothing_is_done(sandbox: Sandbox, name: str) -> None:
    status, code, reason = REFUSALS[name]

    with pytest.raises(stripe.StripeError) as caught:
        create(sandbox, "one", metadata={"sandbox": name})
    done = len(sandbox.customers())
    passed = create(sandbox, "one", metadata={"sandbox": name})

    assert (seen(caught).http_status, seen(caught).error.code) == (status, code)
    assert seen(caught).headers.get("Stripe-Rate-Limited-Reason") == reason
    assert done == 0
    assert [customer["id"] for customer in sandbox.customers()] == [passed.id]
    assert [(request.status, request.fault, request.replayed) for request in sandbox.requests] == [
        (status, name, False),
        (200, None, False),
    ]


@pytest.mark.parametrize("name", SPOILED)
def test_a_fault_before_the_deed_leaves_nothing_behind(sandbox: Sandbox, name: str) -> None:
    with pytest.raises(stripe.StripeError) as caught:
        create(sandbox, "one", metadata={"sandbox": written(name)})
    done = len(sandbox.customers())
    passed = create(sandbox, "one", metadata={"sandbox": written(name)})

    assert seen(caught).http_status == SPOILED[name]
    assert isinstance(seen(caught), stripe.APIConnectionError) == (SPOILED[name] is None)
    assert done == 0
    assert [customer["id"] for customer in sandbox.customers()] == [passed.id]
    assert not sandbox.requests[-1].replayed


@pytest.mark.parametrize("name", LOST)
def test_a_fault_after_the_deed_keeps_the_true_answer_under_the_key(sandbox: Sandbox, name: str) -> None:
    with pytest.raises(stripe.StripeError) as caught:
        create(sandbox, "one", metadata={"sandbox": written(name)})
    done = [customer["id"] for customer in sandbox.customers()]
    passed = create(sandbox, "one", metadata={"sandbox": written(name)})

    assert seen(caught).http_status == LOST[name]
    assert isinstance(seen(caught), stripe.APIConnectionError) == (LOST[name] is None)
    assert done == [passed.id]
    assert len(sandbox.customers()) == 1
    assert sandbox.requests[-1].replayed


@pytest.mark.parametrize("name", sorted(FROZEN))
def test_a_frozen_error_comes_back_for_ever(sandbox: Sandbox, name: str) -> None:
    for _ in range(3):
        with pytest.raises(stripe.APIError) as caught:
            create(sandbox, "one", metadata={"sandbox": name})
        assert seen(caught).http_status == 500
        assert seen(caught).headers["Stripe-Should-Retry"] == "false"

    assert [request.replayed for request in sandbox.requests] == [False, True, True]
    assert seen(caught).headers["Idempotent-Replayed"] == "true"
    assert len(sandbox.customers()) == (1 if name == "frozen_500_after" else 0)


def test_a_slow_answer_takes_its_time_and_is_true(sandbox: Sandbox) -> None:
    began = time.monotonic()

    create(sandbox, "one", metadata={"sandbox": "slow_120ms"})
    create(sandbox, "two", metadata={"sandbox": "drip_120ms"})

    assert time.monotonic() - began >= 0.2
    assert len(sandbox.customers()) == 2


def test_a_hanging_answer_outlasts_the_callers_patience(sandbox: Sandbox) -> None:
    patience = RequestsClient(timeout=(1, 0.1))
    client = StripeClient("sk_test_shop_1", base_addresses={"api": sandbox.url}, http_client=patience)

    with pytest.raises(stripe.APIConnectionError, match="Read timed out"):
        client.v1.customers.create({"metadata": {"sandbox": "hang_after"}}, {"max_network_retries": 0})

    assert len(sandbox.customers()) == 1


def test_a_script_runs_one_fault_per_attempt_and_then_lets_pass(sandbox: Sandbox) -> None:
    for _ in range(3):
        with pytest.raises(stripe.StripeError):
            create(sandbox, "one", metadata={"sandbox": "rate_limit*2, 500_after"})
    create(sandbox, "one", metadata={"sandbox": "rate_limit*2, 500_after"})
    with pytest.raises(stripe.RateLimitError):
        create(sandbox, "two", metadata={"sandbox": "rate_limit*2, 500_after"})

    assert [request.status for request in sandbox.requests] == [429, 429, 500, 200, 429]
    assert len(sandbox.customers()) == 1


def test_an_email_can_carry_a_script(sandbox: Sandbox) -> None:
    for _ in range(3):
        with pytest.raises(stripe.StripeError):
            create(sandbox, "one", email="jenny+sandbox.429x2.503@example.com")

    assert create(sandbox, "one", email="jenny+sandbox.429x2.503@example.com").object == "customer"
    assert [request.status for request in sandbox.requests] == [429, 429, 503, 200]


def test_a_customer_id_can_carry_a_script(sandbox: Sandbox) -> None:
    for _ in range(2):
        with pytest.raises(stripe.APIError):
            customers(sandbox).retrieve("cus_sandbox_500x2__id42")

    found = customers(sandbox).retrieve("cus_sandbox_500x2__id42")

    assert found.id == "cus_sandbox_500x2__id42"
    assert customers(sandbox).retrieve(found.id).to_dict() == found.to_dict()
    assert customers(sandbox).retrieve("cus_sandbox_deleted").deleted


def test_a_rule_chooses_by_method_path_and_account(sandbox: Sandbox) -> None:
    created = customers(sandbox).create()
    sandbox.faults.add("500", method="get", path="/v1/customers/*", account="acct_shop")

    with pytest.raises(stripe.APIError):
        customers(sandbox).retrieve(created.id)

    assert customers(sandbox).list().data[0].id == created.id
    assert customers(sandbox, "sk_test_other_1").retrieve("cus_sandbox_ok").object == "customer"
    sandbox.faults.clear()
    assert customers(sandbox).retrieve(created.id).id == created.id


def test_a_rule_ends_after_its_times(sandbox: Sandbox) -> None:
    sandbox.faults.add("reset", times=1)
    sandbox.faults.add("rate_limit*2")

    for kind in (stripe.APIConnectionError, stripe.RateLimitError, stripe.RateLimitError):
        with pytest.raises(kind):
            customers(sandbox).create()

    assert customers(sandbox).create().object == "customer"
    assert sandbox.faults.rules() == []


def test_chance_strikes_as_often_as_asked_and_repeats_with_its_seed() -> None:
    def statuses() -> list[int | None]:
        with Sandbox(faults="500:0.3, 503_after:0.2", seed=7) as sandbox:
            for _ in range(100):
                with contextlib.suppress(stripe.APIError):
                    customers(sandbox).create()
            return [request.status for request in sandbox.requests]

    first = statuses()

    assert first == statuses()
    assert 15 <= first.count(500) <= 45
    assert 8 <= first.count(503) <= 35


@pytest.mark.parametrize("script", ["frobnicate", "500*0", "500*99999", "500_2s", "hang_9999s"])
def test_an_unknown_fault_is_a_clear_error(sandbox: Sandbox, script: str) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        create(sandbox, "one", metadata={"sandbox": script})
    with pytest.raises(UnknownFaultError, match=script.replace("*", r"\*")):
        sandbox.faults.add(script)

    assert script in seen(caught).error.message
    assert seen(caught).param == "metadata[sandbox]"


def test_scripts_are_read_in_all_their_spellings() -> None:
    def names(script: str) -> list[tuple[str, int, float]]:
        return [(fault.name, times, fault.seconds) for fault, times in parse_script(script)]

    expected = [("rate_limit", 2, 0.0), ("hang_after", 1, 2.0), ("html_502_after", 1, 0.0)]
    assert names("429x2, hang_after_2s html_502_after") == expected
    assert names("429X2.HANG_AFTER_2000ms.html_502_after") == expected
    assert names("429*2__hang_after_2s__html_502_after__id7") == expected
    assert names("") == []


def test_attempts_walk_through_a_script() -> None:
    script = parse_script("500x2,503")

    found = [fault_at(script, attempt) for attempt in range(4)]

    assert [fault and fault.name for fault in found] == ["500", "500", "503", None]


@pytest.mark.parametrize("text", ["500", "500:much", "500:1.5", "500:0.6,503:0.6", "frobnicate:0.1", "500,503:0.1"])
def test_probabilities_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|probabilities|unknown"):
        parse_probabilities(text)


@pytest.mark.parametrize("arguments", [{"times": 0}, {"probability": 1.5}])
def test_a_rule_that_makes_no_sense_is_refused(sandbox: Sandbox, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        sandbox.faults.add("500", **arguments)
    with pytest.raises(UnknownFaultError, match="expected one fault"):
        parse_fault("500,503")
