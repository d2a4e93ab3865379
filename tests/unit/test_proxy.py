"""The proxy breaks connections in the way each of its methods says, and passes bytes on otherwise."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from customer_jobs import embedded
from tests.proxy import Proxy

SHORT_SECONDS = 0.1


class Echo(socketserver.StreamRequestHandler):
    """Answers every line with itself."""

    def handle(self) -> None:
        try:
            for line in self.rfile:
                self.server.heard.append(line)  # type: ignore[attr-defined]
                self.wfile.write(line)
        except ConnectionError:
            pass


class EchoServer(socketserver.ThreadingTCPServer):
    """Remembers every line it heard."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        super().__init__(("127.0.0.1", 0), Echo)


@pytest.fixture
def server() -> Iterator[EchoServer]:
    with EchoServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(server: EchoServer) -> Iterator[Proxy]:
    with Proxy(server.server_address) as proxy:  # type: ignore[arg-type]
        yield proxy


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def ask(connection: socket.socket, line: bytes = b"hello\n") -> bytes:
    connection.sendall(line)
    return connection.recv(1024)


def test_bytes_pass(proxy: Proxy) -> None:
    with connect(proxy) as connection:
        assert ask(connection) == b"hello\n"


def test_a_half_closed_connection_still_gets_its_reply(proxy: Proxy) -> None:
    with connect(proxy) as connection:
        connection.sendall(b"last words")
        connection.shutdown(socket.SHUT_WR)

        assert connection.recv(1024) == b"last words"
        assert connection.recv(1024) == b""


def test_a_url_leads_through_the_proxy(proxy: Proxy) -> None:
    through = proxy.through("postgresql+psycopg://app:secret@db:5432/jobs?sslmode=disable")

    assert through == f"postgresql+psycopg://app:secret@127.0.0.1:{proxy.port}/jobs?sslmode=disable"


def test_a_proxy_is_made_from_the_url_of_its_target(server: EchoServer) -> None:
    with Proxy.before(f"redis://127.0.0.1:{server.server_address[1]}/0") as proxy, connect(proxy) as connection:
        assert ask(connection) == b"hello\n"


def test_replies_are_delayed(proxy: Proxy) -> None:
    with connect(proxy) as connection:
        proxy.delay_seconds = SHORT_SECONDS
        asked_at = time.monotonic()

        assert ask(connection) == b"hello\n"

    assert time.monotonic() - asked_at >= SHORT_SECONDS


def test_a_stalled_connection_gets_its_reply_once_it_goes_on(proxy: Proxy, server: EchoServer) -> None:
    with connect(proxy) as connection:
        proxy.stall()
        connection.settimeout(SHORT_SECONDS)
        with pytest.raises(TimeoutError):
            ask(connection)
        assert server.heard == []

        proxy.go_on()

        connection.settimeout(5)
        assert connection.recv(1024) == b"hello\n"


def test_open_connections_are_reset_and_new_ones_taken(proxy: Proxy) -> None:
    with connect(proxy) as connection:
        ask(connection)

        assert proxy.reset() == 1

        with pytest.raises(ConnectionResetError):
            connection.recv(1024)
    with connect(proxy) as connection:
        assert ask(connection) == b"hello\n"


def test_lost_connections_stay_silent_while_new_ones_work(proxy: Proxy, server: EchoServer) -> None:
    with connect(proxy) as lost:
        ask(lost)
        proxy.lose()

        lost.settimeout(SHORT_SECONDS)
        with pytest.raises(TimeoutError):
            ask(lost, b"lost\n")
    with connect(proxy) as connection:
        assert ask(connection) == b"hello\n"
        assert b"lost\n" not in server.heard


def test_new_connections_are_refused_until_accepted_and_open_ones_go_on(proxy: Proxy) -> None:
    with connect(proxy) as connection:
        ask(connection)

        proxy.refuse()

        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        assert ask(connection) == b"hello\n"
    proxy.accept()
    with connect(proxy) as connection:
        assert ask(connection) == b"hello\n"


@pytest.mark.parametrize("size", [0, 3])
def test_a_reply_is_cut_once_although_the_server_did_as_it_was_asked(
    size: int, proxy: Proxy, server: EchoServer
) -> None:
    proxy.cut_replies_after(size)
    assert not proxy.has_cut
    with connect(proxy) as connection:
        connection.sendall(b"hello\n")
        connection.settimeout(5)

        assert connection.makefile("rb").read() == b"hello\n"[:size]
    assert proxy.has_cut

    assert server.heard == [b"hello\n"]
    with connect(proxy) as connection:
        assert ask(connection) == b"hello\n"


def test_a_target_that_is_down_breaks_the_connection() -> None:
    nobody = ("127.0.0.1", embedded.free_port())

    # The reset may come as early as during connect.
    with Proxy(nobody) as proxy, pytest.raises(ConnectionResetError), connect(proxy) as connection:
        connection.recv(1024)


def test_stopping_ends_stalled_and_delayed_connections(server: EchoServer) -> None:
    proxy = Proxy(server.server_address)  # type: ignore[arg-type]
    with connect(proxy) as connection, connect(proxy) as other:
        ask(connection)
        proxy.delay_seconds = 60
        connection.sendall(b"delayed\n")
        proxy.stall()
        other.sendall(b"stalled\n")

        proxy.stop()

        with pytest.raises(ConnectionResetError):
            connection.recv(1024)
    embedded.require_free(proxy.port)
