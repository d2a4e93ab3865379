"""Keeps the threads of a process on one core: Python lets one of them run at a time, and a second core only costs.

A thread that waits for its turn is woken on whichever core is idle, which takes longer than much of what it then does.
A worker whose threads stay together makes half as many calls again with the same time of the processor, see
`benchmarks/limits.py`, "limits off".
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Set
from contextlib import suppress
from pathlib import Path

MOVE_EVERY_SECONDS = 2.0  #: A core that something else has come to keep busy is left after so long.
FREE_SECONDS = 0.02  #: The kernel's time to find a better one.

_TASKS = Path("/proc/self/task")
_THIS_TASK = Path("/proc/thread-self/stat")
_PROCESSOR = 36  #: Of the fields behind the name. Source: man7.org/linux/man-pages/man5/proc_pid_stat.5.html


def keep_to_one_core() -> None:
    """Begin to, where the system can, and for as long as it lets us; returns at once."""
    if not hasattr(os, "sched_setaffinity") or not _THIS_TASK.exists():
        return
    allowed = os.sched_getaffinity(0)
    if len(allowed) > 1:
        threading.Thread(target=_stay_together, args=(allowed,), name="core", daemon=True).start()


def _stay_together(allowed: Set[int]) -> None:
    while True:
        _let_run_on(allowed)
        time.sleep(FREE_SECONDS)  # From which the kernel wakes this thread on an idle core, if there is one.
        _let_run_on({_core_of_this_thread()})
        time.sleep(MOVE_EVERY_SECONDS)


def _let_run_on(cores: Set[int]) -> None:
    for task in _TASKS.iterdir():
        with suppress(OSError):  # The thread has ended, or the system has other orders.
            os.sched_setaffinity(int(task.name), cores)


def _core_of_this_thread() -> int:
    return int(_THIS_TASK.read_text(encoding="utf-8").rpartition(")")[2].split()[_PROCESSOR])
