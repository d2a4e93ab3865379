"""HTTP on a socket: reading requests, sending answers whole, late, in pieces or not at all; no customers."""

import contextlib
import json
import logging
import os
import socket
import socketserver
import struct
import threading
import time
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, Protocol

from customer_jobs.sandbox.answers import Answer
from customer_jobs.sandbox.api import Api
from customer_jobs.sandbox.calls import Call
from customer_jobs.sandbox.pace import Pace, StoppedError

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
#: Stripe's own bound is not documented; no customer comes near it.
MAX_BODY_BYTES = 1 << 20
#: Connections that may wait to be accepted: a burst of a thousand clients is not refused.
BACKLOG = 1024
#: Between two tries to accept while the process has no file descriptor left, in seconds.
RESPITE_SECONDS = 0.05
#: How long `stop` waits for threads that answer, in seconds; they end at once unless a receiver is stuck.
JOIN_SECONDS = 5.0
#: SO_LINGER with zero seconds: closing sends RST instead of FIN.
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Control(Protocol):
    """What answers under /_sandbox/."""

    def __call__(self, call: Call) -> tuple[int, Any]:
        """The status and the JSON document."""


class Listener(socketserver.TCPServer):
    """The listening socket with a thread per connection, all of which `stop` ends."""

    allow_reuse_address = True
    request_queue_size = BACKLOG

    def __init__(self, port: int, api: Api, control: Control, pace: Pace) -> None:
        self.api = api
        self.control = control
        self.pace = pace
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._connections_lock = threading.Lock()
        super().__init__((LOOPBACK, port), Handler)
        self._stopping = False
        self._thread = threading.Thread(target=self._accept, name="sandbox", daemon=True)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Close every socket and wait until no thread is left."""
        self._stopping = True
        # A connection of our own wakes the accepting thread at once; polling would cost each test its interval.
        with contextlib.suppress(OSError):
            socket.create_connection((LOOPBACK, self.port)).close()
        self._thread.join()
        self.server_close()
        with self._connections_lock:
            threads = list(self._connections.values())
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(JOIN_SECONDS)

    def _accept(self) -> None:
        while not self._stopping:
            try:
                connection, client_address = self.socket.accept()
            except OSError:
                time.sleep(RESPITE_SECONDS)
                continue
            if self._stopping:
                connection.close()
            else:
                self.process_request(connection, client_address)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer the connection in a thread of its own, known before it starts, so that `stop` misses none."""
        thread = threading.Thread(target=self._converse, args=(request, client_address), daemon=True)
        with self._connections_lock:
            self._connections[request] = thread
        thread.start()

    def _converse(self, request: socket.socket, client_address: Any) -> None:
        try:
            # A client that hangs up in the middle is everyday business.
            with contextlib.suppress(OSError):
                self.finish_request(request, client_address)
        finally:
            self.shutdown_request(request)
            with self._connections_lock:
                del self._connections[request]


class Handler(BaseHTTPRequestHandler):
    """One connection with its requests, one after the other."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Listener

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (OSError, StoppedError):
            # The client went away, or the sandbox stops; there is nobody left to answer.
            self.close_connection = True
        except Exception:
            log.exception("the sandbox failed at %s %s", self.command, self.path)
            self.send_error(500, "the sandbox itself failed; see its log")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """The journal is the log."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """A request that HTTP itself does not understand, answered in Stripe's envelope."""
        self.close_connection = True
        text = message or HTTPStatus(code).phrase
        body = json.dumps({"error": {"type": "invalid_request_error", "message": f"Invalid request: {text}"}})
        self.wfile.write(encode(code, [("Content-Type", "application/json")], body.encode(), close=True))

    def serve(self) -> None:
        """Answer the request that has been parsed."""
        body = self._body()
        if body is None:
            return
        path, _, query = self.path.partition("?")
        headers = {name.lower(): value for name, value in self.headers.items()}
        call = Call(self.command, path, query, headers, body)
        if path.startswith("/_sandbox/"):
            status, document = self.server.control(call)
            self._send(status, [("Content-Type", "application/json")], json.dumps(document).encode())
            return
        answer = self.server.api.handle(call)
        if answer.wire:
            self._mistreat(answer)
        else:
            self._send(answer.status, answer.headers, answer.body)

    do_GET = do_POST = do_DELETE = do_PUT = do_PATCH = do_HEAD = do_OPTIONS = serve  # noqa: N815

    def _send(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        data = encode(status, headers, body, close=self.close_connection)
        self.wfile.write(data[: len(data) - len(body)] if self.command == "HEAD" else data)

    def _mistreat(self, answer: Answer) -> None:
        self.close_connection = True
        data = encode(answer.status, answer.headers, answer.body, close=True) if answer.body else b""
        match answer.wire:
            case "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                os.close(self.connection.detach())
            case "hang":
                self.server.pace.pause(answer.wire_seconds)
            case "cut":
                self.wfile.write(data[: len(data) - (len(answer.body) + 1) // 2])
            case "drip":
                for position in range(len(data)):
                    self.wfile.write(data[position : position + 1])
                    self.server.pace.pause(answer.wire_seconds / len(data))

    def _body(self) -> bytes | None:
        """The request's body; None when it was refused already."""
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            return self._chunks()
        length = self.headers.get("Content-Length", "0").strip()
        if not length.isascii() or not length.isdigit():
            self.send_error(400, "the Content-Length is not a number")
            return None
        if len(length) > 12 or int(length) > MAX_BODY_BYTES:  # digits, before int() sees them
            self._too_large()
            return None
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ConnectionError("the client hung up in the middle of its request")
        return body

    def _chunks(self) -> bytes | None:
        body = b""
        while True:
            try:
                size = int(self.rfile.readline(64).partition(b";")[0], 16)
            except ValueError:
                size = -1
            if size < 0:
                self.send_error(400, "the chunked body is malformed")
                return None
            if len(body) + size > MAX_BODY_BYTES:
                self._too_large()
                return None
            if size == 0:
                break
            body += self.rfile.read(size)
            self.rfile.readline(64)
        while self.rfile.readline(1024).strip():
            pass
        return body

    def _too_large(self) -> None:
        """Refuse, and read on for a moment, so that closing does not reset the answer away."""
        self.send_error(413, f"the body is larger than {MAX_BODY_BYTES} bytes")
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(1.0)
            drained = 0
            while drained < 8 * MAX_BODY_BYTES and (piece := self.connection.recv(1 << 16)):
                drained += len(piece)


def encode(status: int, headers: list[tuple[str, str]], body: bytes, *, close: bool) -> bytes:
    """Head and body in one piece, so that one send() carries them and no delayed ACK comes between."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    lines = [
        f"HTTP/1.1 {status} {phrase}",
        f"Date: {formatdate(usegmt=True)}",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers),
        *(("Connection: close",) if close else ()),
        "",
        "",
    ]
    return "\r\n".join(lines).encode("latin-1", "replace") + body
