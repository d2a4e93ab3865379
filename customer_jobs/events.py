"""A completion event: what it says of a job, and its form as a CloudEvent; pure, nothing is sent or stored here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any, Self
from urllib.parse import quote

from customer_jobs.payload import names_of
from customer_jobs.sql import Unreadable, is_too_deep
from customer_jobs.vocabulary import EVENT_TYPE_PREFIX, State, event_type

DEFAULT_STREAM = "customer-jobs:events"  #: The Redis Stream; EVENT_STREAM changes it.

#: What every intermediary must forward.
#: Source: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md#size-limits
MAX_EVENT_BYTES = 64 * 1024
#: Of the event, what is not its data: ids, type, source and time are a few hundred bytes.
MAX_DATA_BYTES = MAX_EVENT_BYTES - 4096
MAX_TEXT_LENGTH = 255  #: As wide as the widest column; SQLite keeps to no width.

#: What a consumer needs to branch on; messages and parameters may quote personal data and stay in the table.
_ERROR_FIELDS = ("type", "code", "http_status", "request_id")
_JOB_FIELDS = (
    "kind", "outcome", "credential", "stripe_account", "livemode", "customer_id", "external_id", "context", "attempt",
)  # fmt: skip

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Event:
    """One event as a consumer gets it: the members of a CloudEvent that vary."""

    id: str  #: With `source`, the event's identity: a copy published again has the same.
    type: str  #: `customer_jobs.customer.create.succeeded` and the like.
    source: str  #: `/customer-jobs/<credential>`
    subject: str  #: The job's id.
    time: datetime  #: When the job became final; aware UTC.
    data: Mapping[str, Any] = field(hash=False)  #: What became of the job; ids, no personal data.

    def to_dict(self) -> dict[str, Any]:
        """The CloudEvent as a JSON object, as a Celery task or an HTTP request takes it."""
        return _document(self.id, self.source, self.type, self.subject, self.time, dict(self.data))

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """The event of a CloudEvent's JSON object. Raises ValueError for what is not one of ours."""
        try:
            texts = {name: document[name] for name in ("id", "type", "source", "subject")}
            data, moment = document["data"], datetime.fromisoformat(document["time"]).astimezone(UTC)
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"not an event: {type(error).__name__}") from error
        if not all(isinstance(text, str) and text for text in texts.values()) or not isinstance(data, Mapping):
            raise ValueError("not an event: a member has the wrong type")
        return cls(**texts, time=moment, data=data)


def completion_event(job: Mapping[str, Any], state: State) -> dict[str, Any]:
    """The `events` row that says that a job became final; `job` is its row as it is after the change."""
    error = job["error"] if state is State.FAILED and isinstance(job["error"], Mapping) else None
    data = {"job_id": job["id"], "state": state.value}
    data |= {name: None if isinstance(job[name], Unreadable | bytes) else job[name] for name in _JOB_FIELDS}
    data |= names_of(job)
    data["error"] = {name: error.get(name) for name in _ERROR_FIELDS} if error is not None else None
    return {"type": event_type(_cut(job["kind"]), state), "subject": job["id"], "data": _within_limits(data)}


def cloud_event(row: Mapping[str, Any]) -> dict[str, Any]:
    """An `events` row as a CloudEvent 1.0.

    Source: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md
    """
    # A source is a URI reference.
    source = f"/customer-jobs/{quote(str(row['data']['credential']), safe='')}"
    return _document(row["id"], source, row["type"], row["subject"], row["created_at"], row["data"])


def stream_entry(row: Mapping[str, Any]) -> dict[str, str]:
    """The fields of a stream entry: the event whole, and beside it what filters look at."""
    return {"event": _json(cloud_event(row)), "type": row["type"], "subject": row["subject"]}


def is_wanted(type_: str, patterns: Iterable[str]) -> bool:
    """Whether a type is one of these: whole or without `customer_jobs.`, `*` stands for anything."""
    short = type_.removeprefix(f"{EVENT_TYPE_PREFIX}.")
    return any(fnmatchcase(type_, each) or fnmatchcase(short, each) for each in patterns)


def _document(id_: str, source: str, type_: str, subject: str, time: datetime, data: Any) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": id_,
        "source": source,
        "type": type_,
        "subject": subject,
        "time": time.isoformat().replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "data": data,
    }


def _within_limits(data: dict[str, Any]) -> dict[str, Any]:
    """The data, without what plain SQL wrote too much of: first the context, which stays in the job."""
    text = _json(data)
    if len(text.encode()) <= MAX_DATA_BYTES and not is_too_deep(data, text):
        return data
    shortened = {**data, "context": None, "context_omitted": True}
    if len(_json(shortened).encode()) <= MAX_DATA_BYTES:
        return shortened
    return {name: _cut(value) for name, value in shortened.items()}


def _cut(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _cut(each) for name, each in value.items()}
    return value[:MAX_TEXT_LENGTH] if isinstance(value, str) else value


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    # JSON may hold a lone surrogate and UTF-8 may not: one odd context must not keep every event from being published.
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
