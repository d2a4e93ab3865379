"""A completion event: what it says of a job, and its form as a CloudEvent; pure, nothing is sent or stored here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from customer_jobs.sql import Unreadable
from customer_jobs.vocabulary import State, event_type

DEFAULT_STREAM = "customer-jobs:events"  #: The Redis Stream; EVENT_STREAM changes it.

#: What a consumer needs to branch on; messages and parameters may quote personal data and stay in the table.
_ERROR_FIELDS = ("type", "code", "http_status", "request_id")
_JOB_FIELDS = (
    "kind", "outcome", "credential", "stripe_account", "livemode", "customer_id", "external_id", "context", "attempt",
)  # fmt: skip

_SURROGATE = re.compile("[\ud800-\udfff]")


def completion_event(job: Mapping[str, Any], state: State) -> dict[str, Any]:
    """The `events` row that says that a job became final; `job` is its row as it is after the change."""
    error = job["error"] if state is State.FAILED and isinstance(job["error"], Mapping) else None
    data = {"job_id": job["id"], "state": state.value}
    data |= {name: None if isinstance(job[name], Unreadable) else job[name] for name in _JOB_FIELDS}
    data["error"] = {name: error.get(name) for name in _ERROR_FIELDS} if error is not None else None
    return {"type": event_type(job["kind"], state), "subject": job["id"], "data": data}


def cloud_event(row: Mapping[str, Any]) -> dict[str, Any]:
    """An `events` row as a CloudEvent 1.0.

    Source: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md
    """
    return {
        "specversion": "1.0",
        "id": row["id"],
        "source": f"/customer-jobs/{row['data']['credential']}",
        "type": row["type"],
        "subject": row["subject"],
        "time": row["created_at"].isoformat().replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "data": row["data"],
    }


def stream_entry(row: Mapping[str, Any]) -> dict[str, str]:
    """The fields of a stream entry: the event whole, and beside it what filters look at."""
    event = json.dumps(cloud_event(row), ensure_ascii=False, separators=(",", ":"))
    # JSON may hold a lone surrogate and UTF-8 may not: one odd context must not keep every event from being published.
    event = _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", event)
    return {"event": event, "type": row["type"], "subject": row["subject"]}
