"""What Stripe remembers under an idempotency key; the clock is passed in.

Source: https://docs.stripe.com/api/idempotent_requests
"""

import threading
from dataclasses import dataclass

from customer_jobs.sandbox.refusals import Refusal, key_in_use

#: Stripe may forget a key once it is this old; the sandbox does so at once, to show that the key executes anew.
KEPT_SECONDS = 24 * 3600.0
MAX_KEY_LENGTH = 255

Scope = tuple[str, str, str]  #: account of the key, account acted for, mode


@dataclass(frozen=True, slots=True)
class Saved:
    """The answer a key brings back."""

    status: int
    body: bytes
    request_id: str  #: of the request that was executed


@dataclass(slots=True)
class _Record:
    path: str
    fingerprint: bytes
    begun_at: float
    saved: Saved | None = None


class IdempotencyKeys:
    """The keys of all accounts; safe to share between threads."""

    def __init__(self) -> None:
        self._records: dict[tuple[Scope, str], _Record] = {}
        self._lock = threading.Lock()

    def begin(self, scope: Scope, key: str, path: str, fingerprint: bytes, now: float) -> Saved | None:
        """The saved answer; or None, and the caller must execute and then `save` or `abandon`.

        Raises:
            Refusal: 400 if the key was used for something else, 409 while its first request is under way.
        """
        if len(key) > MAX_KEY_LENGTH:
            message = f"Idempotency keys can be at most {MAX_KEY_LENGTH} characters long, but yours is {len(key)}."
            raise Refusal(400, message)
        with self._lock:
            record = self._records.get((scope, key))
            if record is None or (record.saved is not None and now - record.begun_at >= KEPT_SECONDS):
                self._records[scope, key] = _Record(path, fingerprint, now)
                return None
        if record.path != path:
            raise _misused(f"for the same endpoint they were first used for ('{path}' vs '{record.path}')", key)
        if record.fingerprint != fingerprint:
            raise _misused("with the same parameters they were first used with", key)
        if record.saved is None:
            raise key_in_use(key)
        return record.saved

    def save(self, scope: Scope, key: str, saved: Saved) -> None:
        with self._lock:
            record = self._records.get((scope, key))
            if record is not None:
                record.saved = saved

    def abandon(self, scope: Scope, key: str) -> None:
        """Nothing was executed: the key is free again."""
        with self._lock:
            self._records.pop((scope, key), None)

    def clear(self) -> None:
        with self._lock:
            self._records.clear()


def _misused(how: str, key: str) -> Refusal:
    message = (
        f"Keys for idempotent requests can only be used {how}. "
        f"Try using a key other than '{key}' if you meant to execute a different request."
    )
    return Refusal(400, message, type_="idempotency_error")
