"""What the sandbox remembers under an idempotency key."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import stripe

from customer_jobs.sandbox import Sandbox
from tests.unit.sandbox_client import Clock, create, customers, seen


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sandbox(clock: Clock) -> Iterator[Sandbox]:
    with Sandbox(clock=clock) as running:
        yield running


def test_the_same_key_brings_back_the_first_answer(sandbox: Sandbox) -> None:
    first = create(sandbox, "one", email="jenny@example.com")

    second = create(sandbox, "one", email="jenny@example.com")

    assert second.to_dict() == first.to_dict()
    assert len(sandbox.customers()) == 1
    assert [request.replayed for request in sandbox.requests] == [False, True]
    headers = second.last_response.headers
    assert headers["Idempotent-Replayed"] == "true"
    assert headers["Original-Request"] == first.last_response.request_id
    assert headers["Request-Id"] != first.last_response.request_id
    assert headers["Idempotency-Key"] == "one"
    assert "Idempotent-Replayed" not in first.last_response.headers


def test_other_parameters_under_a_key_are_an_idempotency_error(sandbox: Sandbox) -> None:
    create(sandbox, "one", email="jenny@example.com")

    with pytest.raises(stripe.IdempotencyError) as caught:
        create(sandbox, "one", email="other@example.com")

    assert (seen(caught).http_status, seen(caught).error.code) == (400, None)
    assert "can only be used with the same parameters they were first used with" in seen(caught).error.message
    assert len(sandbox.customers()) == 1


def test_a_key_belongs_to_one_endpoint(sandbox: Sandbox) -> None:
    created = create(sandbox, "one")

    with pytest.raises(stripe.IdempotencyError, match="for the same endpoint they were first used for"):
        customers(sandbox).update(created.id, {}, {"idempotency_key": "one"})


def test_a_key_in_use_is_a_conflict(sandbox: Sandbox) -> None:
    sandbox.hold()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(create, sandbox, "one")
        sandbox.wait_until_held()

        with pytest.raises(stripe.APIError) as caught:
            create(sandbox, "one")
        sandbox.release()

        assert seen(caught).http_status == 409
        assert seen(caught).error.code == "idempotency_key_in_use"
        assert seen(caught).headers["Stripe-Should-Retry"] == "true"
        assert create(sandbox, "one").id == first.result().id


def test_a_key_is_forgotten_after_a_day_and_executes_anew(sandbox: Sandbox, clock: Clock) -> None:
    first = create(sandbox, "one")
    clock.now += 24 * 3600 - 1
    assert create(sandbox, "one").id == first.id

    clock.now += 1

    assert create(sandbox, "one").id != first.id
    assert len(sandbox.customers()) == 2


def test_a_failed_validation_leaves_the_key_free(sandbox: Sandbox) -> None:
    with pytest.raises(stripe.InvalidRequestError):
        create(sandbox, "one", email="nonsense")

    assert create(sandbox, "one", email="jenny@example.com").email == "jenny@example.com"


def test_a_key_that_is_too_long_is_refused(sandbox: Sandbox) -> None:
    create(sandbox, "k" * 255)

    with pytest.raises(stripe.InvalidRequestError, match="at most 255 characters"):
        create(sandbox, "k" * 256)


def test_a_declined_card_is_remembered(sandbox: Sandbox) -> None:
    for _ in range(2):
        with pytest.raises(stripe.CardError):
            create(sandbox, "one", source="tok_chargeDeclined")

    assert [request.replayed for request in sandbox.requests] == [False, True]


def test_a_key_on_a_get_has_no_effect(sandbox: Sandbox) -> None:
    created = create(sandbox, "one")

    found = customers(sandbox).retrieve(created.id, {}, {"idempotency_key": "one"})

    assert found.id == created.id
    assert sandbox.requests[-1].idempotency_key is None


def test_many_at_once_under_one_key_make_one_customer(sandbox: Sandbox) -> None:
    together = threading.Barrier(8)

    def race() -> int:
        together.wait()
        try:
            create(sandbox, "one")
        except stripe.APIError as error:
            return int(error.http_status or 0)
        return 200

    with ThreadPoolExecutor(8) as pool:
        statuses = [future.result() for future in [pool.submit(race) for _ in range(8)]]

    assert set(statuses) <= {200, 409}
    assert 200 in statuses
    assert len(sandbox.customers()) == 1
