"""What may be asked of Stripe: every refusal names the field, nothing hostile raises anything else."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from customer_jobs import payload
from customer_jobs.errors import InvalidJob
from customer_jobs.sql import Unreadable
from customer_jobs.vocabulary import Kind

SECRETS = ("sk_live_51Hxxxxxxxxxxxx", "rk_test_51Hxxxxxxxxxxxx", "sk_test_51Hxxxxxxxxxxxx", "whsec_51Hxxxxxxxxxxxx")


def refused(check: Callable[..., Any], *arguments: Any, **named: Any) -> InvalidJob:
    with pytest.raises(InvalidJob) as caught:
        check(*arguments, **named)
    return caught.value


def refusal(check: Callable[[Any], Any], value: Any) -> InvalidJob | None:
    """The refusal, if there is one; any other error is the test's."""
    try:
        check(value)
    except InvalidJob as error:
        return error
    return None


def is_short_and_discreet(error: InvalidJob) -> bool:
    return len(str(error)) < 500 and not any(secret in str(error) for secret in SECRETS)


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = {"a": value}
    return value


def test_a_body_is_kept_as_it_is_but_for_the_blanks_around_the_email() -> None:
    body = {"email": "  jenny.rosen@example.com\n", "name": " Jenny ", "address": {"city": "Köln"}, "balance": -5}

    checked = payload.check_create(body)

    assert checked == {"body": body | {"email": "jenny.rosen@example.com"}}
    assert body["email"] == "  jenny.rosen@example.com\n"


@pytest.mark.parametrize("body", [{}, {"email": "not an address"}, {"email": None}, {"metadata": ""}, {"new_field": 1}])
def test_what_stripe_can_judge_is_left_to_stripe(body: dict[str, Any]) -> None:
    assert payload.check_create(body) == {"body": body}


@pytest.mark.parametrize("name", sorted(payload.REFUSED_PARAMETERS))
def test_a_request_option_in_the_body_is_refused(name: str) -> None:
    error = refused(payload.check_create, {"email": "a@example.com", name: "x"})

    assert error.field == name


def test_the_refused_options_are_those_of_the_design() -> None:
    assert {
        "id",
        "api_key",
        "stripe_account",
        "stripe_context",
        "stripe_version",
        "idempotency_key",
        "max_network_retries",
        "content_type",
        "headers",
    } == payload.REFUSED_PARAMETERS


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"metadata[a]": 1}, "body"),
        ({"a]": 1}, "body"),
        ({"metadata": {"a[b]": 1}}, "metadata"),
        ({"address": {"line1": {"x[": 1}}}, "address[line1]"),
        ({"tax_id_data": [{"type": "a"}, {"[": 1}]}, "tax_id_data[1]"),
    ],
)
def test_brackets_are_refused_in_a_key_at_any_depth(body: dict[str, Any], field: str) -> None:
    error = refused(payload.check_create, body)

    assert error.field == field
    assert "brackets" in error.problem


@pytest.mark.parametrize(
    ("body", "field"), [({"": 1}, "body"), ({"address": {"": "x"}}, "address"), ({"a": [{"": 1}]}, "a[0]")]
)
def test_a_key_without_a_name_is_refused_at_any_depth(body: dict[str, Any], field: str) -> None:
    error = refused(payload.check_create, body)

    assert error.field == field
    assert "without a name" in error.problem


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ("text", "body"),
        (None, "body"),
        ([], "body"),
        (7, "body"),
        ({1: "x"}, "body"),
        ({"email": 7}, "email"),
        ({"email": ["a@example.com"]}, "email"),
        ({"name": "a\x00b"}, "name"),
        ({"name": "\ud800"}, "name"),
        ({"a\x00": 1}, "body"),
        ({"\udfff": 1}, "body"),
        ({"balance": float("nan")}, "balance"),
        ({"balance": float("inf")}, "balance"),
        ({"balance": 2**63}, "balance"),
        ({"balance": -(10**5000)}, "balance"),
        ({"name": b"bytes"}, "name"),
        ({"name": {"a"}}, "name"),
        ({"shipping": {"address": {"city": object()}}}, "shipping[address][city]"),
        ({"name": "x" * payload.MAX_PAYLOAD_BYTES}, "body"),
        ({"name": "ü" * (payload.MAX_PAYLOAD_BYTES // 2)}, "body"),
        ({"metadata": []}, "metadata"),
        ({"metadata": "text"}, "metadata"),
        ({"metadata": {"plan": {"a": 1}}}, "metadata[plan]"),
        ({"metadata": {"plan": []}}, "metadata[plan]"),
        ({"metadata": {"": "x"}}, "metadata"),
        ({"metadata": {"k" * 41: "x"}}, "metadata"),
        ({"metadata": {"plan": "v" * 501}}, "metadata[plan]"),
        ({"metadata": {str(number): "x" for number in range(49)}}, "metadata"),
    ],
)
def test_a_body_that_cannot_be_carried_unchanged_is_refused_by_the_name_of_the_field(body: Any, field: str) -> None:
    assert refused(payload.check_create, body).field == field


def test_metadata_may_be_as_large_as_stripe_takes_beside_ours() -> None:
    body = {"metadata": {f"{number:040}": "v" * 500 for number in range(48)}}

    assert payload.check_create(body) == {"body": body}


def test_our_own_metadata_keys_do_not_count() -> None:
    ours = {"customer_jobs_id": "x", "external_id": "y"}
    body = {"metadata": {str(number): "x" for number in range(48)} | ours}

    assert payload.check_create(body) == {"body": body}


def test_a_body_may_have_64_kib_of_json() -> None:
    room = payload.MAX_PAYLOAD_BYTES - len(json.dumps({"name": ""}))

    payload.check_create({"name": "x" * room})

    assert refused(payload.check_create, {"name": "x" * (room + 1)}).field == "body"


@pytest.mark.parametrize("depth", [9, 100, 100_000])
def test_deep_nesting_is_refused(depth: int) -> None:
    assert "nested" in refused(payload.check_create, {"shipping": nested(depth)}).problem


def test_a_body_that_holds_itself_is_refused() -> None:
    body: dict[str, Any] = {}
    body["shipping"] = body

    assert "nested" in refused(payload.check_create, body).problem


def test_any_mapping_and_any_sequence_of_python_may_be_a_body() -> None:
    body = MappingProxyType({"address": MappingProxyType({"city": "Köln"}), "preferred_locales": ("de", "en")})

    checked = payload.check_create(body)

    assert checked == {"body": {"address": {"city": "Köln"}, "preferred_locales": ["de", "en"]}}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=12,
)
hostile = st.one_of(
    json_values,
    st.binary(),
    st.datetimes(),
    st.decimals(),
    st.complex_numbers(),
    st.sets(st.integers()),
    st.integers().map(lambda number: number * 10**5000),
    st.characters(categories=["Cs"]),
    st.dictionaries(st.integers() | st.binary() | st.none(), json_values, max_size=3),
    st.sampled_from([nested(2000), object(), *SECRETS]),
)
FIELDS = ("email", "metadata", "name", "address", "preferred_locales", "id", "expand", "metadata[x]", *SECRETS)
bodies = hostile | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), hostile, max_size=5)


@given(body=bodies)
@example(body={"metadata": {SECRETS[0]: {}}})
@example(body={SECRETS[0]: float("nan")})
def test_whatever_the_body_it_survives_json_or_is_refused(body: Any) -> None:
    error = refusal(payload.check_create, body)

    if error is None:
        checked = payload.check_create(body)
        assert json.loads(json.dumps(checked)) == checked
        assert payload.check_payload(Kind.CUSTOMER_CREATE, checked) == checked
    else:
        assert is_short_and_discreet(error)


@given(data=st.data())
def test_whatever_a_field_holds_it_is_taken_or_refused(data: st.DataObject) -> None:
    check = data.draw(
        st.sampled_from(
            [
                payload.check_fetch,
                lambda value: payload.check_fetch("cus_1", value),
                lambda value: payload.check_fetch("cus_1", [value]),
                lambda value: payload.check_fetch("cus_1", (), value),
                payload.check_context,
                payload.check_external_id,
                payload.check_credential,
                payload.check_stripe_account,
                payload.check_priority,
                payload.check_due_at,
                lambda value: payload.check_payload(value, {}),
                lambda value: payload.check_payload(Kind.CUSTOMER_CREATE, value),
                lambda value: payload.check_payload(Kind.CUSTOMER_FETCH, value),
                lambda value: payload.check_payload(Kind.CUSTOMER_FETCH, {"customer_id": "cus_1", "expand": value}),
            ]
        )
    )
    value = data.draw(hostile)

    error = refusal(check, value)

    assert error is None or is_short_and_discreet(error)


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "check",
    [
        payload.check_fetch,
        lambda secret: payload.check_fetch("cus_1", secret),
        lambda secret: payload.check_fetch("cus_1", [secret + "!"]),
        lambda secret: payload.check_fetch("cus_1", (), secret),
        lambda secret: payload.check_credential(secret.upper()),
        payload.check_stripe_account,
        payload.check_priority,
        payload.check_due_at,
        lambda secret: payload.check_external_id(secret * 20),
        lambda secret: payload.check_payload(secret, {}),
        lambda secret: payload.check_payload(Kind.CUSTOMER_CREATE, {"body": {}, secret: 1}),
        lambda secret: payload.check_create({"name": {secret: {"[": 1}}}),
        lambda secret: payload.check_create({"metadata": {secret: []}}),
        lambda secret: payload.check_create({f"{secret}[": 1}),
    ],
)
def test_a_key_pasted_into_the_wrong_field_is_never_repeated(check: Callable[[str], Any], secret: str) -> None:
    error = refused(check, secret)

    assert secret.lower() not in str(error).lower()


@pytest.mark.parametrize("customer_id", ["cus_Jh3d8yZi678c2", "gcus_1", "x", "c" * 255])
def test_the_form_of_a_customer_id_is_no_contract(customer_id: str) -> None:
    assert payload.check_fetch(customer_id) == {"customer_id": customer_id, "expand": []}


@pytest.mark.parametrize(
    "customer_id", ["", " ", "cus_1 ", "cus_1/sources", "..", "cus_1?x=1", "cus_é", "c" * 256, None, 7]
)
def test_an_empty_or_malformed_customer_id_is_refused(customer_id: Any) -> None:
    assert refused(payload.check_fetch, customer_id).field == "customer_id"


@pytest.mark.parametrize("expand", ["sources", b"x", None, 7, [""], ["a b"], ["a[b]"], [7], ["a.b.c.d.e"], {"a": 1}])
def test_a_malformed_expand_is_refused(expand: Any) -> None:
    assert refused(payload.check_fetch, "cus_1", expand).field == "expand"


def test_expand_keeps_its_order_without_repetitions() -> None:
    checked = payload.check_fetch("cus_1", ("tax", "default_source", "tax"))

    assert checked["expand"] == ["tax", "default_source"]


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), 10**400, "60", True, [60]])
def test_a_malformed_age_is_refused(seconds: Any) -> None:
    assert refused(payload.check_fetch, "cus_1", (), seconds).field == "max_age_seconds"


@pytest.mark.parametrize("seconds", [0, 0.5, 3600])
def test_an_age_is_kept(seconds: float) -> None:
    assert payload.check_fetch("cus_1", (), seconds)["max_age_seconds"] == seconds


@pytest.mark.parametrize(
    ("kind", "value", "field"),
    [
        ("customer.delete", {}, "kind"),
        (None, {}, "kind"),
        (Kind.CUSTOMER_CREATE, Unreadable("not JSON: x"), "payload"),
        (Kind.CUSTOMER_CREATE, None, "payload"),
        (Kind.CUSTOMER_CREATE, 7, "payload"),
        (Kind.CUSTOMER_CREATE, "text", "payload"),
        (Kind.CUSTOMER_CREATE, [], "payload"),
        (Kind.CUSTOMER_CREATE, {}, "payload"),
        (Kind.CUSTOMER_CREATE, {"body": {}, "api_key": "x"}, "payload"),
        (Kind.CUSTOMER_CREATE, {"body": {"id": "cus_1"}}, "id"),
        (Kind.CUSTOMER_CREATE, {"body": 7}, "body"),
        (Kind.CUSTOMER_FETCH, {}, "customer_id"),
        (Kind.CUSTOMER_FETCH, {"customer_id": ""}, "customer_id"),
        (Kind.CUSTOMER_FETCH, {"customer_id": "cus_1", "expand": 7}, "expand"),
        (Kind.CUSTOMER_FETCH, {"customer_id": "cus_1", "expand": {}}, "expand"),
        (Kind.CUSTOMER_FETCH, {"customer_id": "cus_1", "body": {}}, "payload"),
    ],
)
def test_a_row_is_checked_as_a_call_is(kind: Any, value: Any, field: str) -> None:
    assert refused(payload.check_payload, kind, value).field == field


def test_a_row_may_leave_out_what_a_fetch_does_not_need() -> None:
    assert payload.check_payload("customer.fetch", {"customer_id": "cus_1"}) == {"customer_id": "cus_1", "expand": []}


@pytest.mark.parametrize("context", [None, 7, "text", [1, {"a[b]": None}], {"order": 7}])
def test_any_json_may_be_a_context(context: Any) -> None:
    assert payload.check_context(context) == context


@pytest.mark.parametrize("context", [object(), float("nan"), {"a": "\x00"}, {7: 1}, "x" * payload.MAX_CONTEXT_BYTES])
def test_what_is_not_json_is_no_context(context: Any) -> None:
    assert refused(payload.check_context, context).field.startswith("context")


@pytest.mark.parametrize("external_id", ["", "  ", 7, "x" * 256, "a\x00", "\ud800", b"x"])
def test_a_malformed_external_id_is_refused(external_id: Any) -> None:
    assert refused(payload.check_external_id, external_id).field == "external_id"


@pytest.mark.parametrize("credential", ["", "EU", "a b", "ü", None, 7, "x" * 65])
def test_a_malformed_credential_is_refused(credential: Any) -> None:
    assert refused(payload.check_credential, credential).field == "credential"


@pytest.mark.parametrize("account", ["", "acct_", "acct_1\r\nX: y", "cus_1", 7])
def test_a_malformed_account_is_refused(account: Any) -> None:
    assert refused(payload.check_stripe_account, account).field == "stripe_account"


@pytest.mark.parametrize(
    ("given_as", "number"), [("urgent", 1), ("Default", 2), ("low", 3), ("BULK", 4), (1, 1), (4, 4)]
)
def test_a_priority_has_a_name_and_a_number(given_as: Any, number: int) -> None:
    assert payload.check_priority(given_as) == number


@pytest.mark.parametrize("priority", [0, 5, "1", "", None, True, 2.0, "highest"])
def test_an_unknown_priority_is_refused(priority: Any) -> None:
    assert refused(payload.check_priority, priority).field == "priority"


EAST = timezone(timedelta(hours=14))


@pytest.mark.parametrize(
    "due_at",
    [
        "2026-11-01",
        datetime(2026, 11, 1),  # noqa: DTZ001 - the point
        7,
        datetime.min.replace(tzinfo=EAST),
        datetime.max.replace(tzinfo=UTC),
    ],
)
def test_a_time_that_is_no_moment_is_refused(due_at: Any) -> None:
    assert refused(payload.check_due_at, due_at).field == "due_at"


def test_a_time_may_have_any_zone() -> None:
    due_at = datetime(2026, 11, 1, 14, tzinfo=EAST)

    assert payload.check_due_at(due_at) == datetime(2026, 11, 1, tzinfo=UTC)
