"""Every event that a job can leave is a CloudEvent, by the SDK and by the schema, and small enough for anybody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from jsonschema import Draft202012Validator
from sqlalchemy import Engine

from customer_jobs import Event, State, lifecycle
from customer_jobs.database import writing
from customer_jobs.events import MAX_EVENT_BYTES, stream_entry
from customer_jobs.sql import MAX_DEPTH
from customer_jobs.vocabulary import FINAL_STATES, Kind, Verdict, event_type
from tests.builders import add_fetch, add_job, change, claimed, entry, events_of, success
from tests.markdown import blocks

SCHEMA = json.loads((Path(__file__).parents[1] / "cloudevents.schema.json").read_text())
VALIDATOR = Draft202012Validator(SCHEMA)

ERROR = {"type": "invalid_request_error", "code": "x", "http_status": 400, "request_id": "req_1", "message": "…"}

Json = dict[str, Any]


def end(engine: Engine, job_id: str, state: State) -> None:
    """Bring a waiting job to its end."""
    if state is State.CANCELLED:
        with writing(engine) as transaction:
            assert lifecycle.cancel(transaction, job_id)
        return
    held = claimed(engine, job_id)
    with writing(engine) as transaction:
        if state is State.SUCCEEDED:
            assert lifecycle.succeed(transaction, held, success(), entry())
        else:
            assert lifecycle.fail(transaction, held, entry(Verdict.FAILED), error=ERROR)


def nested(levels: int) -> Any:
    """A list in a list in a list …"""
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def published(engine: Engine, job_id: str) -> bytes:
    """The event as the stream gets it."""
    (row,) = events_of(engine, job_id)
    return stream_entry(row)["event"].encode()


def check(event: bytes) -> Json:
    """The event, which is one by everybody's opinion."""
    document: Json = json.loads(event)
    VALIDATOR.validate(document)
    read = JSONFormat().read(CloudEvent, event)
    assert (read.get_id(), read.get_source(), read.get_type()) == (document["id"], document["source"], document["type"])
    assert read.get_data() == document["data"]
    assert Event.from_dict(document).to_dict() == document
    assert len(event) <= MAX_EVENT_BYTES == 65_536
    return document


def test_the_schema_is_one_and_refuses_what_is_no_event() -> None:
    Draft202012Validator.check_schema(SCHEMA)

    assert not VALIDATOR.is_valid({"specversion": "1.0", "id": "1", "source": "/x", "type": "t"})


@pytest.mark.parametrize("state", FINAL_STATES)
@pytest.mark.parametrize("kind", Kind)
def test_every_type_is_a_cloudevent(engine: Engine, kind: Kind, state: State) -> None:
    add = add_job if kind is Kind.CUSTOMER_CREATE else add_fetch
    job_id = add(engine, context={"order": 7}, external_id="user-1", stripe_account="acct_1")
    end(engine, job_id, state)

    document = check(published(engine, job_id))

    assert document["type"] == event_type(kind, state)
    assert document["data"]["context"] == {"order": 7}
    assert "context_omitted" not in document["data"]


def test_the_documentation_shows_each_type_whole() -> None:
    shown = [check(block.text.encode()) for block in blocks("json") if block.page == "events.md"]

    assert sorted(each["type"] for each in shown) == sorted(event_type(k, s) for k in Kind for s in FINAL_STATES)


@pytest.mark.parametrize("state", FINAL_STATES)
@pytest.mark.parametrize(
    "context",
    [
        {"note": "x" * 100_000},
        ["\ud800" * 11_000],
        {"note": "\x00" * 11_000},
        ["🎉" * 16_000],
        {"k" * 70_000: None},
        nested(MAX_DEPTH),
    ],
    ids=["long", "surrogates", "controls", "emoji", "key", "deep"],
)
def test_an_event_is_small_whatever_the_context(engine: Engine, context: Any, state: State) -> None:
    job_id = add_job(engine, external_id="user-1")
    # Only plain SQL gets that much into the table.
    change(engine, job_id, context=context)
    end(engine, job_id, state)

    data = check(published(engine, job_id))["data"]

    assert (data["context"], data["context_omitted"]) == (None, True)
    assert (data["job_id"], data["external_id"]) == (job_id, "user-1")


def test_a_context_is_kept_as_deep_as_it_can_be_read_back(engine: Engine) -> None:
    job_id = add_job(engine, context=nested(MAX_DEPTH - 1))
    end(engine, job_id, State.SUCCEEDED)

    assert check(published(engine, job_id))["data"]["context"] == nested(MAX_DEPTH - 1)


def test_as_much_context_as_a_producer_may_give_is_kept(engine: Engine) -> None:
    context = {"note": "é" * 16_000}
    job_id = add_job(engine, context=context)
    end(engine, job_id, State.SUCCEEDED)

    assert check(published(engine, job_id))["data"]["context"] == context


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_what_only_sqlite_lets_into_the_table_is_cut(engine: Engine) -> None:
    job_id = add_job(engine, external_id="u" * 80_000, stripe_account="acct_" + "1" * 80_000)
    end(engine, job_id, State.SUCCEEDED)

    assert check(published(engine, job_id))["data"]["external_id"] == "u" * 255


def test_what_plain_sql_wrote_for_a_credential_and_is_none_is_hidden(engine: Engine) -> None:
    job_id = add_job(engine, credential="my key/<eu>")
    end(engine, job_id, State.CANCELLED)

    document = check(published(engine, job_id))

    assert document["source"] == "/customer-jobs/%E2%80%A6"
    assert document["data"]["credential"] == "…"
