"""The sandbox within the test's process: the real gateway speaks to it through requests, but without a socket."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import requests
import urllib3
from greenlet import getcurrent
from requests.adapters import HTTPAdapter

from customer_jobs.sandbox import Sandbox
from customer_jobs.sandbox.answers import Answer
from customer_jobs.sandbox.api import Api
from customer_jobs.sandbox.calls import Call
from tests.builders import settings_for
from tests.chaos.operation import Operation, seam
from worker.gateway import Gateway
from worker.transport import Transport

BASE = "http://127.0.0.1:1"  #: Never connected to.
UNREACHABLE = "unreachable"  #: Beside the sandbox's faults: no connection comes about.
BEFORE_READ, AFTER_CALL = "before Stripe is asked", "after Stripe's answer"


class StripeWithin:
    """A sandbox whose clock may run ahead; the tables' times are then as much older."""

    def __init__(self) -> None:
        self.ahead_seconds = 0.0
        self.sandbox = Sandbox(clock=lambda: time.time() + self.ahead_seconds)
        self._api = Api(
            store=self.sandbox._store,
            keys=self.sandbox._keys,
            limiter=self.sandbox._limiter,
            faults=self.sandbox.faults,
            journal=self.sandbox._journal,
            pace=self.sandbox._pace,
            clock=self.sandbox._clock,
            publish=lambda *_: None,
        )

    def gateway(self, key: str) -> Gateway:
        """A gateway with this key for the credential `default`, which knows its account."""
        made = Gateway(settings_for(stripe_api_base=BASE, stripe_api_keys={"default": key}))
        made._transport.session.mount("http://", _Adapter(self, made._transport))
        made.trust({"default": f"acct_{key.split('_')[2]}"})
        return made

    def events(self) -> list[dict[str, Any]]:
        """What Stripe has to tell, oldest first."""
        return [event for shelf in self.sandbox._store._events.values() for event in shelf.live.values()]

    def answer(self, call: Call, fault: str | None) -> Answer:
        """What the sandbox answers a call that meets this fault."""
        if fault is not None:
            self.sandbox.faults.add(fault, times=1)
        try:
            return self._api.handle(call)
        finally:
            self.sandbox.faults.clear()


class _Adapter(HTTPAdapter):
    """Hands a prepared request to the sandbox, and does to its answer what the wire would."""

    def __init__(self, stripe: StripeWithin, transport: Transport) -> None:
        super().__init__()
        self._stripe = stripe
        self._transport = transport

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        if request.method == "GET":  # A create is sent at once, when its worker has looked at the clock.
            self._pass(BEFORE_READ)
        current = getcurrent()
        fault = None
        if isinstance(current, Operation):
            fault, current.fault = current.fault, None
        if fault == UNREACHABLE:
            assert isinstance(current, Operation)
            current.was_not_sent = request.method == "POST"
            refused = urllib3.exceptions.NewConnectionError(None, "refused")  # type: ignore[arg-type]
            raise requests.ConnectionError(urllib3.exceptions.MaxRetryError(None, BASE, refused))  # type: ignore[arg-type]
        answer = self._stripe.answer(self._call(request), fault)
        self._pass(AFTER_CALL)
        match answer.wire:
            case "reset" | "close":
                raise requests.ConnectionError(urllib3.exceptions.ProtocolError("connection aborted"))
            case "hang":
                raise requests.ReadTimeout("read timed out")
            case wire:
                return self.build_response(request, _heard(answer, half=wire == "cut"))

    def _pass(self, name: str) -> None:
        seam(name)
        # What is heard is remembered by thread, and all operations share one: others may have called meanwhile.
        self._transport.listen()

    def _call(self, request: requests.PreparedRequest) -> Call:
        url = urlsplit(str(request.url))
        # The tables tell times by how long ago they are; to Stripe, whose clock moves on, these are later moments.
        ahead = int(self._stripe.ahead_seconds)
        query = [
            (name, str(int(value) + ahead) if name.startswith("created[") else value)
            for name, value in parse_qsl(url.query)
        ]
        headers: Mapping[str, str] = {name.lower(): str(value) for name, value in request.headers.items()}
        body = request.body or b""
        body = body.encode() if isinstance(body, str) else bytes(body)  # type: ignore[arg-type]
        return Call(str(request.method), url.path, urlencode(query), headers, body)


def _heard(answer: Answer, *, half: bool) -> urllib3.HTTPResponse:
    headers = {**dict(answer.headers), "Content-Length": str(len(answer.body))}
    arrived = answer.body[: len(answer.body) // 2] if half else answer.body
    return urllib3.HTTPResponse(
        io.BytesIO(arrived), headers=headers, status=answer.status, preload_content=False, enforce_content_length=True
    )
