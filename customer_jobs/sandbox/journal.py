"""The log of every request the sandbox saw, and waiting for one; keeps no whole key."""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from customer_jobs.sandbox.forms import Params

#: About 1.5 KB each; the oldest go first.
MAX_REQUESTS = 1_000_000


@dataclass(frozen=True, slots=True)
class Request:
    """One request; while it is under way, what is answered is still None."""

    number: int  #: from 1, in order of arrival
    arrived_at: float  #: seconds since 1970, by the sandbox's clock
    arrived_monotonic: float  #: seconds, for differences
    method: str
    path: str
    endpoint: str | None  #: create, retrieve, update, delete, list, account, events …; None for an unknown URL
    params: Params  #: of the query or the form, nested
    key: str  #: masked, such as sk_test_****1234
    mode: str  #: test or live; empty when the key was refused
    account: str  #: `acct_…` acted for; empty when the key was refused
    stripe_account: str | None  #: the Stripe-Account header
    idempotency_key: str | None
    stripe_version: str | None  #: the Stripe-Version header
    request_id: str
    status: int | None = None  #: None while under way, and when nothing was answered
    error_code: str | None = None
    rate_limited_reason: str | None = None
    replayed: bool = False
    fault: str | None = None  #: the fault it met
    finished_at: float | None = None  #: None while under way


class Journal:
    """Requests by number; safe to share between threads."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._requests: dict[int, Request] = {}
        self._last = 0
        self._waiting: list[queue.SimpleQueue[Request]] = []
        self._lock = threading.Lock()

    def begin(self, **fields: Any) -> Request:
        """The request has arrived; fields are those of `Request` known by then."""
        with self._lock:
            self._last += 1
            now, monotonic = self._clock(), time.monotonic()
            request = Request(self._last, now, monotonic, **fields)
            self._requests[request.number] = request
            self._requests.pop(self._last - MAX_REQUESTS, None)
            self._tell(request)
        return request

    def finish(
        self,
        begun: Request,
        status: int | None,
        *,
        error_code: str | None = None,
        rate_limited_reason: str | None = None,
        replayed: bool = False,
        fault: str | None = None,
    ) -> None:
        """The request is about to be answered."""
        request = replace(
            begun,
            status=status,
            error_code=error_code,
            rate_limited_reason=rate_limited_reason,
            replayed=replayed,
            fault=fault,
            finished_at=self._clock(),
        )
        with self._lock:
            if begun.number in self._requests:
                self._requests[begun.number] = request
            self._tell(request)

    def requests(self, since: int = 0) -> list[Request]:
        """Those with a higher number, oldest first."""
        with self._lock:
            if since == 0:
                return list(self._requests.values())
            first = self._last - len(self._requests) + 1
            return [self._requests[number] for number in range(max(first, since + 1), self._last + 1)]

    def wait_until(self, predicate: Callable[[Request], bool], timeout_seconds: float, count: int = 1) -> Request:
        """The request that is the count-th to satisfy the predicate, seen already or still to come.

        Raises:
            TimeoutError: it did not come.
        """
        changes: queue.SimpleQueue[Request] = queue.SimpleQueue()
        with self._lock:
            self._waiting.append(changes)
            seen = list(self._requests.values())
        try:
            deadline = time.monotonic() + timeout_seconds
            matched: set[int] = set()
            for request in seen:
                if predicate(request):
                    matched.add(request.number)
                    if len(matched) == count:
                        return request
            while True:
                try:
                    request = changes.get(timeout=max(0.0, deadline - time.monotonic()))
                except queue.Empty:
                    raise TimeoutError(
                        f"{len(matched)} of {count} wanted requests within {timeout_seconds:g} s"
                    ) from None
                if request.number not in matched and predicate(request):
                    matched.add(request.number)
                    if len(matched) == count:
                        return request
        finally:
            with self._lock:
                self._waiting.remove(changes)

    def clear(self) -> None:
        """Forget the requests; numbers go on."""
        with self._lock:
            self._requests.clear()

    def _tell(self, request: Request) -> None:
        for changes in self._waiting:
            changes.put(request)
