"""What the sandbox does with customers, asked by Stripe's own library over real HTTP."""

from collections.abc import Iterator

import pytest
import stripe

from customer_jobs.sandbox import Sandbox


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as running:
        yield running


def client(sandbox: Sandbox, key: str = "sk_test_shop_0123456789") -> stripe.StripeClient:
    return stripe.StripeClient(key, base_addresses={"api": sandbox.url}, max_network_retries=0)


def test_a_created_customer_can_be_retrieved(sandbox: Sandbox) -> None:
    created = client(sandbox).v1.customers.create({"email": "jenny@example.com", "name": "Jenny Rosen"})

    found = client(sandbox).v1.customers.retrieve(created.id)

    assert found.to_dict() == created.to_dict()
    assert created.id.startswith("cus_")
    assert created.email == "jenny@example.com"


def test_the_same_idempotency_key_brings_back_the_first_answer(sandbox: Sandbox) -> None:
    first = client(sandbox).v1.customers.create({"email": "jenny@example.com"}, {"idempotency_key": "one"})

    second = client(sandbox).v1.customers.create({"email": "jenny@example.com"}, {"idempotency_key": "one"})

    assert second.id == first.id
    assert [request.replayed for request in sandbox.requests] == [False, True]
    assert len(sandbox.customers()) == 1
