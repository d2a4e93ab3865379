"""The documents that users of low-code components have, run unchanged by a real worker; and what the docs do next."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from customer_jobs import components
from tests.acceptance.stack import CHECKOUT, Stack, email, unique
from tests.acceptance.terminal import run
from tests.markdown import Block, blocks

#: Nothing here depends on the kind of database; tests/integration has both.
pytestmark = pytest.mark.parametrize("stack", ["postgresql"], indirect=True)

Json = dict[str, Any]

FIXTURES = CHECKOUT / "tests/fixtures/components"
#: The customers that the documents ask for.
ASKED_FOR: dict[str, Json] = {
    "cus_ABC123XYZ456": {"email": "abc@example.com", "name": "Abe Cee"},
    "cus_Jh3d8yZi678c2": {"email": "jh@example.com", "address": {"city": "Paris"}, "metadata": {"plan": "pro"}},
}


@pytest.fixture
def customers(stack: Stack) -> dict[str, Json]:
    """What Stripe's stand-in has of the customers that the documents ask for."""
    known = {each["id"] for each in stack.sandbox.customers()}
    for customer_id, fields in ASKED_FOR.items():
        if customer_id not in known:
            stack.sandbox.add_customer(customer_id, **fields)
    return {each["id"]: each for each in stack.sandbox.customers()}


def printed(stack: Stack, file: Path | str, *options: str, code: int = 0) -> Any:
    """What `customer-jobs run` prints, from which everything but JSON is missing."""
    ended = run(shlex.join(["customer-jobs", "run", str(file), *options]), stack.settings)
    assert ended.returncode == code, ended.stdout + ended.stderr
    return json.loads(ended.stdout)


def outputs_of(stack: Stack, fixture: str, way: str) -> Json:
    """The outputs of a document that people have, from the command line or from Python."""
    if way == "command line":
        return printed(stack, FIXTURES / fixture)  # type: ignore[no-any-return]
    return components.run(json.loads((FIXTURES / fixture).read_bytes()), jobs=stack.jobs)


def request_ids(stack: Stack, customer_id: str) -> set[str | None]:
    return {each.request_id for each in stack.sandbox.requests if each.path == f"/v1/customers/{customer_id}"}


@pytest.mark.parametrize("way", ["command line", "Python"])
def test_a_customer_is_created_from_the_document_as_it_is(stack: Stack, way: str) -> None:
    outputs = outputs_of(stack, "create-customer.json", way)

    (customer,) = (each for each in stack.sandbox.customers() if each["id"] == outputs["customerId"])
    assert outputs.keys() == {"customerId", "Response", "Headers"}
    assert outputs["Response"] == customer
    assert (customer["email"], customer["name"]) == ("jenny.rosen@example.com", "Jenny Rosen")
    (request,) = (each for each in stack.sandbox.requests if each.request_id == outputs["Headers"]["Request-Id"])
    assert (request.endpoint, request.status) == ("create", 200)


@pytest.mark.parametrize("way", ["command line", "Python"])
def test_a_customer_is_got_from_the_document_as_it_is(stack: Stack, customers: dict[str, Json], way: str) -> None:
    outputs = outputs_of(stack, "get-stripe-customer.json", way)

    assert list(outputs) == ["customerId", "customerEmail", "Response", "Headers"]
    assert (outputs["customerId"], outputs["customerEmail"]) == ("cus_ABC123XYZ456", "abc@example.com")
    assert outputs["Response"] == customers["cus_ABC123XYZ456"]
    assert outputs["Headers"]["Request-Id"] in request_ids(stack, "cus_ABC123XYZ456")


@pytest.mark.parametrize("way", ["command line", "Python"])
def test_the_logic_node_runs_as_it_is(stack: Stack, customers: dict[str, Json], way: str) -> None:
    outputs = outputs_of(stack, "get-one-customer.json", way)

    assert outputs == {"output1": customers["cus_Jh3d8yZi678c2"]}


def test_the_context_comes_back_in_the_event(stack: Stack, customers: dict[str, Json]) -> None:
    document = json.loads((FIXTURES / "get-one-customer.json").read_bytes())
    order = unique("order")

    job = components.start(document | {"context": {"credential": "default", "order": order}}, jobs=stack.jobs)

    event = stack.consumer.event_about(job.id)
    assert event["data"]["context"] == {"order": order}
    ended = stack.wait_for_end(job)
    assert components.outputs(document, ended) == {"output1": customers["cus_Jh3d8yZi678c2"]}


def test_several_documents_run_at_the_same_time(stack: Stack, tmp_path: Path) -> None:
    addresses = [email() for _ in range(5)]
    body = {"metadata": {"sandbox": "slow_1s"}}
    documents = [
        {"component": "stripe.createCustomer", "trigger": 0, "Body": json.dumps(body | {"email": each})}
        for each in addresses
    ]
    (tmp_path / "five.json").write_text(json.dumps(documents))

    outputs = printed(stack, tmp_path / "five.json")

    assert [each["Response"]["email"] for each in outputs] == addresses
    ids = {each["Headers"]["Request-Id"] for each in outputs}
    requests = [each for each in stack.sandbox.requests if each.request_id in ids]
    assert max(each.arrived_at for each in requests) < min(each.finished_at or 0 for each in requests)


def test_a_refusal_exits_1_with_what_stripe_answered(stack: Stack, tmp_path: Path) -> None:
    customer_id = unique("cus_missing").replace("-", "")
    (tmp_path / "get.json").write_text(
        json.dumps({"component": "stripe.getStripeCustomer", "customer_id": customer_id})
    )

    outputs = printed(stack, tmp_path / "get.json", code=1)

    assert list(outputs) == ["_error", "_error_detail", "Response", "Headers"]
    assert outputs["_error"] == f"No such customer: '{customer_id}'"
    assert outputs["_error_detail"]["remedy"].startswith("check the customer id")
    assert outputs["Response"]["error"]["code"] == "resource_missing"
    assert {outputs["Headers"]["Request-Id"]} == request_ids(stack, customer_id)
    (job,) = stack.jobs.list(customer_id=customer_id)
    shown = run(f"customer-jobs show {job.id}", stack.settings).stdout
    assert "resource_missing (HTTP 404): No such customer" in shown
    assert "_log_url" not in str(stack.consumer.event_about(job.id))


def test_a_time_out_exits_3_while_the_job_goes_on(stack: Stack, tmp_path: Path) -> None:
    customer_id = f"cus_sandbox_slow_2s__id{unique('x')[2:]}"
    (tmp_path / "get.json").write_text(json.dumps({"inputs": {"customerId": customer_id}}))

    outputs = printed(stack, tmp_path / "get.json", "--timeout", "0.2", code=3)

    (job,) = stack.jobs.list(customer_id=customer_id)
    assert outputs["_error"].startswith(f"job {job.id} is still ")
    assert stack.wait_for_end(job).state == "succeeded"


# What the docs do next


def example(heading: str) -> Block:
    """The Python block that stands under a heading of docs/components.md."""
    section = (CHECKOUT / "docs/components.md").read_text().partition(f"### {heading}\n")[2].partition("\n#")[0]
    (block,) = (each for each in blocks("python") if each.page == "components.md" and each.text in section)
    return block


def pasted(stack: Stack, block: Block, directory: Path) -> str:
    """What a block prints, run in an empty directory."""
    (directory / "pasted.py").write_text(block.text)
    ended = run(f"cd {shlex.quote(str(directory))} && python pasted.py", stack.settings)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def test_a_new_user_becomes_a_customer_linked_by_metadata(stack: Stack, tmp_path: Path) -> None:
    said = pasted(stack, example("A new user signs up"), tmp_path)

    (customer,) = (each for each in stack.sandbox.customers() if each["id"] in said)
    assert customer["metadata"]["user_id"] == customer["metadata"]["external_id"] == "42"
    again = pasted(stack, example("A new user signs up"), tmp_path)
    assert again == said


def test_every_new_customer_is_appended_to_a_csv(stack: Stack, tmp_path: Path) -> None:
    address = email()
    job = stack.wait_for_end(stack.jobs.create_customer({"email": address, "name": "Jenny"}))
    stack.consumer.event_about(job.id)

    pasted(stack, example("Every new customer becomes a line in a CSV file"), tmp_path)
    later = stack.wait_for_end(stack.jobs.create_customer({"email": email()}))
    stack.consumer.event_about(later.id)
    pasted(stack, example("Every new customer becomes a line in a CSV file"), tmp_path)

    with (tmp_path / "customers.csv").open(newline="") as file:
        ids = [row[0] for row in csv.reader(file)]
    assert ids.count(str(job.customer_id)) == ids.count(str(later.customer_id)) == 1


def test_a_failed_payment_fetches_the_customer_and_notifies(stack: Stack, tmp_path: Path) -> None:
    said = pasted(stack, example("A payment fails"), tmp_path)

    assert said == "notify jenny.rosen@example.com: invoice in_1 was not paid\n"
