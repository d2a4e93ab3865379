"""Anybody who may INSERT is a producer; a row that makes no sense ends with a remedy, and the others go on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from customer_jobs import CustomerJobs
from customer_jobs.events import stream_entry
from customer_jobs.sandbox import Sandbox
from customer_jobs.schema import jobs
from customer_jobs.vocabulary import State
from tests.builders import EMAIL, Row, Worker, add_fetch, add_job, events_of, job_row, raw, rows

NESTED = '{"a":' * 90 + "1" + "}" * 90
BODY = json.dumps({"body": {"email": EMAIL}})


def insert(engine: Engine, **columns: Any) -> Row:
    """The row that plain SQL makes of columns written as SQL."""
    written = {"kind": "'customer.create'", "payload": f"'{BODY}'"} | columns
    before = {row["id"] for row in rows(engine, jobs)}
    raw(engine, f"INSERT INTO jobs ({', '.join(written)}) VALUES ({', '.join(written.values())})")
    (row,) = (row for row in rows(engine, jobs) if row["id"] not in before)
    return row


def is_refused(engine: Engine, **columns: Any) -> bool:
    """Whether the table takes no such row."""
    try:
        insert(engine, **columns)
    except DBAPIError:
        return True
    return False


def works_on(engine: Engine, worker: Worker) -> bool:
    """Whether other jobs still come to their end."""
    job_id = add_job(engine)
    worker.work()
    return bool(job_row(engine, job_id)["state"] == State.SUCCEEDED)


def test_kind_and_payload_are_enough(engine: Engine, worker: Worker, sandbox: Sandbox) -> None:
    row = insert(engine)

    worker.work()

    (request,) = sandbox.requests
    assert request.params == {"email": EMAIL, "metadata": {"customer_jobs_id": row["id"]}}
    assert request.idempotency_key == f"customer-jobs-{row['id']}"
    found = CustomerJobs(engine).get(row["id"])
    assert found is not None
    assert (found.state, found.outcome) == (State.SUCCEEDED, "created")


def test_a_fetch_may_be_written_by_sql(engine: Engine, worker: Worker, sandbox: Sandbox) -> None:
    insert(engine)
    worker.work()
    (customer,) = sandbox.customers()

    row = insert(engine, kind="'customer.fetch'", payload=f"'{json.dumps({'customer_id': customer['id']})}'")
    worker.work()

    assert job_row(engine, row["id"])["outcome"] == "found"


#: What makes no sense: columns as SQL, the field that the error names.
HOPELESS: dict[str, tuple[dict[str, str], str | None]] = {
    "an unknown kind": ({"kind": "'customer.delete'"}, "kind"),
    "an empty kind": ({"kind": "''"}, "kind"),
    "a payload without a body": ({"payload": "'{}'"}, "payload"),
    "a payload with more than a body": ({"payload": '\'{"body": {}, "api_key": 1}\''}, "payload"),
    "a list": ({"payload": "'[]'"}, "payload"),
    "a number": ({"payload": "'7'"}, "payload"),
    "a text": ({"payload": "'\"text\"'"}, "payload"),
    "a null": ({"payload": "'null'"}, "payload"),
    "a refused parameter": ({"payload": '\'{"body": {"id": "cus_1"}}\''}, "id"),
    "brackets": ({"payload": '\'{"body": {"metadata[a]": "x"}}\''}, "body"),
    "an escaped NUL": ({"payload": '\'{"body": {"name": "a\\u0000b"}}\''}, "name"),
    "a lone surrogate": ({"payload": '\'{"body": {"name": "\\ud800"}}\''}, "name"),
    "deep nesting": ({"payload": f"'{{\"body\": {NESTED}}}'"}, None),
    "very deep nesting": ({"payload": f"'{'[' * 5000}{']' * 5000}'"}, "payload"),
    "a large body": ({"payload": f"'{json.dumps({'body': {'name': 'x' * 1_000_000}})}'"}, "body"),
    "a huge number": ({"payload": f'\'{{"body": {{"balance": {"9" * 5000}}}}}\''}, None),
    "a malformed credential": ({"credential": "'Not A Name'"}, "credential"),
    "a pasted key": ({"credential": "'SK_live_51Hxxxxxxxx'"}, "credential"),
    "an account that is none": ({"stripe_account": "'cus_1'"}, "stripe_account"),
    "a header in an account": ({"stripe_account": "'acct_1\r\nX-Injected: yes'"}, "stripe_account"),
    "a blank external_id": ({"external_id": "' '"}, "external_id"),
    "an empty customer id": ({"kind": "'customer.fetch'", "payload": '\'{"customer_id": ""}\''}, "customer_id"),
    "a path as customer id": ({"kind": "'customer.fetch'", "payload": '\'{"customer_id": "../x"}\''}, "customer_id"),
    "params that are no JSON": ({"params": "'{'"}, "params"),
    "params with a lone surrogate": ({"params": '\'{"name": "\\ud800"}\''}, "params"),
    "a fetch's params with a lone surrogate": (
        {"kind": "'customer.fetch'", "params": '\'{"customer_id": "\\ud800"}\''},
        "params",
    ),
}


@pytest.mark.parametrize("what", HOPELESS)
def test_a_row_that_makes_no_sense_fails_with_a_remedy_and_the_others_go_on(
    engine: Engine, worker: Worker, sandbox: Sandbox, what: str
) -> None:
    columns, field = HOPELESS[what]

    row = insert(engine, **columns)
    worker.work()

    failed = job_row(engine, row["id"])
    assert failed["state"] == State.FAILED
    assert failed["error"]["code"] == "invalid_payload"
    assert field in {None, failed["error"]["param"]}
    assert failed["error"]["remedy"] == "correct the named field and enqueue the job again; nothing was sent to Stripe"
    assert len(json.dumps(failed["error"])) < 1_500
    assert "51Hxxxxxxxx" not in json.dumps(failed["error"])
    assert len(events_of(engine, row["id"])) == 1
    assert sandbox.requests == []
    assert works_on(engine, worker)


@pytest.mark.parametrize("key", ["sk_live_51Hxxxxxxxx", "sk_test_51hxxxxxxxx", "rk_live_51Hxxxxxxxx"])
@pytest.mark.parametrize("column", ["credential", "stripe_account"])
def test_a_key_that_was_taken_for_a_name_is_neither_logged_nor_published(
    engine: Engine, worker: Worker, capsys: pytest.CaptureFixture[str], column: str, key: str
) -> None:
    row = insert(engine, **{column: f"'{key}'"})

    worker.work()

    (event,) = events_of(engine, row["id"])
    entry, logged = json.dumps(stream_entry(event)), "".join(capsys.readouterr())
    assert event["data"][column] == "…"
    assert key not in entry
    assert row["id"] in logged
    assert key not in logged
    assert job_row(engine, row["id"])["error"]["code"] == "invalid_payload"


def test_a_credential_that_nobody_has_fails_with_the_setting_to_set(engine: Engine, worker: Worker) -> None:
    row = insert(engine, credential="'eu'")

    worker.work()

    error = job_row(engine, row["id"])["error"]
    assert error["code"] == "unknown_credential"
    assert "STRIPE_API_KEY_<NAME> for credential 'eu'" in error["remedy"]
    assert works_on(engine, worker)


@pytest.mark.parametrize("database", ["sqlite"])
@pytest.mark.parametrize("kind", ["customer.create", "customer.fetch", "nope"])
def test_an_external_id_of_bytes_ends_its_job_and_the_others_go_on(engine: Engine, worker: Worker, kind: str) -> None:
    row = insert(engine, kind=f"'{kind}'", external_id="X'FF'")

    worker.work()

    failed = job_row(engine, row["id"])
    assert (failed["state"], failed["error"]["code"]) == (State.FAILED, "invalid_payload")
    assert [event["data"]["external_id"] for event in events_of(engine, row["id"])] == [None]
    assert works_on(engine, worker)


@pytest.mark.parametrize("database", ["sqlite"])
@pytest.mark.parametrize("reconciling", ["2", "-1", "0.5", "'x'", "X'FF'"])
def test_a_truth_value_that_is_none_keeps_no_other_lane_from_being_found(
    engine: Engine, worker: Worker, reconciling: str
) -> None:
    for kind in ("'customer.create'", "'customer.fetch'"):
        insert(engine, kind=kind, reconciling=reconciling)
    beside = [add_job(engine), add_job(engine, reconciling=True), add_fetch(engine, stripe_account="acct_z")]

    worker.work()

    assert State.QUEUED not in {job_row(engine, job_id)["state"] for job_id in beside}


#: What the table itself refuses, or takes and survives.
IMPOSSIBLE: dict[str, dict[str, str]] = {
    "no JSON": {"payload": "'no JSON'"},
    "bytes": {"payload": "X'FF'"},
    "text of other bytes than UTF-8": {"payload": "CAST(X'FF' AS TEXT)"},
    "a kind of bytes": {"kind": "X'FF'"},
    "a kind of other bytes than UTF-8": {"kind": "CAST(X'FF' AS TEXT)"},
    "a credential of other bytes than UTF-8": {"credential": "CAST(X'FF' AS TEXT)"},
    "an external_id of other bytes than UTF-8": {"external_id": "CAST(X'FF' AS TEXT)"},
    "no attempts": {"max_attempts": "0"},
    "words for attempts": {"max_attempts": "'many'"},
    "a negative attempt": {"attempt": "-1"},
    "an id that is no UUID": {"id": "'7'"},
    "an id in capitals": {"id": "'0B1C9F1E-5B0C-4B55-9D2F-0C8B1B0F6A1D'"},
    "a time in words": {"due_at": "'tomorrow'"},
    "a time of no calendar": {"due_at": "'2026-02-31 00:00:00'"},
    "a time all of nines": {"due_at": "'0000-99-99 99:99:99'"},
    "a time of letters": {"due_at": "'abcd-ef-gh ij:kl:mn'"},
    "a time in ISO 8601": {"due_at": "'2026-01-01T00:00:00Z'"},
    "a time with a zone": {"due_at": "'2026-01-01 00:00:00+02:00'"},
    "a time with a strange fraction": {"due_at": "'2026-01-01 00:00:00.1.2'"},
    "seconds since 1970": {"due_at": "1767225600"},
    "the end of time": {"due_at": "'infinity'"},
    "the beginning of time": {"due_at": "'-infinity'"},
    "before Christ": {"due_at": "'4000-01-01 00:00:00 BC'"},
    "after the year 9999": {"due_at": "'20000-01-01 00:00:00'"},
    "created never": {"created_at": "'-infinity'"},
    "created at no time": {"created_at": "'yesterday'"},
    "begun in the year 2026, as a number": {"started_at": "'2026'"},
    "begun in bytes": {"started_at": "X'FF'"},
    "a broken priority": {"priority": "2.5"},
    "a priority in words": {"priority": "'urgent'"},
    "a state of its own": {"state": "'sleeping'"},
    "an empty external_id": {"external_id": "''"},
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_a_value_of_no_sense_is_refused_by_the_table_or_harms_nobody(engine: Engine, worker: Worker, what: str) -> None:
    refused = is_refused(engine, **IMPOSSIBLE[what])

    assert works_on(engine, worker)
    assert len(CustomerJobs(engine).list()) == 1 + (not refused)


@pytest.mark.parametrize(
    "written", ["'2026-01-01 00:00:00'", "'2026-01-01 00:00:00.5'", "'2026-01-01 00:00:00.999999'"]
)
def test_a_time_may_be_written_with_or_without_a_fraction(engine: Engine, worker: Worker, written: str) -> None:
    row = insert(engine, due_at=written)

    worker.work()

    assert job_row(engine, row["id"])["state"] == State.SUCCEEDED


@pytest.mark.parametrize("context", ["7", '"text"', '{"a": "\\ud800\\u0000"}', f"{'[' * 90}{']' * 90}"], ids=ascii)
def test_an_odd_context_comes_back_as_it_was(engine: Engine, worker: Worker, context: str) -> None:
    row = insert(engine, context=f"'{context}'")

    worker.work()

    (event,) = events_of(engine, row["id"])
    assert event["data"]["context"] == json.loads(context)


@pytest.mark.parametrize(
    "context",
    ["[1e400]", "[-1e400]", "[NaN]", "[Infinity]", *("[" * depth + "]" * depth for depth in (400, 900, 990, 3_000))],
    ids=lambda context: context[:10] + str(len(context)),
)
def test_a_context_beyond_reading_does_not_keep_its_job_from_ending(
    engine: Engine, worker: Worker, context: str
) -> None:
    if is_refused(engine, context=f"'{context}'"):
        return  # PostgreSQL knows no NaN in JSON.
    (row,) = rows(engine, jobs)

    worker.work()

    assert job_row(engine, row["id"])["state"] == State.SUCCEEDED
    assert [event["data"]["context"] for event in events_of(engine, row["id"])] == [None]
    assert CustomerJobs(engine).list()[0].context is None
