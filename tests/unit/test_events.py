"""A completion event is a valid CloudEvent, and says nothing of the person."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest

from customer_jobs.events import cloud_event, completion_event, stream_entry
from customer_jobs.sql import Unreadable
from customer_jobs.vocabulary import FINAL_STATES, Kind, State

JOB_ID = "0b5e3f0c-6c3f-4d57-9a55-0f4d0c1f2a3b"
EVENT_ID = "5c3b1f7e-2f64-4c8e-9d51-3f3c2b1a0f9e"
PERSON = ("jenny.rosen@example.com", "Jenny Rosen", "+4915112345678")


def job(**columns: Any) -> dict[str, Any]:
    """The row of a job that is as full of a person's data as can be."""
    email, name, phone = PERSON
    return {
        "id": JOB_ID,
        "kind": Kind.CUSTOMER_CREATE.value,
        "state": "succeeded",
        "credential": "default",
        "stripe_account": None,
        "livemode": False,
        "external_id": "user-1",
        "attempt": 1,
        "outcome": "created",
        "customer_id": "cus_1",
        "context": {"order": 7},
        "payload": {"body": {"email": email, "name": name, "phone": phone}},
        "params": json.dumps({"email": email}),
        "result": {"customer_email": email, "response": {"name": name, "phone": phone}},
        "error": {
            "type": "invalid_request_error",
            "code": "email_invalid",
            "message": f"Invalid email address: {email}",
            "param": "email",
            "http_status": 400,
            "request_id": "req_1",
            "remedy": f"correct {email}",
        },
        **columns,
    }


def row(state: State = State.SUCCEEDED, **columns: Any) -> dict[str, Any]:
    """The outbox's row of a job that became final."""
    created_at = datetime(2026, 11, 5, 12, 30, 15, 123456, tzinfo=UTC)
    return {"seq": 1, "id": EVENT_ID, "created_at": created_at} | completion_event(job(**columns), state)


@pytest.mark.parametrize("state", FINAL_STATES)
@pytest.mark.parametrize("kind", Kind)
def test_an_event_has_what_cloudevents_1_0_requires(kind: Kind, state: State) -> None:
    event = cloud_event(row(state, kind=kind.value))

    # https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md#required-attributes
    for required in ("id", "source", "specversion", "type"):
        assert isinstance(event[required], str)
        assert event[required]
    assert event["specversion"] == "1.0"
    assert all(re.fullmatch(r"[a-z0-9]{1,20}", name) for name in event)
    assert event["type"] == f"customer_jobs.{kind}.{state}"
    assert event["source"] == "/customer-jobs/default"
    assert event["subject"] == JOB_ID
    assert event["datacontenttype"] == "application/json"
    assert datetime.fromisoformat(event["time"]) == datetime(2026, 11, 5, 12, 30, 15, 123456, tzinfo=UTC)
    assert event["time"].endswith("Z")
    assert json.loads(json.dumps(event)) == event


def test_the_data_are_those_of_the_contract() -> None:
    event = cloud_event(row(State.FAILED, stripe_account="acct_1", outcome=None, customer_id=None))

    assert event["data"] == {
        "job_id": JOB_ID,
        "kind": "customer.create",
        "state": "failed",
        "outcome": None,
        "credential": "default",
        "stripe_account": "acct_1",
        "livemode": False,
        "customer_id": None,
        "external_id": "user-1",
        "context": {"order": 7},
        "attempt": 1,
        "error": {
            "type": "invalid_request_error",
            "code": "email_invalid",
            "http_status": 400,
            "request_id": "req_1",
        },
    }


@pytest.mark.parametrize("state", FINAL_STATES)
def test_no_personal_data_are_in_an_event(state: State) -> None:
    shown = json.dumps(stream_entry(row(state)))

    assert not any(piece in shown for piece in PERSON)


def test_the_error_of_an_earlier_attempt_is_not_that_of_a_success() -> None:
    assert cloud_event(row(State.SUCCEEDED))["data"]["error"] is None


def test_an_entry_of_the_stream_has_the_event_and_what_filters_look_at() -> None:
    entry = stream_entry(row())

    assert list(entry) == ["event", "type", "subject"]
    assert json.loads(entry["event"]) == cloud_event(row())
    assert entry["type"] == "customer_jobs.customer.create.succeeded"
    assert entry["subject"] == JOB_ID


@pytest.mark.parametrize("context", ["Zoë 🎉", {"name": "\ud800"}, ["\x00", "\u2028"]], ids=ascii)
def test_any_context_can_be_published(context: Any) -> None:
    entry = stream_entry(row(context=context))

    published = {name: value.encode() for name, value in entry.items()}

    assert json.loads(published["event"])["data"]["context"] == context


def test_a_context_that_cannot_be_read_is_left_out() -> None:
    assert cloud_event(row(context=Unreadable("not JSON")))["data"]["context"] is None
