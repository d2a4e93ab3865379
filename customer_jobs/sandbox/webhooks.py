"""Signed events to webhook endpoints, from a thread of its own: late, doubled or out of order if asked.

Source: https://docs.stripe.com/webhooks
"""

import hashlib
import heapq
import hmac
import http.client
import itertools
import json
import random
import threading
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal
from urllib.parse import urlsplit

from customer_jobs.sandbox.customers import Json

#: Seconds a receiver has for its answer; Stripe's own bound is not documented.
TIMEOUT_SECONDS = 5.0
#: How many deliveries are remembered.
MAX_DELIVERIES = 100_000


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where events go and how well the way there works."""

    url: str
    secret: str  #: whsec_…; several, separated by commas, while one is rolled
    account: str | None = None  #: only events of this `acct_…`; None is all
    types: tuple[str, ...] = ("*",)  #: event types, `*` is all
    payload: Literal["snapshot", "thin"] = "snapshot"
    delay_seconds: float = 0.0  #: before the first delivery
    shuffle_seconds: float = 0.0  #: up to so much more, drawn for each delivery: they change their order
    duplicate_probability: float = 0.0
    max_attempts: int = 5  #: deliveries of one event until it is given up
    backoff_seconds: float = 0.5  #: before the second attempt, doubled for each further one

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"expected an http:// or https:// URL, not {self.url!r}")
        if not self.secret:
            raise ValueError("a webhook endpoint needs a secret")
        if self.payload not in ("snapshot", "thin"):
            raise ValueError(f"payload is snapshot or thin, not {self.payload!r}")

    def wants(self, event: Json, account: str) -> bool:
        return self.account in (None, account) and ("*" in self.types or event["type"] in self.types)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One attempt to deliver an event."""

    event_id: str
    type: str
    url: str
    attempt: int
    status: int | None  #: None when there was no answer
    sent_at: float  #: seconds since 1970


@dataclass(frozen=True, slots=True)
class _Parcel:
    endpoint: Endpoint
    event: Json
    attempt: int = 1


def sign(body: bytes | str, secret: str, timestamp: int | None = None) -> str:
    """The Stripe-Signature header for a body; timestamp in seconds since 1970, now if left out.

    Several secrets, separated by commas, make several `v1`, as while a secret is rolled.

    Source: https://docs.stripe.com/webhooks#verify-manually
    """
    moment = int(time.time()) if timestamp is None else timestamp
    payload = f"{moment}.".encode() + (body.encode() if isinstance(body, str) else body)
    digests = (hmac.new(one.strip().encode(), payload, hashlib.sha256).hexdigest() for one in secret.split(","))
    return ",".join([f"t={moment}", *(f"v1={digest}" for digest in digests)])


def thin(event: Json) -> Json:
    """The notification of an event without its data.

    Source: https://docs.stripe.com/event-destinations#thin-events
    """
    item = event["data"]["object"]
    moment = datetime.fromtimestamp(event["created"], UTC)
    related = {"id": item.get("id"), "type": item.get("object"), "url": f"/v1/customers/{item.get('id')}"}
    return {
        "id": event["id"],
        "object": "v2.core.event",
        "type": f"v1.{event['type']}",
        "context": event.get("account"),
        "created": moment.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        "livemode": event["livemode"],
        "reason": {"type": "request", "request": event["request"]},
        "related_object": related,
    }


class Webhooks:
    """The endpoints and the thread that delivers; safe to share between threads."""

    def __init__(self, endpoints: tuple[Endpoint, ...] = (), seed: int | None = None) -> None:
        self._endpoints = endpoints
        self._random = random.Random(seed)  # noqa: S311  # chance for tests, repeatable by its seed
        self._due: list[tuple[float, int, _Parcel]] = []
        self._numbers = itertools.count()
        self._deliveries: list[Delivery] = []
        self._under_way = 0
        self._stopping = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def configure(self, *endpoints: Endpoint) -> None:
        """These endpoints from now on instead of the ones before; what is on its way still arrives."""
        with self._changed:
            self._endpoints = endpoints

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        return self._endpoints

    def send(self, event: Json, account: str, *, connected: bool = False) -> None:
        """Deliver the event to every endpoint that wants it; account is the one it happened in."""
        if not self._endpoints:
            return
        with self._changed:
            wanting = [endpoint for endpoint in self._endpoints if endpoint.wants(event, account)]
            event = event | {"pending_webhooks": len(wanting)} | ({"account": account} if connected else {})
            for endpoint in wanting:
                copies = 2 if self._random.random() < endpoint.duplicate_probability else 1
                for _ in range(copies):
                    late = endpoint.delay_seconds + self._random.uniform(0.0, endpoint.shuffle_seconds)
                    self._put(_Parcel(endpoint, event), late)

    def deliveries(self) -> list[Delivery]:
        with self._changed:
            return list(self._deliveries)

    def wait_until_idle(self, timeout_seconds: float) -> None:
        """Return once everything is delivered or given up.

        Raises:
            TimeoutError: something is still on its way.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: not self._due and not self._under_way, timeout_seconds):
                raise TimeoutError(f"{len(self._due) + self._under_way} deliveries were still on their way")

    def stop(self) -> None:
        """Drop what is on its way and wait until the thread has ended."""
        with self._changed:
            self._stopping = True
            self._due.clear()
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _put(self, parcel: _Parcel, late_seconds: float) -> None:
        if self._stopping:
            return
        heapq.heappush(self._due, (time.monotonic() + late_seconds, next(self._numbers), parcel))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="sandbox-webhooks", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._stopping and (not self._due or self._due[0][0] > time.monotonic()):
                    self._changed.wait(self._due[0][0] - time.monotonic() if self._due else None)
                if self._stopping:
                    return
                parcel = heapq.heappop(self._due)[2]
                self._under_way += 1
            delivery = deliver(parcel.endpoint, parcel.event, parcel.attempt)
            with self._changed:
                self._under_way -= 1
                self._deliveries.append(delivery)
                del self._deliveries[:-MAX_DELIVERIES]
                arrived = delivery.status is not None and 200 <= delivery.status < 300
                if not arrived and parcel.attempt < parcel.endpoint.max_attempts:
                    late = parcel.endpoint.backoff_seconds * 2 ** (parcel.attempt - 1)
                    self._put(replace(parcel, attempt=parcel.attempt + 1), late)
                self._changed.notify_all()


def deliver(endpoint: Endpoint, event: Json, attempt: int = 1) -> Delivery:
    """One attempt over HTTP; a receiver out of reach is a delivery without status."""
    body = json.dumps(thin(event) if endpoint.payload == "thin" else event).encode()
    parts = urlsplit(endpoint.url)
    headers = {
        "Content-Type": "application/json; charset=utf-8",
        "Stripe-Signature": sign(body, endpoint.secret),
        "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
    }
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_SECONDS)
    status: int | None = None
    sent_at = time.time()
    try:
        connection.request("POST", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), body, headers)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException):
        # Stripe tries again, and so do we; the delivery's missing status says what happened.
        pass
    finally:
        connection.close()
    return Delivery(event["id"], event["type"], endpoint.url, attempt, status, sent_at)
