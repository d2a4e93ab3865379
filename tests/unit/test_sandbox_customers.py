"""What the sandbox does with customers, asked by Stripe's own library over real HTTP."""

from collections.abc import Iterator
from typing import Any

import pytest
import stripe

from customer_jobs.sandbox import Sandbox
from tests.unit.sandbox_client import Clock, customers, seen

#: Every field of https://docs.stripe.com/api/customers/object that Stripe shows unasked.
FIELDS = {
    *("id", "object", "address", "balance", "created", "currency", "default_source", "delinquent", "description"),
    *("discount", "email", "invoice_prefix", "invoice_settings", "livemode", "metadata", "name"),
    *("next_invoice_sequence", "phone", "preferred_locales", "shipping", "tax_exempt", "test_clock"),
}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sandbox(clock: Clock) -> Iterator[Sandbox]:
    with Sandbox(clock=clock) as running:
        yield running


def refusal(sandbox: Sandbox, params: dict[str, Any]) -> Any:
    """The error with which a create is refused; nothing may have been created."""
    with pytest.raises(stripe.StripeError) as caught:
        customers(sandbox).create(params)
    assert sandbox.customers() == []
    assert seen(caught).http_status == 400
    return seen(caught).error


def test_a_created_customer_can_be_retrieved(sandbox: Sandbox) -> None:
    created = customers(sandbox).create({"email": "jenny@example.com", "name": "Jenny Rosen"})

    found = customers(sandbox).retrieve(created.id)

    assert found.to_dict() == created.to_dict()
    assert found.email == "jenny@example.com"


def test_a_customer_without_parameters_has_every_documented_field(sandbox: Sandbox) -> None:
    created = customers(sandbox).create()

    assert set(created.to_dict()) == FIELDS
    assert created.id.startswith("cus_")
    assert len(created.id) == len("cus_") + 14
    assert (created.balance, created.tax_exempt, created.livemode, created.created) == (0, "none", False, 1_790_000_000)
    assert created.metadata.to_dict() == {}


def test_nested_parameters_arrive_nested(sandbox: Sandbox) -> None:
    created = (
        customers(sandbox)
        .create(
            {
                "address": {"line1": "510 Townsend St", "country": "US"},
                "shipping": {"name": "Jenny", "address": {"city": "Zürich"}},
                "preferred_locales": ["de", "en"],
                "invoice_settings": {"custom_fields": [{"name": "VAT", "value": "1"}], "footer": "thanks"},
                "metadata": {"0": "zero", "external_id": "user-1"},
                "balance": -500,
            }
        )
        .to_dict()
    )

    assert created["address"]["line1"] == "510 Townsend St"
    assert created["address"]["line2"] is None
    assert created["shipping"] == {
        "name": "Jenny",
        "phone": None,
        "address": dict.fromkeys(("country", "line1", "line2", "postal_code", "state")) | {"city": "Zürich"},
    }
    assert created["preferred_locales"] == ["de", "en"]
    assert created["invoice_settings"]["custom_fields"] == [{"name": "VAT", "value": "1"}]
    assert created["metadata"] == {"0": "zero", "external_id": "user-1"}
    assert created["balance"] == -500


@pytest.mark.parametrize("name", ["frobnicate", "id", "stripe_account", "idempotency_key"])
def test_an_unknown_parameter_is_named(sandbox: Sandbox, name: str) -> None:
    error = refusal(sandbox, {name: "x"})

    assert (error.type, error.code, error.param) == ("invalid_request_error", "parameter_unknown", name)
    assert error.message == f"Received unknown parameter: {name}"


def test_unknown_parameters_are_named_together_and_inside_objects(sandbox: Sandbox) -> None:
    assert refusal(sandbox, {"foo": "1", "bar": "2"}).message == "Received unknown parameters: foo, bar"
    assert refusal(sandbox, {"address": {"planet": "Mars"}}).param == "address[planet]"


@pytest.mark.parametrize(
    "email", ["jenny", "jenny@com", " jenny@example.com", "jenny@example.com ", "a@b..com", "a b@c.de"]
)
def test_a_bad_email_is_refused(sandbox: Sandbox, email: str) -> None:
    error = refusal(sandbox, {"email": email})

    assert (error.code, error.param, error.message) == ("email_invalid", "email", f"Invalid email address: {email}")


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"metadata": {str(number): "x" for number in range(51)}}, "metadata"),
        ({"metadata": {"k" * 41: "x"}}, "metadata"),
        ({"metadata": {"k": "x" * 501}}, "metadata[k]"),
        ({"metadata": "text"}, "metadata"),
        ({"metadata": {"nested": {"deeper": "x"}}}, "metadata[nested]"),
        ({"name": "x" * 257}, "name"),
        ({"phone": "1" * 21}, "phone"),
        ({"description": "x" * 5001}, "description"),
        ({"address": "510 Townsend St"}, "address"),
        ({"shipping": {"name": "Jenny"}}, "shipping[address]"),
        ({"preferred_locales": "de"}, "preferred_locales"),
        ({"balance": "much"}, "balance"),
        ({"tax_exempt": "never"}, "tax_exempt"),
        ({"invoice_prefix": "a b"}, "invoice_prefix"),
        ({"source": "tok_1234"}, "source"),
        ({"payment_method": "pm_1234"}, "payment_method"),
        ({"test_clock": "clock_1234"}, "test_clock"),
        ({"expand": ["nonsense"]}, "expand"),
    ],
)
def test_what_stripe_would_not_take_is_refused_by_name(sandbox: Sandbox, params: dict[str, Any], param: str) -> None:
    error = refusal(sandbox, params)

    assert error.type == "invalid_request_error"
    assert error.param == param


def test_brackets_in_a_metadata_key_are_refused(sandbox: Sandbox) -> None:
    assert refusal(sandbox, {"metadata": {"a[b]": "x"}}).type == "invalid_request_error"
    assert refusal(sandbox, {"metadata": {"a]": "x"}}).type == "invalid_request_error"


def test_as_much_as_stripe_takes_is_taken(sandbox: Sandbox) -> None:
    metadata = {f"{number:040}": "x" * 500 for number in range(50)}

    created = customers(sandbox).create({"metadata": metadata, "name": "n" * 256})

    assert created.metadata.to_dict() == metadata


def test_a_declined_card_is_a_card_error(sandbox: Sandbox) -> None:
    with pytest.raises(stripe.CardError) as caught:
        customers(sandbox).create({"source": "tok_chargeDeclined"})

    assert seen(caught).http_status == 402
    assert (seen(caught).code, seen(caught).error.decline_code) == ("card_declined", "generic_decline")


def test_an_update_changes_what_it_names(sandbox: Sandbox) -> None:
    created = customers(sandbox).create({"email": "a@example.com", "name": "A", "metadata": {"k": "1", "gone": "1"}})

    updated = customers(sandbox).update(created.id, {"name": "B", "metadata": {"gone": "", "new": "2"}, "email": ""})

    assert (updated.name, updated.email, updated.metadata.to_dict()) == ("B", None, {"k": "1", "new": "2"})
    assert customers(sandbox).update(created.id, {"metadata": ""}).metadata.to_dict() == {}
    assert customers(sandbox).retrieve(created.id).name == "B"


def test_a_deleted_customer_is_still_found_but_empty(sandbox: Sandbox) -> None:
    created = customers(sandbox).create({"email": "a@example.com"})

    customers(sandbox).delete(created.id)

    remains = {"id": created.id, "object": "customer", "deleted": True}
    assert customers(sandbox).retrieve(created.id).to_dict() == remains
    assert customers(sandbox).list({"email": "a@example.com"}).data == []
    with pytest.raises(stripe.InvalidRequestError, match="No such customer"):
        customers(sandbox).update(created.id, {"name": "B"})
    with pytest.raises(stripe.InvalidRequestError, match="No such customer"):
        customers(sandbox).delete(created.id)


def test_a_missing_customer_is_a_404_that_names_it(sandbox: Sandbox) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        customers(sandbox).retrieve("cus_missing")

    error = seen(caught)
    assert (error.http_status, error.code, error.param) == (404, "resource_missing", "id")
    assert error.error.message == "No such customer: 'cus_missing'"
    assert error.error.doc_url == "https://stripe.com/docs/error-codes/resource-missing"
    assert error.request_id in error.error.to_dict()["request_log_url"]


def test_a_customer_of_the_other_mode_is_missing_with_a_hint(sandbox: Sandbox) -> None:
    live = customers(sandbox, "sk_live_shop_0123456789").create()

    with pytest.raises(stripe.InvalidRequestError) as caught:
        customers(sandbox).retrieve(live.id)

    assert live.livemode is True
    assert seen(caught).error.message == (
        f"No such customer: '{live.id}'; a similar object exists in live mode, "
        "but a test mode key was used to make this request."
    )


def test_a_list_is_newest_first_and_pages_both_ways(sandbox: Sandbox) -> None:
    ids = [customers(sandbox).create({"name": str(number)}).id for number in range(5)]

    first = customers(sandbox).list({"limit": 2})
    second = customers(sandbox).list({"limit": 2, "starting_after": first.data[-1].id})
    back = customers(sandbox).list({"limit": 1, "ending_before": second.data[-1].id})

    assert [item.id for item in first.data] == [ids[4], ids[3]]
    assert (first.has_more, first.url) == (True, "/v1/customers")
    assert [item.id for item in second.data] == [ids[2], ids[1]]
    assert [item.id for item in back.data] == [ids[2]]
    assert back.has_more
    assert [item.id for item in customers(sandbox).list({"limit": 2}).auto_paging_iter()] == ids[::-1]


def test_a_list_by_email_is_case_sensitive_and_exact(sandbox: Sandbox) -> None:
    jenny = customers(sandbox).create({"email": "Jenny@example.com"})
    moved = customers(sandbox).create({"email": "Jenny@example.com"})
    customers(sandbox).update(moved.id, {"email": "jenny@example.com"})

    found = customers(sandbox).list({"email": "Jenny@example.com"})

    assert [item.id for item in found.data] == [jenny.id]
    assert customers(sandbox).list({"email": "Jenny"}).data == []


def test_a_list_by_creation_takes_ranges_and_seconds(sandbox: Sandbox, clock: Clock) -> None:
    ids = []
    for _ in range(4):
        ids.append(customers(sandbox).create().id)
        clock.now += 10

    def found(created: Any) -> list[str]:
        return [item.id for item in customers(sandbox).list({"created": created}).data]

    assert found({"gte": 1_790_000_010, "lt": 1_790_000_030}) == [ids[2], ids[1]]
    assert found({"gt": 1_790_000_010, "lte": 1_790_000_030}) == [ids[3], ids[2]]
    assert found(1_790_000_020) == [ids[2]]


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 101}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"starting_after": "cus_missing"}, "starting_after"),
        ({"created": {"since": 1}}, "created[since]"),
        ({"created": "yesterday"}, "created"),
        ({"name": "Jenny"}, "name"),
        ({"expand": ["tax_ids"]}, "expand"),
    ],
)
def test_a_wrong_list_is_refused_by_name(sandbox: Sandbox, params: dict[str, Any], param: str) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        customers(sandbox).list(params)

    assert (seen(caught).http_status, seen(caught).param) == (400, param)


def test_what_can_be_expanded_is_shown_and_the_rest_refused(sandbox: Sandbox) -> None:
    created = customers(sandbox).create({"expand": ["tax_ids"]})

    found = customers(sandbox).retrieve(created.id, {"expand": ["subscriptions", "sources", "tax", "default_source"]})
    listed = customers(sandbox).list({"expand": ["data.subscriptions"]})

    assert created.tax_ids.data == []
    assert (found.subscriptions.data, found.sources.data) == ([], [])
    assert found.tax.automatic_tax == "unrecognized_location"
    assert listed.data[0].subscriptions.data == []
    with pytest.raises(stripe.InvalidRequestError, match=r"This property cannot be expanded \(email\)\."):
        customers(sandbox).retrieve(created.id, {"expand": ["email"]})
    with pytest.raises(stripe.InvalidRequestError, match="more than 4 levels"):
        customers(sandbox).retrieve(created.id, {"expand": ["subscriptions.data.customer.subscriptions.data"]})


def test_the_dashboard_may_change_and_delete_customers(sandbox: Sandbox) -> None:
    created = customers(sandbox).create({"name": "A"})

    sandbox.update_customer(created.id, name="B", metadata={"by": "hand"})
    changed = customers(sandbox).retrieve(created.id)
    sandbox.delete_customer(created.id)

    assert (changed.name, changed.metadata.to_dict()) == ("B", {"by": "hand"})
    assert customers(sandbox).retrieve(created.id).deleted
    with pytest.raises(KeyError):
        sandbox.delete_customer(created.id)
