"""A TCP proxy for tests that makes the network misbehave, on a fixed port of the loopback address.

It stands between the code under test and a real server, so what fails is the connection and not a double.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from asyncio import StreamReader, StreamWriter
from collections.abc import Coroutine
from typing import Self, TypeVar
from urllib.parse import urlsplit

from customer_jobs.embedded import LOOPBACK, free_port

T = TypeVar("T")

CHUNK_BYTES = 65536
CALL_SECONDS = 5.0
ROUNDS = 5  #: Of the loop, until a connection that it has just taken is among those that are known.
LINGER_ZERO = struct.pack("ii", 1, 0)  # closing a socket with this sends RST


class Proxy:
    """Passes bytes between its port and the target's until told otherwise; it runs in a thread of its own.

    Every method may be called from any thread, and what it says holds when it returns, for open connections too.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self.port = free_port()
        self.delay_seconds = 0.0  #: How long each piece of a reply is held back.
        self._target = target
        self._reply_bytes_left: int | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self.accept()

    @classmethod
    def before(cls, url: str) -> Self:
        """A proxy in front of the server that this URL names."""
        parts = urlsplit(url)
        return cls((parts.hostname or LOOPBACK, parts.port or 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def through(self, url: str) -> str:
        """The same URL, but by way of the proxy."""
        parts = urlsplit(url)
        login, at, _ = parts.netloc.rpartition("@")
        return parts._replace(netloc=f"{login}{at}{LOOPBACK}:{self.port}").geturl()

    def accept(self) -> None:
        """Take connections, as at the start, again after `refuse`."""
        self._call(self._accept())

    def refuse(self) -> None:
        """Refuse new connections until `accept`; open ones go on."""
        self._call(self._refuse())

    def stall(self) -> None:
        """Take connections and bytes, but pass none on in either direction until `go_on`."""
        self._call(self._stall())

    def go_on(self) -> None:
        """Pass on what `stall` held back, and everything after it."""
        self._call(self._go_on())

    def lose(self) -> None:
        """Pass nothing on any more over the connections that are open, as after a lost route; new ones work."""
        self._call(self._lose())

    def reset(self) -> int:
        """Break every open connection as a crashed peer would, with RST; how many there were."""
        return self._call(self._reset())

    def cut_replies_after(self, size: int) -> None:
        """Pass on that many more bytes of replies, then close the connection in the middle; this once.

        With 0 the server does as it was asked and the client never learns of it.
        """
        self._call(self._cut_replies_after(size))

    @property
    def has_cut(self) -> bool:
        """Whether what `cut_replies_after` asked for has happened."""
        return self._reply_bytes_left is None

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    def stop(self) -> None:
        """Close everything; the port is free afterwards."""
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_SECONDS)
        self._loop.close()

    def _call(self, change: Coroutine[None, None, T]) -> T:
        return asyncio.run_coroutine_threadsafe(change, self._loop).result(CALL_SECONDS)

    async def _accept(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._connect, LOOPBACK, self.port)

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _stall(self) -> None:
        self._flowing.clear()

    async def _go_on(self) -> None:
        self._flowing.set()

    async def _lose(self) -> None:
        self._flowing.clear()  # and never set again: the connections made so far wait for this very one
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def _reset(self) -> int:
        for _ in range(ROUNDS):
            await asyncio.sleep(0)
        broken = list(self._connections)
        for task in broken:
            task.cancel()
        await asyncio.gather(*broken, return_exceptions=True)
        await asyncio.sleep(0)  # the transports close their sockets in the loop's next round
        return len(broken)

    async def _cut_replies_after(self, size: int) -> None:
        self._reply_bytes_left = size

    async def _end(self) -> None:
        await self._refuse()
        await self._reset()

    async def _connect(self, client: StreamReader, to_client: StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._connections.add(task)
        writers, flowing = [to_client], self._flowing
        try:
            server, to_server = await asyncio.open_connection(*self._target)
            writers.append(to_server)
            await asyncio.gather(self._requests(client, to_server, flowing), self._replies(server, to_client, flowing))
        except (OSError, asyncio.CancelledError):
            for writer in writers:
                abort(writer)
        finally:
            for writer in writers:
                writer.close()
            self._connections.discard(task)

    async def _requests(self, client: StreamReader, to_server: StreamWriter, flowing: asyncio.Event) -> None:
        while piece := await client.read(CHUNK_BYTES):
            await flowing.wait()
            await write(to_server, piece)
        close_half(to_server)

    async def _replies(self, server: StreamReader, to_client: StreamWriter, flowing: asyncio.Event) -> None:
        while piece := await server.read(CHUNK_BYTES):
            await asyncio.sleep(self.delay_seconds)
            await flowing.wait()
            if self._reply_bytes_left is not None:
                if self._reply_bytes_left < len(piece):
                    await write(to_client, piece[: self._reply_bytes_left])
                    self._reply_bytes_left = None
                    to_client.close()  # not RST, which might overtake the bytes just written
                    return
                self._reply_bytes_left -= len(piece)
            await write(to_client, piece)
        close_half(to_client)


async def write(writer: StreamWriter, piece: bytes) -> None:
    if not writer.is_closing():
        writer.write(piece)
        await writer.drain()


def close_half(writer: StreamWriter) -> None:
    """Say that nothing more comes, while the other direction may go on."""
    if not writer.is_closing():
        with contextlib.suppress(OSError):
            writer.write_eof()


def abort(writer: StreamWriter) -> None:
    connection: socket.socket = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
    writer.transport.abort()
