"""Low-code components on either database: what they enqueue, what a worker makes of it, what `run` prints."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from customer_jobs import ConflictError, CustomerJobs, components, testing
from customer_jobs.cli import app
from customer_jobs.database import writing
from customer_jobs.problems import Problem
from customer_jobs.sandbox import Sandbox
from customer_jobs.schema import jobs
from customer_jobs.vocabulary import Verdict
from tests.builders import Worker, claimed, entry, events_of, job_row, rows
from worker import record
from worker.answers import Rejected

CREATE = {"component": "stripe.createCustomer", "trigger": "true", "Body": {"email": "jenny.rosen@example.com"}}
GET = {"component": "stripe.getStripeCustomer", "customer_id": "cus_ABC123XYZ456"}
NODE: dict[str, Any] = {"inputs": {"customerId": "cus_Jh3d8yZi678c2"}, "config": {}, "context": {}}

Run = Callable[..., Result]

#: For what is decided before a statement is made.
on_sqlite = pytest.mark.parametrize("database", ["sqlite"])


@pytest.fixture
def table(engine: Engine) -> CustomerJobs:
    return CustomerJobs(engine)


@pytest.fixture
def run(database_url: str, engine: Engine) -> Run:  # noqa: ARG001 - migrated
    """`customer-jobs run` on the database."""

    def command(*words: str, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(app, ["run", *words], input=stdin, env={"DATABASE_URL": database_url})

    return command


@contextmanager
def working(engine: Engine, sandbox: Sandbox, **fields: Any) -> Iterator[None]:
    """A worker without Celery, beside the test."""
    worker, stopped = Worker(engine, sandbox, **fields), threading.Event()

    def work() -> None:
        while not stopped.wait(0.01):
            worker.work()

    thread = threading.Thread(target=work, name="worker")
    with capture_logs():  # They would stand between the outputs.
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()


# What is enqueued


@on_sqlite
@pytest.mark.parametrize("trigger", ["true", "", True, False, 0, 1, None, {}, [1]], ids=repr)
def test_any_trigger_starts_the_component(table: CustomerJobs, engine: Engine, trigger: Any) -> None:
    job = components.start(CREATE | {"trigger": trigger}, jobs=table)

    row = job_row(engine, job.id)
    assert (row["kind"], row["state"]) == ("customer.create", "queued")
    assert row["payload"] == {"body": {"email": "jenny.rosen@example.com"}}


def test_the_body_may_be_the_json_text_of_an_object(table: CustomerJobs, engine: Engine) -> None:
    body = {"email": "jenny.rosen@example.com", "name": "José", "metadata": {"plan": "pro"}}

    written = [components.start(CREATE | {"Body": each}, jobs=table) for each in (body, json.dumps(body))]

    assert [job_row(engine, job.id)["payload"] for job in written] == [{"body": body}] * 2


@on_sqlite
@pytest.mark.parametrize(
    ("inputs", "config", "asked"),
    [
        ({"customerId": "cus_in"}, {"customerId": "cus_config"}, "cus_in"),
        ({}, {"customerId": "cus_config"}, "cus_config"),
        ({"customerId": None}, {"customerId": "cus_config"}, "cus_config"),
        ({"customerId": ""}, {"customerId": "cus_config"}, "cus_config"),
        ({"customerId": "cus_in"}, None, "cus_in"),
    ],
)
def test_inputs_win_over_config(table: CustomerJobs, engine: Engine, inputs: Any, config: Any, asked: str) -> None:
    job = components.start({"inputs": inputs, "config": config, "context": {}}, jobs=table)

    row = job_row(engine, job.id)
    assert (row["kind"], row["payload"]) == ("customer.fetch", {"customer_id": asked, "expand": []})


@pytest.mark.parametrize("document", [CREATE, GET, NODE], ids=["create", "get", "node"])
def test_the_context_carries_the_connection_and_what_is_handed_back(
    table: CustomerJobs, document: dict[str, Any]
) -> None:
    context = {"credential": "eu", "stripe_account": "acct_1", "flow": "signup", "step": [7]}

    job = components.start(document | {"context": context, "external_id": "user-42"}, jobs=table)

    assert (job.credential, job.stripe_account, job.external_id) == ("eu", "acct_1", "user-42")
    assert job.context == {"flow": "signup", "step": [7]}
    assert table.cancel(job.id)
    (event,) = events_of(table.engine, job.id)
    assert event["data"]["context"] == {"flow": "signup", "step": [7]}


def test_the_connection_may_stand_in_the_document_itself(table: CustomerJobs) -> None:
    alone = components.start(CREATE | {"credential": "eu", "stripe_account": "acct_1"}, jobs=table)
    twice = components.start(CREATE | {"credential": "eu", "context": {"credential": "eu"}}, jobs=table)

    assert (alone.credential, alone.stripe_account, alone.context) == ("eu", "acct_1", None)
    assert (twice.credential, twice.context) == ("eu", None)


def test_a_document_joins_the_callers_transaction(table: CustomerJobs, engine: Engine) -> None:
    with Session(engine) as session:
        job = components.start(CREATE, jobs=table, session=session)
        session.rollback()

    assert table.get(job.id) is None


def test_several_documents_are_enqueued_all_or_none(table: CustomerJobs, engine: Engine) -> None:
    taken = components.start(CREATE | {"external_id": "user-1"}, jobs=table)
    other = CREATE | {"external_id": "user-1", "Body": {"name": "Somebody else"}}

    with pytest.raises(ConflictError):
        components.start_all([CREATE, GET, other], jobs=table)

    assert [row["id"] for row in rows(engine, jobs)] == [taken.id]


# What comes of it


def test_the_outputs_hold_all_that_stripe_answered(table: CustomerJobs, engine: Engine, sandbox: Sandbox) -> None:
    asked = sandbox.add_customer(
        "cus_ABC123XYZ456", account="acct_shop", email="old@example.com", address={"city": "X"}
    )
    with working(engine, sandbox):
        made, got = components.run_all([CREATE, GET | {"outputs": {"city": "Response.address.city"}}], jobs=table)

    (created,) = (each for each in sandbox.customers() if each["id"] == made["customerId"])
    by_endpoint = {request.endpoint: request for request in sandbox.requests}
    assert made.keys() == {"customerId", "Response", "Headers"}
    assert made["Response"] == created
    assert made["Headers"]["Request-Id"] == by_endpoint["create"].request_id
    assert (got["customerId"], got["customerEmail"]) == ("cus_ABC123XYZ456", "old@example.com")
    assert (got["Response"], got["city"]) == (asked, "X")
    assert got["Headers"]["Request-Id"] == by_endpoint["retrieve"].request_id


def failed(outputs: dict[str, Any], status: int) -> tuple[str, dict[str, Any]]:
    """The message and the remedy of a failure that Stripe answered with, and its error object."""
    assert outputs.keys() == {"_error", "_error_detail", "Response", "Headers"}
    error = outputs["Response"]["error"]
    detail = outputs["_error_detail"]
    assert (outputs["_error"], detail["message"]) == (error["message"], error["message"])
    assert (detail["http_status"], detail["transient"]) == (status, False)
    assert outputs["Headers"]["Request-Id"] == detail["request_id"]
    return detail["remedy"], error


@pytest.mark.parametrize(
    ("credential", "message"),
    [
        ("wrong", "Invalid API Key provided: sk_test_****alid"),
        ("revoked", "Invalid API Key provided: sk_test_****oked"),
        ("expired", "Expired API Key provided: sk_test_****ired"),
    ],
)
@pytest.mark.parametrize("document", [CREATE, NODE], ids=["create", "node"])
def test_a_key_that_stripe_refuses_is_a_401_that_names_the_credential(
    engine: Engine, table: CustomerJobs, sandbox: Sandbox, document: dict[str, Any], credential: str, message: str
) -> None:
    keys = {credential: f"sk_test_shop_{'invalid' if credential == 'wrong' else credential}"}
    with working(engine, sandbox, stripe_api_keys=keys):
        outputs = components.run(document | {"context": {"credential": credential}}, jobs=table)
        waits = components.run(document | {"context": {"credential": credential}}, jobs=table, timeout_seconds=0.1)

    remedy, error = failed(outputs, 401)
    assert error["message"] == message
    assert remedy.startswith(f"give credential {credential!r} a valid key")
    # What comes next waits for another key instead of failing, and says so.
    assert f"credential {credential!r} is paused: Stripe refused the key: 401" in waits["_error"]
    assert waits["_error_detail"]["code"] == "still_running"


def test_an_id_that_nobody_has_is_a_404(engine: Engine, table: CustomerJobs, sandbox: Sandbox) -> None:
    with working(engine, sandbox):
        remedy, error = failed(components.run(GET, jobs=table), 404)

    assert (error["code"], error["message"]) == ("resource_missing", "No such customer: 'cus_ABC123XYZ456'")
    assert remedy.startswith("check the customer id")


def test_an_id_of_the_other_mode_is_a_404_that_says_so(engine: Engine, table: CustomerJobs, sandbox: Sandbox) -> None:
    sandbox.add_customer("cus_Jh3d8yZi678c2", account="acct_shop", mode="live")

    with working(engine, sandbox):
        remedy, error = failed(components.run(NODE, jobs=table), 404)

    assert "a similar object exists in live mode" in error["message"]
    assert remedy == "the customer lives in live mode: use a credential with a live key instead of 'default'"


@on_sqlite
@pytest.mark.parametrize(
    ("body", "param"),
    [({"email": "not an address"}, "email"), ({"colour": "red"}, "colour"), ('{"tax_exempt": "x"}', "tax_exempt")],
)
def test_a_bad_parameter_is_a_400_that_names_it(
    engine: Engine, table: CustomerJobs, sandbox: Sandbox, body: Any, param: str
) -> None:
    with working(engine, sandbox):
        remedy, error = failed(components.run(CREATE | {"Body": body}, jobs=table), 400)

    assert error["param"] == param
    assert remedy == f"correct {param} and enqueue the job again"


def test_a_failure_that_stripe_did_not_answer_has_no_response(
    engine: Engine, table: CustomerJobs, sandbox: Sandbox
) -> None:
    with working(engine, sandbox):
        outputs = components.run(GET | {"credential": "nobody"}, jobs=table)

    assert outputs.keys() == {"_error", "_error_detail"}
    assert outputs["_error_detail"]["code"] == "unknown_credential"
    assert "STRIPE_API_KEY_<NAME>" in outputs["_error_detail"]["remedy"]


def test_the_test_of_an_app_ends_the_job_of_a_document(table: CustomerJobs) -> None:
    refused = components.start(CREATE, jobs=table)
    made = components.start(GET, jobs=table)

    refused = testing.fail(refused, {"code": "email_invalid", "param": "email", "message": "no"}, jobs=table)
    made = testing.succeed(made, {"email": "abc@example.com"}, headers={"Request-Id": "req_1"}, jobs=table)

    outputs = components.outputs(CREATE, refused)
    assert (outputs["_error"], outputs["Response"]["error"]["param"]) == ("no", "email")
    assert outputs["Headers"] == {"Request-Id": outputs["_error_detail"]["request_id"]}
    assert components.outputs(GET, made)["customerEmail"] == "abc@example.com"


@pytest.mark.parametrize("answer", [{"n": float("nan")}, {"long": "x" * 100_000}, {"fine": "x"}])
def test_an_answer_that_no_row_can_hold_does_not_keep_the_job_from_failing(engine: Engine, answer: Any) -> None:
    held = claimed(engine)
    problem = Problem("invalid_request_error", message="no", http_status=400)

    with writing(engine) as transaction:
        record.fail(transaction, held, entry(Verdict.FAILED), problem, Rejected(problem, {}, {"error": answer}))

    row = job_row(engine, held.job["id"])
    assert row["state"] == "failed"
    assert (row["result"] is None) == ("fine" not in answer)


# The command


def test_a_single_document_has_a_single_document_of_outputs(
    run: Run, engine: Engine, sandbox: Sandbox, tmp_path: Path
) -> None:
    (tmp_path / "create.json").write_text(json.dumps(CREATE, indent=2))

    with working(engine, sandbox):
        result = run(str(tmp_path / "create.json"))

    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout)["customerId"].startswith("cus_")


@pytest.mark.parametrize("form", ["list", "lines"])
def test_several_documents_run_at_the_same_time_and_come_out_in_order(
    run: Run, engine: Engine, sandbox: Sandbox, form: str
) -> None:
    names = [f"Jenny {number}\u2028" for number in range(6)]
    documents = [CREATE | {"Body": {"name": name}, "outputs": {"name": "Response.name"}} for name in names]
    texts = [json.dumps(document, ensure_ascii=False) for document in documents]
    text = f"[{','.join(texts)}]" if form == "list" else "\n\n".join(texts)

    with working(engine, sandbox):
        result = run("-", stdin=text)

    assert result.exit_code == 0, result.output
    printed = [json.loads(line) for line in result.stdout.split("\n")[:-1]]
    assert [each["name"] for each in (printed[0] if form == "list" else printed)] == names
    created = [row["created_at"] for row in rows(engine, jobs)]
    assert max(created) < min(row["finished_at"] for row in rows(engine, jobs))


def test_a_failure_exits_1_with_its_outputs_and_names_the_job(run: Run, engine: Engine, sandbox: Sandbox) -> None:
    with working(engine, sandbox):
        result = run("-", stdin=f"{json.dumps(CREATE)}\n{json.dumps(GET)}\n")

    assert result.exit_code == 1
    made, missing = map(json.loads, result.stdout.splitlines())
    assert ("_error" in made, missing["_error"]) == (False, "No such customer: 'cus_ABC123XYZ456'")
    (job,) = rows(engine, jobs, state="failed")
    assert result.stderr == f"job {job['id']} failed; see every call: customer-jobs show {job['id']}\n"


def test_a_time_out_exits_3_and_names_the_job(run: Run, engine: Engine) -> None:
    result = run("-", "--timeout", "0.05", stdin=json.dumps(NODE))

    (job,) = rows(engine, jobs)
    assert result.exit_code == 3
    assert result.stderr == f"job {job['id']} is still queued after 0.05 s; is a worker running?\n"
    outputs = json.loads(result.stdout)
    assert outputs.keys() == {"_error", "_error_detail"}
    assert outputs["_error"] == f"job {job['id']} is still queued"


@on_sqlite
@pytest.mark.parametrize(
    ("text", "told"),
    [
        (json.dumps({"inputs": {}, "config": {}, "context": {}}), "customer ID is required"),
        (json.dumps({"component": "stripe.createCustomer", "Body": {}}), "trigger: is missing"),
        (json.dumps(CREATE | {"Body": "{"}), "Body: is not JSON"),
        (json.dumps([CREATE, GET, {"inputs": {}}]), "document 3: customer ID is required"),
        (f"{json.dumps(CREATE)}\n{{}}\n", "document 2: component: is missing"),
        (f"{json.dumps(CREATE)}\n\n{{,}}\n", "FILE: line 3: is not JSON"),
        ('{\n"component": oops\n}', "FILE: is not JSON: Expecting value (line 2, column 14)"),
        ("", "FILE: is not JSON"),
        ('"text"', "a component's document must be a JSON object"),
        (json.dumps(CREATE | {"credential": "sk_live_4eC39HqLyjWD"}), "the document holds something that looks like"),
    ],
)
def test_a_malformed_document_exits_2_and_enqueues_nothing(run: Run, engine: Engine, text: str, told: str) -> None:
    result = run("-", stdin=text)

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {told}")
    assert result.stderr.count("\n") == 1
    assert "4eC39" not in result.stderr
    assert rows(engine, jobs) == []


def test_an_external_id_of_another_body_exits_2_and_enqueues_nothing(run: Run, table: CustomerJobs) -> None:
    holder = components.start(CREATE | {"external_id": "user-1"}, jobs=table)

    result = run("-", stdin=json.dumps([CREATE, CREATE | {"external_id": "user-1", "Body": {}}]))

    assert (result.exit_code, result.stdout) == (2, "")
    assert holder.id in result.stderr
    assert [row["id"] for row in rows(table.engine, jobs)] == [holder.id]


def test_no_documents_have_no_outputs(run: Run) -> None:
    result = run("-", stdin="[]")

    assert (result.exit_code, result.stdout) == (0, "[]\n")


def test_a_file_that_is_not_there_is_named(run: Run, tmp_path: Path) -> None:
    result = run(str(tmp_path / "none.json"))

    assert result.exit_code == 2
    assert "No such file" in result.stderr
