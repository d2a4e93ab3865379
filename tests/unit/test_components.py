"""The documents of low-code components: what is refused before anything is touched, and the outputs of an ended job."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from customer_jobs import CustomerJobs, InvalidDocument, InvalidJob, Job, State, components
from tests.markdown import blocks, rows

FIXTURES = Path(__file__).parents[1] / "fixtures/components"
CREATE = {"component": "stripe.createCustomer", "trigger": "true", "Body": {"email": "jenny.rosen@example.com"}}
GET = {"component": "stripe.getStripeCustomer", "customer_id": "cus_ABC123XYZ456"}
NODE: dict[str, Any] = {"inputs": {"customerId": "cus_Jh3d8yZi678c2"}, "config": {}, "context": {}}
CUSTOMER = {
    "id": "cus_1",
    "object": "customer",
    "email": "jenny.rosen@example.com",
    "address": {"city": "Paris", "line2": None},
    "preferred_locales": ["fr", "en"],
    "metadata": {"7": "seven", "plan name": "pro"},
}
HEADERS = {"Request-Id": "req_1", "Content-Type": "application/json"}
MOMENT = datetime(2026, 11, 22, tzinfo=UTC)


@pytest.fixture
def out_of_reach(tmp_path: Path) -> CustomerJobs:
    """A table that cannot be reached: whoever touches it hears of it."""
    return CustomerJobs(f"sqlite:///{tmp_path}/none/none.sqlite3")


def ended(state: State = State.SUCCEEDED, **fields: Any) -> Job:
    """A job as it stands; a success unless the fields say otherwise."""
    result = {
        "customer_id": "cus_1",
        "customer_email": "jenny.rosen@example.com",
        "response": CUSTOMER,
        "headers": HEADERS,
    }
    job = Job(
        id="0b1c9f1e-5b0c-4b55-9d2f-0c8b1b0f6a1d",
        kind="customer.create",
        state=state,
        credential="default",
        stripe_account=None,
        livemode=False,
        priority=2,
        external_id=None,
        attempt=1,
        max_attempts=25,
        created_at=MOMENT,
        due_at=MOMENT,
        started_at=MOMENT,
        finished_at=MOMENT,
        outcome="created",
        customer_id="cus_1",
        result=result,
        error=None,
        context=None,
        retry_of=None,
    )
    return replace(job, **fields)


def refusal_of(table: CustomerJobs, document: Any) -> str:
    with pytest.raises(InvalidDocument) as caught:
        components.start(document, jobs=table)
    return str(caught.value)


def test_a_created_customer_has_three_outputs() -> None:
    assert components.outputs(CREATE, ended()) == {"customerId": "cus_1", "Response": CUSTOMER, "Headers": HEADERS}


def test_a_customer_that_was_got_has_its_email_besides() -> None:
    assert components.outputs(GET, ended()) == {
        "customerId": "cus_1",
        "customerEmail": "jenny.rosen@example.com",
        "Response": CUSTOMER,
        "Headers": HEADERS,
    }


def test_a_logic_node_has_the_customer_as_its_only_output() -> None:
    assert components.outputs(NODE, ended()) == {"output1": CUSTOMER}


def test_a_deleted_customer_is_a_success_without_an_email() -> None:
    stub = {"id": "cus_1", "object": "customer", "deleted": True}
    job = ended(result={"customer_id": "cus_1", "customer_email": None, "response": stub, "headers": HEADERS})

    assert components.outputs(GET, job) == {
        "customerId": "cus_1",
        "customerEmail": None,
        "Response": stub,
        "Headers": HEADERS,
    }
    assert components.outputs(NODE, job) == {"output1": stub}


@pytest.mark.parametrize("document", [CREATE, GET, NODE], ids=["create", "get", "node"])
def test_a_failure_has_one_message_our_envelope_and_what_stripe_answered(document: dict[str, Any]) -> None:
    error = {"type": "invalid_request_error", "code": "x", "message": "No such customer: 'cus_1'", "remedy": "look"}
    refusal = {"error": {"code": "x", "message": "No such customer: 'cus_1'"}}
    answered = {"customer_id": None, "customer_email": None, "response": refusal, "headers": HEADERS}

    made = components.outputs(document, ended(State.FAILED, error=error, result=answered))

    assert made == {
        "_error": "No such customer: 'cus_1'",
        "_error_detail": error,
        "Response": refusal,
        "Headers": HEADERS,
    }


def test_a_failure_without_an_answer_has_neither_response_nor_headers() -> None:
    error = {"type": "authentication_error", "code": "unknown_credential", "message": None}

    made = components.outputs(CREATE, ended(State.FAILED, error=error, result=None))

    assert made == {"_error": "unknown_credential", "_error_detail": error}


def test_a_job_that_is_not_over_is_named() -> None:
    job = ended(State.RETRYING, result=None, error={"message": "no answer from Stripe (ReadTimeout)"})

    made = components.outputs(NODE, job)

    assert made["_error"] == f"job {job.id} is still retrying; its last attempt: no answer from Stripe (ReadTimeout)"
    assert (made["_error_detail"]["code"], made["_error_detail"]["transient"]) == ("still_running", True)
    assert made["_error_detail"]["remedy"].endswith(f"customer-jobs show {job.id}")
    assert made.keys() == {"_error", "_error_detail"}


def test_a_cancelled_job_is_a_failure() -> None:
    made = components.outputs(CREATE, ended(State.CANCELLED, result=None))

    assert (made["_error_detail"]["code"], made["_error_detail"]["transient"]) == ("cancelled", False)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("Response", CUSTOMER),
        ("Response.address.city", "Paris"),
        ("Response.address.line2", None),
        ("Response.address.line2.more", None),
        ("Response.shipping.address.city", None),
        ("Response.preferred_locales.1", "en"),
        ("Response.preferred_locales[1]", "en"),
        ("Response.preferred_locales[2]", None),
        ("Response.preferred_locales.first", None),
        ("Response.preferred_locales.²", None),
        ("Response.email.0", None),
        ("Response.metadata.7", "seven"),
        ("Response.metadata.plan name", "pro"),
    ],
)
@pytest.mark.parametrize("document", [CREATE, GET, NODE], ids=["create", "get", "node"])
def test_an_extra_output_is_picked_from_the_response(document: dict[str, Any], path: str, found: Any) -> None:
    plain = components.outputs(document, ended())

    made = components.outputs(document | {"outputs": {"extra": path}}, ended())

    assert made == plain | {"extra": found}


def test_an_extra_output_of_a_failure_is_picked_from_the_error() -> None:
    extras = {"param": "Response.error.param", "city": "Response.address.city"}
    job = ended(State.FAILED, error={"message": "no"}, result={"response": {"error": {"param": "email"}}})

    made = components.outputs(CREATE | {"outputs": extras}, job)

    assert (made["param"], made["city"]) == ("email", None)


@pytest.mark.parametrize(
    "path", ["", "address.city", "Response.", "Response..city", "Response[x]", "Response.a[0", "response.a", 7, None]
)
def test_a_path_that_is_none_is_refused(out_of_reach: CustomerJobs, path: Any) -> None:
    told = refusal_of(out_of_reach, CREATE | {"outputs": {"city": path}})

    assert told == "outputs.city: must be a path such as Response.address.city or Response.preferred_locales[0]"


@pytest.mark.parametrize("name", ["customerId", "Response", "_error", "output1", ""])
def test_an_extra_output_takes_no_other_ones_name(out_of_reach: CustomerJobs, name: str) -> None:
    told = refusal_of(out_of_reach, CREATE | {"outputs": {name: "Response.name"}})

    assert told == f"outputs: {name!r} is the name of another output"


def without(document: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != name}


@pytest.mark.parametrize(
    ("document", "told"),
    [
        (without(CREATE, "trigger"), "trigger: is missing; any value starts the component"),
        (without(CREATE, "Body"), "Body: is missing; a customer without details is {}"),
        (CREATE | {"Body": "{'email': 'a'}"}, "Body: is not JSON: Expecting property name enclosed in double quotes"),
        (CREATE | {"Body": ""}, "Body: is not JSON: Expecting value (line 1, column 1)"),
        (CREATE | {"Body": "[" * 100_000}, "Body: is not JSON: nested too deeply"),
        (CREATE | {"Body": "9" * 5000}, "Body: is not JSON: a number in it is too long"),
        (CREATE | {"Body": "[]"}, "Body: must be a JSON object, not a list"),
        (CREATE | {"Body": None}, "Body: must be a JSON object, not null"),
        (CREATE | {"Body": {"email": 7}}, "email: must be text, not a number"),
        (CREATE | {"Body": '{"metadata": {"plan": []}}'}, "metadata[plan]: must be text or a number, not a list"),
        (CREATE | {"Body": {"idempotency_key": "x"}}, "idempotency_key: is not a parameter of a customer"),
        (CREATE | {"body": {}}, "the document has an unknown member 'body'; known are Body, component, context"),
        (without(GET, "customer_id"), "customer ID is required"),
        (GET | {"customer_id": None}, "customer ID is required"),
        (GET | {"customer_id": "cus/../x"}, "customer_id: must be an id such as 'cus_Jh3d8yZi678c2'"),
        ({"inputs": {}, "config": {}, "context": {}}, "customer ID is required"),
        ({"inputs": {"customerId": ""}, "config": {"customerId": None}}, "customer ID is required"),
        ({"config": {}}, "customer ID is required"),
        (NODE | {"inputs": {"customerId": 7}}, "inputs.customerId: must be an id such as"),
        (NODE | {"inputs": {"customerID": "cus_1"}}, "inputs: has an unknown member 'customerID'; known is customerId"),
        (NODE | {"inputs": "cus_1"}, "inputs: must be a JSON object"),
        (NODE | {"context": []}, "context: must be a JSON object"),
        (NODE | {"context": {"credential": "EU"}}, "credential: must be the name of a credential"),
        (NODE | {"context": {"stripe_account": "shop"}}, "stripe_account: must be a connected account"),
        (NODE | {"context": {"credential": "eu"}, "credential": "us"}, "credential: is given twice"),
        (CREATE | {"external_id": ""}, "external_id: must be text of 1 to 255 characters"),
        (CREATE | {"outputs": ["Response.name"]}, 'outputs: must be a JSON object such as {"city": "Response'),
        ({"component": "stripe.deleteCustomer"}, "component: is unknown; it is 'stripe.createCustomer' or"),
        ({}, "component: is missing; it is 'stripe.createCustomer' or 'stripe.getStripeCustomer', and a logic node"),
        ([CREATE], "a component's document must be a JSON object"),
        ("create", "a component's document must be a JSON object"),
    ],
)
def test_a_malformed_document_is_refused_before_the_table_is_touched(
    out_of_reach: CustomerJobs, document: Any, told: str
) -> None:
    assert refusal_of(out_of_reach, document).startswith(told)


def test_without_a_customer_id_the_error_is_exactly_theirs(out_of_reach: CustomerJobs) -> None:
    with pytest.raises(InvalidJob) as caught:
        components.run({"inputs": {}, "config": {}, "context": {}}, jobs=out_of_reach)

    assert str(caught.value) == "customer ID is required"


def test_one_malformed_document_of_several_is_named_and_stops_all(out_of_reach: CustomerJobs) -> None:
    with pytest.raises(InvalidDocument, match=r"^document 2: customer ID is required$") as caught:
        components.run_all([CREATE, {"inputs": {}}, {}], jobs=out_of_reach)

    assert caught.value.number == 2


@pytest.mark.parametrize("key", ["sk_test_4eC39HqLyjWD", "rk_live_4eC39HqLyjWD", "sk_4eC39Hq", "SK_LIVE_X", "whsec_1"])
@pytest.mark.parametrize(
    "place",
    [
        lambda key: CREATE | {"Body": {"description": f"my key is {key}"}},
        lambda key: CREATE | {"Body": json.dumps({"metadata": {"a": key}})},
        lambda key: CREATE | {"Body": '{"name": "' + key.replace("_", "\\u005f") + '"}'},
        lambda key: CREATE | {"Body": {"metadata": {key: "a"}}},
        lambda key: CREATE | {"trigger": [[key]]},
        lambda key: CREATE | {"outputs": {key: "Response.name"}},
        lambda key: GET | {"customer_id": key},
        lambda key: GET | {"credential": key},
        lambda key: NODE | {"context": {"deep": [{"er": {"still": key}}]}},
        lambda key: NODE | {"config": {"apiKey": key}},
        lambda key: NODE | {key: 1},
        lambda key: {"component": key},
    ],
)
def test_what_looks_like_a_key_is_refused_anywhere_and_not_repeated(
    out_of_reach: CustomerJobs, key: str, place: Any
) -> None:
    told = refusal_of(out_of_reach, place(key))

    assert "looks like a secret key" in told
    assert '"credential": "default"' in told
    assert key.lower() not in told.lower()


def test_a_secret_is_found_however_deep_it_lies(out_of_reach: CustomerJobs) -> None:
    deep: Any = "sk_test_4eC39HqLyjWD"
    for _ in range(100_000):
        deep = [deep]

    assert "looks like a secret key" in refusal_of(out_of_reach, CREATE | {"trigger": deep})


@pytest.mark.parametrize("text", ["task_force", "risk_assessed", "sk_SK", "disk_space", "sk-SK"])
def test_words_that_only_resemble_a_key_are_let_through(text: str) -> None:
    assert "customerId" in components.outputs(CREATE | {"Body": {"description": text}}, ended())


def test_the_three_fixtures_are_read_as_they_are() -> None:
    read = [components.outputs(json.loads(file.read_bytes()), ended()).keys() for file in sorted(FIXTURES.iterdir())]

    assert read == [
        {"customerId", "Response", "Headers"},
        {"output1"},
        {"customerId", "customerEmail", "Response", "Headers"},
    ]


def test_every_member_of_a_document_is_documented() -> None:
    documented = {name.strip("`") for first, *_ in rows("components.md") for name in first.split(", ")}

    assert documented >= frozenset().union(*components._MEMBERS.values()) | components._TAKEN


@pytest.mark.parametrize("file", sorted(FIXTURES.iterdir()), ids=lambda file: file.stem)
def test_the_docs_show_the_documents_as_they_are(file: Path) -> None:
    shown = [block.text for block in blocks("json") if block.page == "components.md"]

    assert file.read_text() + "\n" in shown
