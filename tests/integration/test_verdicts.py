"""What each answer of Stripe's means for a create and for a fetch: by status, code, body, headers and the wire."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.builders import KEY, settings_for
from worker.answers import Answer, Answered, NotAnswered, RateLimited, Transient
from worker.gateway import Gateway

REQUEST_ID = "req_Jh3d8yZi678c2"
CUSTOMER = {"id": "cus_1", "object": "customer", "email": "jenny.rosen@example.com", "livemode": False}
STUB = {"id": "cus_1", "object": "customer", "deleted": True}
HTML = b"<html><body><h1>The server is on a break</h1></body></html>"
READ_TIMEOUT_SECONDS = 0.4

#: What is done to a connection after a request: bytes are sent, numbers are waited for, RESET resets it.
Step = bytes | float | str
RESET = "reset"


def answer(status: int, body: Any = b"", length: int = 0, /, **headers: str) -> bytes:
    """An HTTP answer; `length` more bytes are promised than are sent."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = {
        "Content-Type": "application/json",
        "Request-Id": REQUEST_ID,
        "Content-Length": str(len(content) + length),
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status} Whatever\r\n{head}\r\n".encode() + content


def error(status: int, type_: str = "invalid_request_error", **details: Any) -> Any:
    """Stripe's envelope; capital names are headers."""
    headers = {name: details.pop(name) for name in list(details) if name[0].isupper()}
    return answer(status, {"error": {"type": type_, "message": "whatever", **details}}, **headers)


def drip(count: int, seconds: float = 0.1) -> list[Step]:
    """A byte now and then, which keeps a read timeout from ever running out."""
    return [step for _ in range(count) for step in (seconds, b" ")]


REPLAYED = {"Idempotent_Replayed": "true"}
LIMITED = {"Stripe_Rate_Limited_Reason": "endpoint-rate"}
PERMISSION = "The provided key does not have the required permissions. Having the '{}' permission would allow this."

#: What came back → what it means for a create → for a fetch. A question mark: Stripe may have executed it.
TABLE: dict[str, tuple[Sequence[Step], str, str]] = {
    # Answers with an object.
    "200": ([answer(200, CUSTOMER)], "answered", "answered"),
    "201": ([answer(201, CUSTOMER)], "answered", "answered"),
    "200 replayed": ([answer(200, CUSTOMER, **REPLAYED)], "answered replayed", "answered replayed"),
    "200 replayed, other capitals": (
        [answer(200, CUSTOMER, IDEMPOTENT_REPLAYED="true")],
        "answered replayed",
        "answered replayed",
    ),
    "200 deleted": ([answer(200, STUB)], "answered", "answered"),
    "200 with more than we know": ([answer(200, CUSTOMER | {"new": {"a": [None]}})], "answered", "answered"),
    # 200 with garbage.
    "200 no JSON": ([answer(200, b"{")], "transient?", "transient"),
    "200 HTML": ([answer(200, HTML, Content_Type="text/html")], "transient?", "transient"),
    "200 empty": ([answer(200)], "transient?", "transient"),
    "200 not UTF-8": ([answer(200, b'{"id": "\xff"}')], "transient?", "transient"),
    "200 null": ([answer(200, None)], "transient?", "transient"),
    "200 a list": ([answer(200, [CUSTOMER])], "transient?", "transient"),
    "200 a number": ([answer(200, 7)], "transient?", "transient"),
    "200 a text": ([answer(200, "cus_1")], "transient?", "transient"),
    "200 an empty object": ([answer(200, {})], "transient?", "transient"),
    "200 without an id": ([answer(200, {"object": "customer"})], "transient?", "transient"),
    "200 with an odd id": ([answer(200, CUSTOMER | {"id": 7})], "transient?", "transient"),
    "200 another object": ([answer(200, {"id": "in_1", "object": "invoice"})], "transient?", "transient"),
    "200 an error": ([answer(200, {"error": {"type": "api_error"}})], "transient?", "transient"),
    "200 NaN": ([answer(200, b'{"id": "cus_1", "object": "customer", "balance": NaN}')], "transient?", "transient"),
    "200 deep": ([answer(200, b"[" * 100_000)], "transient?", "transient"),
    "204": ([answer(204)], "transient?", "transient"),
    # 429.
    **{
        f"429 {reason}": (
            [error(429, code="rate_limit", Stripe_Rate_Limited_Reason=reason)],
            f"rate_limited {reason}",
            f"rate_limited {reason}",
        )
        for reason in (
            "global-rate",
            "global-concurrency",
            "endpoint-rate",
            "endpoint-concurrency",
            "resource-specific",
        )
    },
    "429 reason, no code": ([error(429, **LIMITED)], "rate_limited endpoint-rate", "rate_limited endpoint-rate"),
    "429 code, no reason": ([error(429, code="rate_limit")], "rate_limited None", "rate_limited None"),
    "429 lock_timeout": ([error(429, code="lock_timeout")], "transient", "transient"),
    "429 neither": ([error(429)], "transient", "transient"),
    "429 HTML": ([answer(429, HTML)], "transient?", "transient"),
    "429 HTML, reason": ([answer(429, HTML, **LIMITED)], "rate_limited endpoint-rate", "rate_limited endpoint-rate"),
    "429 cut, reason": (
        [answer(429, b"{", 9, **LIMITED)],
        "rate_limited endpoint-rate",
        "rate_limited endpoint-rate",
    ),
    "429 empty": ([answer(429)], "transient?", "transient"),
    # Not executed, try again.
    "409 in use": ([error(409, code="idempotency_key_in_use")], "transient", "transient"),
    "409": ([error(409)], "transient", "transient"),
    "424": ([error(424)], "transient", "transient"),
    "408": ([error(408)], "transient", "transient"),
    # 5xx.
    **{f"{status}": ([error(status, "api_error")], "transient?", "transient") for status in (500, 501, 502, 503, 504)},
    **{
        f"{status} replayed": ([error(status, "api_error", **REPLAYED)], "frozen?", "transient")
        for status in (500, 503)
    },
    "500 replayed, cut": ([answer(500, b"{", 9, **REPLAYED)], "frozen?", "transient"),
    "500 replayed, no JSON": ([answer(500, b"{", **REPLAYED)], "frozen?", "transient"),
    "500 with a code": ([error(500, "api_error", code="lock_timeout")], "transient?", "transient"),
    "500 that looks like a key": ([error(500, "idempotency_error")], "transient?", "transient"),
    "500 rate_limit": ([error(500, code="rate_limit", **LIMITED)], "transient?", "transient"),
    "502 HTML": ([answer(502, HTML, Content_Type="text/html")], "transient?", "transient"),
    "503 empty": ([answer(503)], "transient?", "transient"),
    "504 no JSON": ([answer(504, b"upstream timed out")], "transient?", "transient"),
    "500 no error": ([answer(500, {"message": "oops"})], "transient?", "transient"),
    "500 null": ([answer(500, None)], "transient?", "transient"),
    "500 a list": ([answer(500, [])], "transient?", "transient"),
    "500 error a text": ([answer(500, {"error": "oops"})], "transient?", "transient"),
    "500 error null": ([answer(500, {"error": None})], "transient?", "transient"),
    "503 rate_limit": ([error(503, code="rate_limit")], "transient?", "transient"),
    "599 empty object": ([answer(599, {})], "transient?", "transient"),
    "520": ([error(520, "api_error")], "transient?", "transient"),
    # 3xx: never followed.
    "302": ([answer(302, b"", Location="/v1/customers/cus_2")], "transient?", "transient"),
    "307 HTML": ([answer(307, HTML, Location="http://127.0.0.1:1/")], "transient?", "transient"),
    "304": ([answer(304)], "transient?", "transient"),
    # The key.
    "401": ([error(401)], "key_refused", "key_refused"),
    "401 expired": ([error(401, code="api_key_expired")], "key_refused", "key_refused"),
    "401 HTML": ([answer(401, HTML)], "transient?", "transient"),
    "403": ([error(403)], "key_refused", "key_refused"),
    "403 may not write": (
        [error(403, message=PERMISSION.format("rak_customer_write"))],
        "key_refused",
        "key_refused",
    ),
    # Somebody else's account, or an expansion that the key may not see, is not the whole queue's trouble.
    "403 account": ([error(403, code="account_invalid")], "rejected", "rejected"),
    "403 may not expand": ([error(403, message=PERMISSION.format("rak_subscription_read"))], "rejected", "rejected"),
    "403 HTML": ([answer(403, HTML)], "transient?", "transient"),
    # Permanent.
    "400": ([error(400, code="parameter_unknown", param="emial")], "rejected", "rejected"),
    "400 no code": ([error(400)], "rejected", "rejected"),
    "400 replayed": ([error(400, **REPLAYED)], "rejected", "rejected"),
    "400 key reused": ([error(400, "idempotency_error")], "key_reused", "key_reused"),
    "400 odd members": ([error(400, code=7, param=[])], "rejected", "rejected"),
    "400 error a text": ([answer(400, {"error": "words"})], "transient?", "transient"),
    "400 no JSON": ([answer(400, HTML)], "transient?", "transient"),
    "402": ([error(402, "card_error", code="card_declined", decline_code="fraudulent")], "rejected", "rejected"),
    "404": ([error(404, code="resource_missing", param="id")], "rejected", "rejected"),
    "404 HTML": ([answer(404, HTML)], "transient?", "transient"),
    "404 unknown type": ([error(404, "brand_new_error")], "rejected", "rejected"),
    "410": ([error(410)], "rejected", "rejected"),
    "413 no error": ([answer(413, {})], "transient?", "transient"),
    # The wire.
    "closed": ([], "transient?", "transient"),
    "reset": ([RESET], "transient?", "transient"),
    "reset in the head": ([b"HTTP/1.1 200 OK\r\nContent-", RESET], "transient?", "transient"),
    "no HTTP": ([b"220 mail.example.com ESMTP\r\n"], "transient?", "transient"),
    "cut": ([answer(200, CUSTOMER, 10)], "transient?", "transient"),
    "cut, reset": ([answer(200, CUSTOMER, 10), RESET], "transient?", "transient"),
    "cut chunks": (
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{"],
        "transient?",
        "transient",
    ),
    "broken gzip": ([answer(200, b"no gzip", Content_Encoding="gzip")], "transient?", "transient"),
    "silent": ([0.8], "transient?", "transient"),
    "silent in the body": ([answer(200, CUSTOMER, 1), 0.8], "transient?", "transient"),
    "dripping body": ([answer(200, CUSTOMER, 50), *drip(30)], "transient?", "transient"),
    "dripping head": (drip(30), "transient?", "transient"),
    "dripping, but in time": ([answer(200, CUSTOMER, 4), *drip(4, 0.05)], "answered", "answered"),
}


class Stand:
    """Answers every connection's first request with the same steps."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.requests: list[bytes] = []
        self._steps = steps
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        with socket.create_connection(self._listener.getsockname()):
            pass  # The connection without a request that ends it.
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
                request = _read(connection)
                if not request:
                    return
                self.requests.append(request)
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        try:
            for step in self._steps:
                match step:
                    case bytes():
                        connection.sendall(step)
                    case float():
                        time.sleep(step)
                    case _:
                        time.sleep(0.02)  # What was sent before is read before.
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass  # The caller lost patience, which is the point.


def _read(connection: socket.socket) -> bytes:
    head, _, body = b"", b"", b""
    while b"\r\n\r\n" not in head:
        if not (piece := connection.recv(65536)):
            return b""
        head += piece
    head, _, body = head.partition(b"\r\n\r\n")
    length = next((line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), b":0")
    while len(body) < int(length.partition(b":")[2]):
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


@contextmanager
def stand(*steps: Step) -> Iterator[Stand]:
    """A server that answers with these steps."""
    made = Stand(steps)
    try:
        yield made
    finally:
        made.stop()


def gateway_to(url: str, read_timeout_seconds: float = READ_TIMEOUT_SECONDS) -> Gateway:
    return Gateway(settings_for(stripe_api_base=url), read_timeout_seconds=read_timeout_seconds)


def ask(gateway: Gateway, kind: str) -> Answer:
    if kind == "fetch":
        return gateway.fetch_customer("cus_1", expand=["tax"], credential="default", stripe_account=None)
    params = {"email": "jenny.rosen@example.com", "metadata": {"customer_jobs_id": "1"}}
    return gateway.create_customer(params, credential="default", stripe_account=None, idempotency_key="k")


def verdict(came: Answer) -> str:
    """The answer in a word or two."""
    match came:
        case Answered():
            return "answered replayed" if came.replayed else "answered"
        case RateLimited():
            return f"rate_limited {came.reason}"
        case Transient():
            return "transient?" if came.ambiguous else "transient"
        case _:
            words = {"Frozen": "frozen?", "KeyReused": "key_reused", "KeyRefused": "key_refused"}
            return words.get(type(came).__name__, "rejected")


@pytest.mark.parametrize("kind", ["create", "fetch"])
@pytest.mark.parametrize("case", TABLE)
def test_an_answer_has_one_meaning(case: str, kind: str) -> None:
    steps, of_create, of_fetch = TABLE[case]

    with stand(*steps) as stripe:
        gateway = gateway_to(stripe.url)
        began = time.monotonic()
        came = ask(gateway, kind)
        seconds = time.monotonic() - began
        gateway.close()

    assert verdict(came) == (of_create if kind == "create" else of_fetch)
    assert len(stripe.requests) == 1
    assert seconds < READ_TIMEOUT_SECONDS + 0.5
    assert type(came).__module__ == "worker.answers"
    assert "stripe" not in _modules(came)
    assert "jenny.rosen" not in repr(came) or isinstance(came, Answered)
    if isinstance(came, NotAnswered) and b"Request-Id" in b"".join(step for step in steps if isinstance(step, bytes)):
        assert came.problem.request_id == REQUEST_ID
        assert came.problem.http_status is not None


def _modules(value: Any) -> set[str]:
    """The top modules of all that a value is made of."""
    found = {type(value).__module__.partition(".")[0]}
    inner = list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, list | tuple) else []
    inner += list(vars(value).values()) if hasattr(value, "__dict__") else []
    return found.union(*map(_modules, inner)) if inner else found


@pytest.mark.parametrize("kind", ["create", "fetch"])
@pytest.mark.parametrize("host", ["127.0.0.1:{closed}", "no-such-host.invalid"])
def test_what_never_left_was_never_executed(kind: str, host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = listener.getsockname()[1]

    came = ask(gateway_to(f"http://{host.format(closed=closed)}"), kind)

    assert verdict(came) == "transient"
    assert isinstance(came, NotAnswered)
    assert (came.problem.code, came.problem.http_status) == ("no_answer", None)


def test_a_proxy_out_of_reach_was_never_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = listener.getsockname()[1]
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)

    came = ask(gateway_to("http://stripe.invalid"), "create")

    assert verdict(came) == "transient"


def test_a_proxy_is_used_for_the_world_and_not_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with stand(answer(200, CUSTOMER)) as proxy, stand(answer(200, CUSTOMER)) as local:
        monkeypatch.setenv("http_proxy", proxy.url)

        world = ask(gateway_to("http://stripe.invalid"), "fetch")
        here = ask(gateway_to(local.url), "fetch")

    assert (verdict(world), verdict(here)) == ("answered", "answered")
    assert [request.split()[1] for request in proxy.requests] == [
        b"http://stripe.invalid/v1/customers/cus_1?expand%5B0%5D=tax"
    ]
    assert len(local.requests) == 1


def test_a_dripping_answer_through_a_proxy_ends_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with stand(answer(200, CUSTOMER, 50), *drip(20)) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)

        came = ask(gateway_to("http://stripe.invalid"), "create")

    assert verdict(came) == "transient?"


def test_no_other_password_replaces_the_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("default login mallory password not-the-key\nmachine stripe.invalid login m password p\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("NO_PROXY", "no_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with stand(answer(200, CUSTOMER)) as server:
        monkeypatch.setenv("http_proxy", server.url)

        ask(gateway_to(server.url), "create")
        ask(gateway_to("http://stripe.invalid"), "create")

    sent = [line for request in server.requests for line in request.split(b"\r\n") if b"uthorization" in line]
    assert sent == [f"Authorization: Bearer {KEY}".encode()] * 2


def test_cookies_are_not_kept() -> None:
    with stand(answer(200, CUSTOMER, Set_Cookie="a=b; Path=/")) as server:
        gateway = gateway_to(server.url)
        for _ in range(2):
            ask(gateway, "fetch")

    assert len(server.requests) == 2
    assert not any(b"ookie" in request for request in server.requests)


def test_one_connection_serves_many_calls() -> None:
    whole = answer(200, CUSTOMER)
    calls = 5
    seen = []

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            for _ in range(calls):
                seen.append(_read(connection))
                connection.sendall(whole)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve, args=(listener,))
        server.start()
        gateway = gateway_to(f"http://127.0.0.1:{listener.getsockname()[1]}")
        came = [verdict(ask(gateway, "create")) for _ in range(calls)]
        server.join(5)
        gateway.close()

    assert (came, len(seen)) == (["answered"] * calls, calls)


def test_the_stripe_library_prints_nothing(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("stripe._util.STRIPE_LOG", "debug")
    with stand(answer(200, CUSTOMER)) as server:
        ask(gateway_to(server.url), "create")

    assert capfd.readouterr() == ("", "")


def test_headers_arrive_as_stripe_sent_them() -> None:
    with stand(answer(200, CUSTOMER, Stripe_Version="2026-10-28.endive", X_New="ä")) as server:
        came = ask(gateway_to(server.url), "fetch")

    assert isinstance(came, Answered)
    assert came.body == CUSTOMER
    assert came.request_id == REQUEST_ID
    assert {name.lower() for name in came.headers} == {
        "content-type",
        "content-length",
        "request-id",
        "stripe-version",
        "x-new",
    }
