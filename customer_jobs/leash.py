"""Holds one program on a leash: once whoever started it is gone, for whatever reason, the program ends too.

`customer_jobs.embedded` runs this file by its path (`python -I -S leash.py TERMS COMMAND…`); nothing imports it.
It starts in milliseconds and may use nothing but the standard library. Its streams are its interface:

stdin   a pipe that only the starter can write to. A line `SIGNAL` passes that signal on, a line
        `SIGNAL GRACE_SECONDS` is a stop with SIGKILL after the grace. End-of-file: the starter is gone.
stdout  a pipe to the starter: `pid N` (or `error TEXT`) at the start, `exit N` at the end.
stderr  the log, which is also where the program's own output goes.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

CONTROL = 0
#: A starter's child that was forked without exec also holds the pipe's write end, so end-of-file alone is not
#: proof enough; the parent's id is looked at this often as well.
PARENT_CHECK_SECONDS = 1.0
#: SIGKILL takes effect at once unless a process hangs in the kernel; nobody should wait for ever on that.
SWEEP_SECONDS = 5.0
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

PR_SET_PDEATHSIG = 1  # Source: https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html
PR_SET_CHILD_SUBREAPER = 36  # Source: https://man7.org/linux/man-pages/man2/PR_SET_CHILD_SUBREAPER.2const.html


class Leash:
    """One running program and what is known of its starter."""

    def __init__(self, pid: int, wakeups: int, terms: dict[str, int | float]) -> None:
        self.pid = pid
        self.orphaned = False  #: The starter went away without having stopped the program.
        self._wakeups = wakeups
        self._starter = terms["starter"]
        self._stop_signal = int(terms["stop_signal"])
        self._grace_seconds = terms["grace_seconds"]
        self._kill_at: float | None = None
        self._inbox = b""

    def hold(self) -> int:
        """The program's exit code, negative for a signal, as soon as it has ended."""
        while (code := reap(self.pid)) is None:
            sources = [self._wakeups] if self.orphaned else [self._wakeups, CONTROL]
            ready, _, _ = select.select(sources, [], [], self._patience_seconds())
            if self._wakeups in ready and set(STOPPING) & set(os.read(self._wakeups, 512)):
                self._stop(self._stop_signal, self._grace_seconds)
            if CONTROL in ready:
                self._obey(os.read(CONTROL, 4096))
            if os.getppid() != self._starter:
                self._orphan()
            if self._kill_at is not None and time.monotonic() >= self._kill_at:
                os.kill(self.pid, signal.SIGKILL)
                self._kill_at = None
        return code

    def settle(self) -> None:
        """Ask once more for the starter: it may have gone in the same moment as the program."""
        self.orphaned = self.orphaned or os.getppid() != self._starter

    def _patience_seconds(self) -> float:
        if self._kill_at is None:
            return PARENT_CHECK_SECONDS
        return min(PARENT_CHECK_SECONDS, max(0.0, self._kill_at - time.monotonic()))

    def _obey(self, received: bytes) -> None:
        if not received:
            self._orphan()
        *lines, self._inbox = (self._inbox + received).split(b"\n")
        for line in lines:
            number, _, grace_seconds = line.partition(b" ")
            if grace_seconds:
                self._stop(int(number), float(grace_seconds))
            else:
                os.kill(self.pid, int(number))

    def _orphan(self) -> None:
        if not self.orphaned:
            self.orphaned = True
            self._stop(self._stop_signal, self._grace_seconds)

    def _stop(self, number: int, grace_seconds: float) -> None:
        os.kill(self.pid, number)
        os.kill(self.pid, signal.SIGCONT)  # a paused program could not answer the signal
        kill_at = time.monotonic() + grace_seconds
        self._kill_at = kill_at if self._kill_at is None else min(self._kill_at, kill_at)


def main() -> int:
    terms, command = json.loads(sys.argv[1]), sys.argv[2:]
    wakeups = listen_for_signals()
    prctl = load_prctl()
    if prctl:
        # Whatever the program leaves behind becomes our child, even a process that made a session of its own.
        prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        program = spawn(command, prctl)
    except (OSError, subprocess.SubprocessError) as error:
        report(f"error {error}")
        return 1
    leash = Leash(program.pid, wakeups, terms)
    report(f"pid {program.pid}")
    try:
        program.returncode = leash.hold()
    finally:
        sweep(program.pid)
    leash.settle()
    if leash.orphaned:
        for directory in terms["remove"]:
            shutil.rmtree(directory, ignore_errors=True)
    report(f"exit {program.returncode}")
    return 0


def listen_for_signals() -> int:
    """The read end of a pipe in which the number of every signal received arrives as one byte."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for number in (*STOPPING, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    # The starter's thread may have had signals blocked; that is inherited.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    return read_end


def load_prctl() -> Callable[[int, int], int] | None:
    """Linux's prctl; None elsewhere, and where Python was built without ctypes."""
    if sys.platform != "linux":
        return None
    try:
        import ctypes
    except ImportError:
        return None
    function: Callable[[int, int], int] = ctypes.CDLL(None).prctl
    return function


def spawn(command: list[str], prctl: Callable[[int, int], int] | None) -> subprocess.Popen[bytes]:
    """The program, running in a process group of its own."""
    leash = os.getpid()

    def prepare() -> None:
        for number in (*STOPPING, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)  # "ignored" would be inherited, from nohup for instance
        if prctl:
            # For the case that the leash itself is killed. What the program has started by then is killed by
            # the starter if that lives, but for processes in sessions of their own: nobody knows of these.
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != leash:
                os._exit(1)

    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr.fileno(),
        process_group=0,
        preexec_fn=prepare,  # noqa: PLW1509 - safe here: this process has a single thread
    )


def reap(program: int) -> int | None:
    """The program's exit code if it has ended; collects every other dead child on the way."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == program:
            return os.waitstatus_to_exitcode(status)
        if pid == 0:
            return None


def sweep(group: int) -> None:
    """Kill what the program left behind: its process group and, on Linux, every descendant."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
    give_up_at = time.monotonic() + SWEEP_SECONDS
    while time.monotonic() < give_up_at:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            for child in children():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(child, signal.SIGKILL)
            time.sleep(0.005)  # the next generation is ours only once its parent is dead


def children() -> Iterator[int]:
    """Our children's ids, from /proc; nothing where there is none."""
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else ():  # noqa: PTH112, PTH208 - pathlib is slow to import
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", "rb") as stat:  # noqa: PTH123
                parent = stat.read().rpartition(b")")[2].split()[1]
                if int(parent) == os.getpid():
                    yield int(entry)


def report(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody may be left to read it
        os.write(sys.stdout.fileno(), line.replace("\n", " ").encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
