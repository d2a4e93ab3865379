"""What is read out of an event, which customer it is about, and which secrets the environment names."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
import stripe

from customer_jobs.errors import InvalidSetting
from customer_jobs.sandbox import sign
from customer_jobs.sandbox.webhooks import thin
from customer_jobs.webhooks import RULES, InvalidEvent, Rule, webhook_secrets
from customer_jobs.webhooks.event import parsed, read_event
from customer_jobs.webhooks.rules import customer_of, listing_types
from customer_jobs.webhooks.secrets import key_is_live

SECRET = "whsec_test"


def snapshot(type_: str = "customer.updated", item: Any = None, **members: Any) -> dict[str, Any]:
    return {
        "id": "evt_1",
        "object": "event",
        "type": type_,
        "created": 1_800_000_000,
        "livemode": False,
        "data": {"object": {"id": "cus_1", "object": "customer"} if item is None else item},
        "request": {"id": "req_1", "idempotency_key": "one"},
        **members,
    }


def test_a_snapshot_and_its_thin_notification_say_the_same() -> None:
    event = snapshot(account="acct_1")

    full, small = read_event(event), read_event(thin(event))

    for read in (full, small):
        assert (read.id, read.livemode, read.stripe_account, read.idempotency_key) == ("evt_1", False, "acct_1", "one")
        assert read.created == datetime.fromtimestamp(1_800_000_000, UTC)
        assert customer_of(read, RULES) == "cus_1"
    assert (full.type, small.type) == ("customer.updated", "v1.customer.updated")


def test_what_the_library_of_stripe_makes_of_a_request_is_understood() -> None:
    body, note = json.dumps(snapshot()), json.dumps(thin(snapshot(account="acct_1")))

    event = stripe.Webhook.construct_event(body, sign(body, SECRET), SECRET)
    notification = stripe.StripeClient("sk_test_x").parse_event_notification(note, sign(note, SECRET), SECRET)

    assert customer_of(read_event(event), RULES) == "cus_1"
    read = read_event(notification)
    assert customer_of(read, RULES) == "cus_1"
    assert (read.stripe_account, read.idempotency_key, read.livemode) == ("acct_1", "one", False)


def test_the_context_of_an_organization_ends_with_the_account() -> None:
    note = {**thin(snapshot()), "context": "org_1/acct_1"}

    assert read_event(note).stripe_account == "acct_1"


@pytest.mark.parametrize(
    ("type_", "item"),
    [
        ("customer.created", {"id": "cus_1"}),
        ("customer.deleted", {"id": "cus_1", "deleted": True}),
        ("customer.subscription.updated", {"id": "sub_1", "customer": "cus_1"}),
        ("customer.subscription.updated", {"id": "sub_1", "customer": {"id": "cus_1", "object": "customer"}}),
        ("customer.source.created", {"id": "card_1", "customer": "cus_1"}),
        ("invoice.paid", {"id": "in_1", "customer": "cus_1"}),
        ("charge.refunded", {"id": "ch_1", "customer": "cus_1"}),
        ("checkout.session.completed", {"id": "cs_1", "customer": "cus_1"}),
        ("payment_intent.succeeded", {"id": "pi_1", "customer": "cus_1"}),
        ("something.new", {"id": "x_1", "customer": {"id": "cus_1", "deleted": True}}),
    ],
)
def test_events_about_a_customer(type_: str, item: dict[str, Any]) -> None:
    assert customer_of(read_event(snapshot(type_, item)), RULES) == "cus_1"


@pytest.mark.parametrize(
    "item",
    [{}, {"id": "price_1"}, {"customer": None}, {"customer": ""}, {"customer": 7}, {"customer": {"id": None}}, []],
    ids=json.dumps,
)
def test_events_about_nobody(item: Any) -> None:
    assert customer_of(read_event(snapshot("price.updated", item)), RULES) is None


def test_an_app_extends_the_rules() -> None:
    of_metadata = Rule("payout.*", lambda event: event.object["metadata"].get("customer"))
    event = read_event(snapshot("payout.paid", {"id": "po_1", "metadata": {"customer": "cus_2"}}))

    assert customer_of(event, RULES) is None
    assert customer_of(event, (of_metadata, *RULES)) == "cus_2"


def test_stripe_is_asked_for_the_types_of_the_rules_where_it_can_be() -> None:
    assert listing_types(RULES) == []  # All of them: a rule is about any type.
    assert listing_types(RULES[:-1]) == ["customer.created", "customer.updated", "customer.deleted"]
    assert listing_types([Rule(f"type.{number}", lambda _: None) for number in range(21)]) == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"id": "evt_1", "object": "ev',
        b"\xff\xfe",
        b'"evt_1"\x00',
        b"[" * 500_000,
        b'{"a":' * 100_000,
        b"1" * 5000,
        "{\u00e9}".encode("utf-16"),
    ],
    ids=lambda body: repr(body[:16]),
)
def test_a_body_that_is_no_json_is_no_event(body: bytes) -> None:
    with pytest.raises(InvalidEvent):
        parsed(body)


@pytest.mark.parametrize(
    "changes",
    [
        {"object": None},
        {"object": "customer"},
        {"object": ["event"]},
        {"id": None},
        {"id": ""},
        {"id": "evt 1"},
        {"id": "evt_\x00"},
        {"id": "evt_\ud800"},
        {"id": "e" * 256},
        {"id": 7},
        {"type": None},
        {"type": "customer\nupdated"},
        {"created": None},
        {"created": True},
        {"created": 10**30},
        {"created": float("nan")},
        {"created": float("inf")},
        {"created": "soon"},
        {"account": "acct\n1"},
    ],
    ids=repr,
)
def test_json_that_is_no_event_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidEvent):
        read_event(snapshot() | changes)


@pytest.mark.parametrize("value", [None, [], "evt_1", 7, True], ids=repr)
def test_a_value_that_is_no_object_is_no_event(value: Any) -> None:
    with pytest.raises(InvalidEvent):
        read_event(value)


@pytest.mark.parametrize("request_", [None, "req_1", [], {"idempotency_key": None}], ids=repr)
def test_whatever_caused_it_an_event_is_read(request_: Any) -> None:
    # Up to 2017 `request` was an id; for what Stripe does by itself it is null.
    assert read_event(snapshot(request=request_)).idempotency_key is None


def test_each_credential_has_its_secrets() -> None:
    found = webhook_secrets(
        {"STRIPE_WEBHOOK_SECRET": "whsec_old, whsec_new", "CUSTOMER_JOBS_STRIPE_WEBHOOK_SECRET_EU": "whsec_eu"}
    )

    assert found == {"default": ("whsec_old", "whsec_new"), "eu": ("whsec_eu",)}


def test_a_secret_may_be_in_a_file(tmp_path: Any) -> None:
    (tmp_path / "secret").write_text("whsec_filed\n")

    assert webhook_secrets({"STRIPE_WEBHOOK_SECRET_EU_FILE": str(tmp_path / "secret")}) == {"eu": ("whsec_filed",)}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"STRIPE_WEBHOOK_SECRET": ""},
        {"STRIPE_WEBHOOK_SECRET": "sk_test_secret"},
        {"STRIPE_WEBHOOK_SECRET": "whsec_one whsec_two"},
        {"STRIPE_WEBHOOK_SECRET": "whsec_1", "STRIPE_WEBHOOK_SECRET_DEFAULT": "whsec_2"},
    ],
    ids=repr,
)
def test_a_secret_that_is_missing_or_none_is_said_without_showing_it(environ: dict[str, str]) -> None:
    with pytest.raises(InvalidSetting, match="STRIPE_WEBHOOK_SECRET") as refused:
        webhook_secrets(environ)

    assert "sk_test_secret" not in str(refused.value)


def test_the_key_in_the_environment_tells_the_mode() -> None:
    environ = {"STRIPE_API_KEY": "sk_test_x", "STRIPE_API_KEY_EU": "rk_live_x"}

    assert [key_is_live(name, environ) for name in ("default", "eu", "us")] == [False, True, None]
