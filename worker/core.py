"""Keeps the threads of a busy process on one core: Python lets one of them run at a time.

A thread that waits for its turn is woken on whichever core is idle, and that takes longer than much of what it then
does. A worker without limits makes half as many calls again when its threads stay together: benchmarks/limits.txt.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Set
from contextlib import suppress
from functools import cache
from pathlib import Path

import structlog

LOOK_EVERY_SECONDS = 2.0
BUSY = 0.3  #: Of a core: a process that takes less is left to the kernel.
FREE_SECONDS = 0.02  #: The kernel's time to move the thread that looks to an idle core, if there is one.

_TASKS = Path("/proc/self/task")
_THIS_TASK = Path("/proc/thread-self/stat")
_PROCESSOR = 36  #: Of the fields behind the name. Source: man7.org/linux/man-pages/man5/proc_pid_stat.5.html

log = structlog.get_logger(__name__)


class OneCore:
    """Keeps the threads of this process together while it is busy, on a core that every look chooses anew."""

    def __init__(self) -> None:
        self._used_seconds = time.process_time()
        self._looked_at = time.monotonic()
        self._together_on: Set[int] = set()  #: Empty while they are left to the kernel.
        self._allowed: Set[int] = set()  #: Where they might run before they were brought together.
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="core", daemon=True)

    def start(self) -> None:
        """Begin, where the system can; returns at once."""
        takes_turns = getattr(sys, "_is_gil_enabled", lambda: True)()
        if takes_turns and hasattr(os, "sched_setaffinity") and _THIS_TASK.exists():
            self._thread.start()

    def stop(self) -> None:
        """Leave the threads to the kernel: what is executed in place of this process inherits where it may run."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(LOOK_EVERY_SECONDS):
            with suppress(OSError):  # As when no file can be opened: the next look may.
                self._look()
        with suppress(OSError):
            self._free()

    def _look(self) -> None:
        is_busy = self._is_busy()
        self._free()
        if is_busy and not _is_permitted():
            log.info("slower than it could be: this system does not let a process choose its core")
            self._stopped.set()
        elif is_busy:
            self._stopped.wait(FREE_SECONDS)
            self._gather()

    def _is_busy(self) -> bool:
        used_seconds, looked_at = self._used_seconds, self._looked_at
        self._used_seconds, self._looked_at = time.process_time(), time.monotonic()
        return self._used_seconds - used_seconds > BUSY * (self._looked_at - looked_at)

    def _gather(self) -> None:
        self._allowed = os.sched_getaffinity(0)
        self._together_on = {_core_of_this_thread()}
        _let_run_on(self._together_on)

    def _free(self) -> None:
        # Unless somebody else, such as an operator with `taskset`, has said meanwhile where they may run.
        if self._together_on and os.sched_getaffinity(0) == self._together_on:
            _let_run_on(self._allowed)
        self._together_on = set()


def _let_run_on(cores: Set[int]) -> None:
    for task in _TASKS.iterdir():
        with suppress(OSError):  # The thread has ended.
            os.sched_setaffinity(int(task.name), cores)


def _core_of_this_thread() -> int:
    return int(_THIS_TASK.read_bytes().rpartition(b")")[2].split()[_PROCESSOR])


@cache
def _is_permitted() -> bool:
    """Tried by another process: there are systems that end the one that asks."""
    asking = [sys.executable, "-I", "-S", "-c", "import os; os.sched_setaffinity(0, os.sched_getaffinity(0))"]
    return subprocess.run(asking, capture_output=True, check=False).returncode == 0
