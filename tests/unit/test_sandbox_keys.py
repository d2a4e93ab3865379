"""Which keys the sandbox accepts, and whose customers they show."""

import base64
import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest
import stripe

from customer_jobs.sandbox import Sandbox
from tests.unit.sandbox_client import client, customers, seen


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as running:
        yield running


def get(sandbox: Sandbox, path: str, headers: dict[str, str]) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", sandbox.port, timeout=5)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    status, document = answer.status, json.loads(answer.read())
    connection.close()
    return status, document


def test_two_keys_of_one_account_show_the_same_customers(sandbox: Sandbox) -> None:
    created = client(sandbox, "sk_test_shop_old").customers.create()

    found = client(sandbox, "rk_test_shop_new").customers.retrieve(created.id)

    assert found.id == created.id
    assert client(sandbox, "sk_test_shop_new").accounts.retrieve_current().id == "acct_shop"


def test_accounts_and_modes_are_worlds_apart(sandbox: Sandbox) -> None:
    created = client(sandbox, "sk_test_shop_1").customers.create({}, {"idempotency_key": "same"})
    other = client(sandbox, "sk_test_other_1").customers.create({}, {"idempotency_key": "same"})
    live = client(sandbox, "sk_live_shop_1").customers.create({}, {"idempotency_key": "same"})

    assert len({created.id, other.id, live.id}) == 3
    assert [customer["id"] for customer in sandbox.customers("acct_shop", "test")] == [created.id]
    with pytest.raises(stripe.InvalidRequestError):
        client(sandbox, "sk_test_other_1").customers.retrieve(created.id)


def test_basic_authentication_is_as_good_as_bearer(sandbox: Sandbox) -> None:
    basic = base64.b64encode(b"sk_test_shop:").decode()

    status, document = get(sandbox, "/v1/account", {"Authorization": f"Basic {basic}"})

    assert (status, document["id"]) == (200, "acct_shop")


@pytest.mark.parametrize(
    ("authorization", "message"),
    [
        ("", "You did not provide an API key."),
        ("Bearer", "You did not provide an API key."),
        ("Basic !!!", "You did not provide an API key."),
        ("Bearer nonsense-1234", "Invalid API Key provided: ****1234"),
        ("Bearer sk_test_shop_revoked_1234", "Invalid API Key provided: sk_test_****1234"),
        ("Bearer pk_test_shop_1234", "Invalid API Key provided: pk_test_****1234"),
    ],
)
def test_a_bad_key_is_a_401_without_a_code(sandbox: Sandbox, authorization: str, message: str) -> None:
    status, document = get(sandbox, "/v1/customers", {"Authorization": authorization})

    assert status == 401
    assert document["error"]["message"].startswith(message)
    assert "code" not in document["error"]


def test_an_expired_key_says_so(sandbox: Sandbox) -> None:
    with pytest.raises(stripe.AuthenticationError) as caught:
        client(sandbox, "sk_test_shop_expired_1234").customers.create()

    assert seen(caught).error.code == "api_key_expired"
    assert seen(caught).error.message == "Expired API Key provided: sk_test_****1234"


def test_a_restricted_key_lacks_the_permission_it_names(sandbox: Sandbox) -> None:
    with pytest.raises(stripe.PermissionError) as writing:
        customers(sandbox, "rk_test_shop_nowrite").create()
    with pytest.raises(stripe.PermissionError) as reading:
        customers(sandbox, "rk_test_shop_noread").list()

    assert seen(writing).error.message.endswith(
        "on account 'acct_shop'. Having the 'rak_customer_write' permission would allow this request to continue."
    )
    assert "'rak_customer_read'" in seen(reading).error.message
    assert customers(sandbox, "rk_test_shop_nowrite").list().data == []


def test_a_connected_account_has_its_own_customers(sandbox: Sandbox) -> None:
    platform = client(sandbox, "sk_test_platform_1")
    created = platform.customers.create({}, {"stripe_account": "acct_seller"})

    assert client(sandbox, "sk_test_seller_1").customers.retrieve(created.id).id == created.id
    assert created.last_response.headers["Stripe-Account"] == "acct_seller"
    with pytest.raises(stripe.InvalidRequestError):
        platform.customers.retrieve(created.id)


@pytest.mark.parametrize("account", ["acct_denied1", "acct_unknown", "nonsense"])
def test_an_account_out_of_reach_is_a_403(sandbox: Sandbox, account: str) -> None:
    with pytest.raises(stripe.PermissionError) as caught:
        client(sandbox, "sk_test_platform_1234").customers.create({}, {"stripe_account": account})

    assert seen(caught).error.code == "account_invalid"
    assert seen(caught).error.message == (
        f"The provided key 'sk_test_****1234' does not have access to account '{account}' "
        "(or that account does not exist). Application access may have been revoked."
    )


def test_the_log_never_holds_a_whole_key(sandbox: Sandbox) -> None:
    client(sandbox, "sk_test_shop_supersecret1234").customers.create()

    assert sandbox.requests[-1].key == "sk_test_****1234"
    assert "supersecret" not in repr(sandbox.requests)
