"""What a call to Stripe can come back as: a union of small frozen dataclasses that `record` matches once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from customer_jobs.problems import Problem


@dataclass(frozen=True)
class Answered:
    """2xx with an object."""

    body: Mapping[str, Any]
    headers: Mapping[str, str]
    http_status: int
    request_id: str | None
    replayed: bool = False  #: Stripe repeated the answer of an earlier attempt.


@dataclass(frozen=True)
class NotAnswered:
    """Anything else; which of the six it is says what may be done about it."""

    problem: Problem
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None  #: Stripe's parsed answer, where there was one.
    replayed: bool = False


@dataclass(frozen=True)
class RateLimited(NotAnswered):
    """Stripe's limiter turned the request away before executing it."""

    reason: str | None = None  #: Stripe-Rate-Limited-Reason.


@dataclass(frozen=True)
class Transient(NotAnswered):
    """Worth another attempt under the same key."""

    ambiguous: bool = False  #: Stripe may have executed it.


@dataclass(frozen=True)
class Frozen(NotAnswered):
    """A 5xx that Stripe saved under the key: every further attempt gets the same answer, the deed may be done."""


@dataclass(frozen=True)
class KeyReused(NotAnswered):
    """Stripe knows the idempotency key with other parameters: a bug of ours, or a key much older than it looks."""


@dataclass(frozen=True)
class KeyRefused(NotAnswered):
    """The API key is wrong, expired or not allowed to do this: no job of the credential can succeed."""


@dataclass(frozen=True)
class Rejected(NotAnswered):
    """The same request would be refused again."""


Answer = Answered | RateLimited | Transient | Frozen | KeyReused | KeyRefused | Rejected
