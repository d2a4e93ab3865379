"""A job and its attempts, as the worker reads them; their state is changed by `customer_jobs.lifecycle` only."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy.orm import Mapped

from customer_jobs import schema
from models.base import Base


class Job(Base):
    __table__ = schema.jobs

    id: Mapped[str]
    kind: Mapped[str]
    state: Mapped[str]
    credential: Mapped[str]
    stripe_account: Mapped[str | None]
    priority: Mapped[int]
    external_id: Mapped[str | None]
    payload: Mapped[Any]
    context: Mapped[Any]
    attempt: Mapped[int]
    max_attempts: Mapped[int]
    due_at: Mapped[datetime]
    lease_token: Mapped[str | None]
    lease_expires_at: Mapped[datetime | None]
    params: Mapped[str | None]
    first_sent_at: Mapped[datetime | None]
    sent_to: Mapped[str | None]
    candidate_customer_id: Mapped[str | None]
    reconciling: Mapped[bool]
    retry_of: Mapped[str | None]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class Attempt(Base):
    __table__ = schema.attempts

    job_id: Mapped[str]
    number: Mapped[int]
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    verdict: Mapped[str | None]
    ambiguous: Mapped[bool]
