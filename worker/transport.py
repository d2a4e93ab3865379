"""The HTTP below the stripe library: a deadline for the whole answer, no key but ours, no redirects, no cookies."""

from __future__ import annotations

import http.client
import io
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

CONNECTIONS = 128  #: Kept open, all to one host; more threads than these would connect anew for each call.
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True)
class Heard:
    """What arrived of an answer, whatever became of its body."""

    http_status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class Transport:
    """One requests session for all threads of a process; knows what the calling thread has heard last.

    `session` behaves as any requests.Session, but that

    - the whole answer must be there within `answer_seconds`: requests' own timeout begins anew with every byte;
    - a machine entry in ~/.netrc never replaces our Authorization;
    - a redirect is an answer: following one would send a create as a GET, or the key elsewhere;
    - cookies are not kept, since threads share the session.

    Source: https://github.com/psf/requests/blob/main/docs/user/advanced.rst (Timeouts)
    and https://github.com/psf/requests/blob/main/docs/user/authentication.rst (netrc Authentication)
    """

    def __init__(self, base_url: str, *, answer_seconds: float) -> None:
        self.session = requests.Session()
        self.session.auth = lambda request: request
        self.session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self.session.get_redirect_target = lambda _: None  # type: ignore[assignment]
        self.session.hooks["response"].append(self._hear)
        # Whoever has a proxy to the world wants to reach a stand-in on this machine without it.
        self.session.trust_env = urlsplit(base_url).hostname not in LOOPBACK
        for scheme in ("https://", "http://"):
            self.session.mount(scheme, _Adapter(answer_seconds))
        self._thread = threading.local()

    def listen(self) -> Callable[[], Heard]:
        """Forget what this thread has heard; the function returned says what came since."""
        self._thread.heard = Heard()
        return lambda: self._thread.heard

    def close(self) -> None:
        """Close the connections that are not in use."""
        self.session.close()

    def _hear(self, response: requests.Response, **_: Any) -> None:
        # Called when the headers are there, before the body is read.
        self._thread.heard = Heard(response.status_code, dict(response.headers))


class _Adapter(HTTPAdapter):
    """Gives every connection a deadline for each answer."""

    def __init__(self, answer_seconds: float) -> None:
        self._answer_seconds = answer_seconds
        super().__init__(pool_maxsize=CONNECTIONS)

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool = super().get_connection_with_tls_context(*args, **kwargs)
        # The class's connections, those through a proxy too, with another way to read.
        make = type(pool).ConnectionCls

        def connection(*args: Any, **kwargs: Any) -> Any:
            made = make(*args, **kwargs)
            made.response_class = self._response  # type: ignore[attr-defined]
            return made

        pool.ConnectionCls = connection  # type: ignore[assignment]
        return pool

    def _response(self, sock: socket.socket, *args: Any, **kwargs: Any) -> http.client.HTTPResponse:
        timed = _TimedSocket(sock, time.monotonic() + self._answer_seconds)
        return http.client.HTTPResponse(timed, *args, **kwargs)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _TimedSocket:
    """The one method of a socket that an HTTPResponse calls."""

    sock: socket.socket
    deadline: float  #: By the monotonic clock.

    def makefile(self, mode: str) -> io.BufferedReader:  # noqa: ARG002 - the socket's signature; it is always "rb"
        return io.BufferedReader(_TimedReader(self.sock, self.deadline))


class _TimedReader(io.RawIOBase):
    """Reads from a socket until a deadline, however often it is asked."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline
        # The socket's own reader keeps it open until the answer has been read.
        self._raw = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer took too long")
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()
