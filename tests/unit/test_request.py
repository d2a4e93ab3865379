"""What an attempt sends is made of the row once, checked, and the same ever after."""

from __future__ import annotations

import json
from typing import Any

import pytest

from customer_jobs.errors import InvalidJob
from customer_jobs.request import request_of
from customer_jobs.sql import Unreadable

JOB_ID = "0b5e3f0c-6c3f-4d57-9a55-0f4d0c1f2a3b"
EMAIL = "jenny.rosen@example.com"


def create(body: Any = None, **columns: Any) -> dict[str, Any]:
    """The row of a create."""
    payload = {"body": {"email": EMAIL} if body is None else body}
    return {
        "id": JOB_ID,
        "kind": "customer.create",
        "credential": "default",
        "stripe_account": None,
        "external_id": None,
        "payload": payload,
        "params": None,
        **columns,
    }


def fetch(**columns: Any) -> dict[str, Any]:
    """The row of a fetch."""
    return create(kind="customer.fetch", payload={"customer_id": "cus_1", "expand": ["tax"]}) | columns


def test_a_create_sends_its_body_with_our_metadata() -> None:
    request = request_of(create({"email": f" {EMAIL}", "metadata": {"plan": "pro"}}, external_id="user-1"))

    assert request.params == {
        "email": EMAIL,
        "metadata": {"plan": "pro", "customer_jobs_id": JOB_ID, "external_id": "user-1"},
    }
    assert request.idempotency_key == f"customer-jobs-{JOB_ID}"


@pytest.mark.parametrize("metadata", [None, "", {}])
def test_our_metadata_need_none_of_the_producers(metadata: Any) -> None:
    request = request_of(create({"metadata": metadata}))

    assert request.params == {"metadata": {"customer_jobs_id": JOB_ID}}


def test_our_metadata_win() -> None:
    theirs = {"customer_jobs_id": "another", "external_id": "another"}

    with_id = request_of(create({"metadata": theirs}, external_id="user-1"))
    without_id = request_of(create({"metadata": theirs}))

    assert with_id.params["metadata"] == {"customer_jobs_id": JOB_ID, "external_id": "user-1"}
    assert without_id.params["metadata"] == {"customer_jobs_id": JOB_ID, "external_id": "another"}


def test_a_fetch_sends_what_it_asks_for() -> None:
    request = request_of(fetch(credential="eu", stripe_account="acct_1"))

    assert request.params == {"customer_id": "cus_1", "expand": ["tax"]}
    assert (request.credential, request.stripe_account) == ("eu", "acct_1")


@pytest.mark.parametrize(
    "row",
    [
        create({"name": "Zoë 🎉", "balance": -5, "tax_exempt": None, "address": {"line1": 'a "b" \\ \u2028'}}),
        fetch(),
    ],
    ids=["create", "fetch"],
)
def test_what_was_frozen_is_sent_byte_for_byte_whatever_the_payload_says_later(row: dict[str, Any]) -> None:
    first = request_of(row)

    again = request_of(
        row | {"params": first.frozen(), "external_id": "user-2", "payload": {"body": {"name": "other"}}}
    )
    emptied = request_of(row | {"params": first.frozen(), "payload": None})

    assert again.params == emptied.params == first.params
    assert again.frozen() == first.frozen()


@pytest.mark.parametrize(
    ("row", "field"),
    [
        (create(kind="customer.delete"), "kind"),
        (create(payload=Unreadable("not JSON: x")), "payload"),
        (create(payload=7), "payload"),
        (create({"id": "cus_1"}), "id"),
        (create({"metadata[a]": "x"}), "body"),
        (create(credential="Not A Name"), "credential"),
        (create(credential="sk_live_51Hxxxxxxxx!"), "credential"),
        (create(stripe_account="acct_1\r\nX-Injected: y"), "stripe_account"),
        (create(stripe_account="cus_1"), "stripe_account"),
        (create(external_id=" "), "external_id"),
        (create(external_id="x" * 501), "external_id"),
        (create(params="no JSON"), "params"),
        (create(params="7"), "params"),
        (create(params="[" * 100_000), "params"),
        (fetch(payload={"customer_id": "../charges"}), "customer_id"),
        (fetch(params=json.dumps({"customer_id": ""})), "customer_id"),
        (fetch(params="{}"), "customer_id"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_row_that_a_producer_could_not_have_written_is_refused(row: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        request_of(row)

    assert caught.value.field == field
    assert "sk_live_" not in str(caught.value)


def test_an_empty_account_is_the_keys_own() -> None:
    assert request_of(create(stripe_account="")).stripe_account is None
