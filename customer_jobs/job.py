"""What callers read: Job, Attempt and Customer as frozen dataclasses, and the job document; no query lives here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from customer_jobs.sql import Unreadable
from customer_jobs.vocabulary import FINAL_STATES, State


@dataclass(frozen=True)
class Attempt:
    """One call to Stripe, as the ledger keeps it."""

    number: int
    started_at: datetime
    finished_at: datetime | None
    verdict: str | None
    ambiguous: bool
    http_status: int | None
    error_type: str | None
    error_code: str | None
    error_message: str | None
    request_id: str | None
    rate_limited_reason: str | None
    idempotency_key: str | None
    replayed: bool
    duration_ms: float | None
    worker: str | None


@dataclass(frozen=True)
class Job:
    """A job as it stood when it was read; `document()` is its JSON form."""

    id: str
    kind: str
    state: State
    credential: str
    stripe_account: str | None
    livemode: bool | None
    priority: int
    external_id: str | None
    attempt: int
    max_attempts: int
    created_at: datetime
    due_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    outcome: str | None
    customer_id: str | None
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    context: Any
    retry_of: str | None
    attempts: tuple[Attempt, ...] = ()

    @property
    def final(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in FINAL_STATES

    def document(self) -> dict[str, Any]:
        """The job document: the same fields as JSON values, times in ISO 8601 with their zone."""
        return {name: _json(value) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Customer:
    """The local copy of a Stripe customer; `data` is Stripe's whole object as it was at `fetched_at`."""

    id: str
    credential: str
    stripe_account: str | None
    livemode: bool
    email: str | None
    name: str | None
    metadata: dict[str, str] | None
    external_id: str | None
    deleted: bool
    data: dict[str, Any]
    fetched_at: datetime


def job_from_row(row: Mapping[str, Any], attempts: tuple[Attempt, ...] = ()) -> Job:
    """The Job of a `jobs` row; what cannot be read in it reads as null."""
    names = (name for name in Job.__dataclass_fields__ if name not in {"state", "attempts"})
    values: dict[str, Any] = {name: None if isinstance(row[name], Unreadable) else row[name] for name in names}
    for name in ("error", "result"):  # Ours, unless plain SQL wrote them.
        values[name] = values[name] if isinstance(values[name], dict) else None
    return Job(state=State(row["state"]), attempts=attempts, **values)


def attempt_from_row(row: Mapping[str, Any]) -> Attempt:
    """The Attempt of an `attempts` row."""
    return Attempt(**{name: row[name] for name in Attempt.__dataclass_fields__})


def customer_from_row(row: Mapping[str, Any]) -> Customer:
    """The Customer of a `customers` row."""
    values = {name: row[name] for name in Customer.__dataclass_fields__}
    return Customer(**values | {"stripe_account": row["stripe_account"] or None})


def _json(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, State):
        return value.value
    if isinstance(value, dict):
        return {key: _json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_json(each) for each in value]
    return value
