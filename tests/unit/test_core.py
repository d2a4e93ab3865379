"""The threads of a process on one core, and when the kernel is left to choose."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Set
from pathlib import Path

import pytest

from customer_jobs.embedded import wait_until
from worker import core

SOON_SECONDS = 20.0

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) == 1, reason="there is no other core"
)

#: Says whether its threads are kept together, and ends with its standard input.
PROCESS = """
import sys, threading
from worker.core import keep_to_one_core

threading.Thread(target=sys.stdin.read).start()
keep_to_one_core()
print("core" in {thread.name for thread in threading.enumerate()}, flush=True)
"""


def cores_of_threads(process_id: int) -> list[Set[int]]:
    return [os.sched_getaffinity(int(task.name)) for task in Path(f"/proc/{process_id}/task").iterdir()]


def test_all_threads_of_a_process_run_on_one_core() -> None:
    with subprocess.Popen([sys.executable, "-c", PROCESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"True\n"

        def are_together() -> bool:
            first, *others = cores_of_threads(process.pid)
            return len(first) == 1 and all(other == first for other in others)

        wait_until(are_together, SOON_SECONDS, "all threads may run on one core, the same")


def test_a_process_that_may_run_on_one_core_only_is_left_alone() -> None:
    only = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{only}}})\n{PROCESS}"

    ended = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, check=True)

    assert ended.stdout == b"False\n"


def test_the_kernel_chooses_the_core_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    let_run_on: list[Set[int]] = []
    cores = iter([3, 5])
    pauses = iter([core.FREE_SECONDS, core.MOVE_EVERY_SECONDS] * 2)

    def sleep(seconds: float) -> None:
        if seconds != next(pauses) or len(let_run_on) == 4:
            raise StopIteration

    monkeypatch.setattr(core, "_let_run_on", let_run_on.append)
    monkeypatch.setattr(core, "_core_of_this_thread", lambda: next(cores))
    monkeypatch.setattr(time, "sleep", sleep)

    with pytest.raises(StopIteration):
        core._stay_together({3, 4, 5})

    assert let_run_on == [{3, 4, 5}, {3}, {3, 4, 5}, {5}]


def test_a_system_that_does_not_let_us_is_asked_and_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def refuse(thread_id: int, cores: Iterable[int]) -> None:  # noqa: ARG001 - the system's signature
        asked.append(thread_id)
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", refuse)

    core._let_run_on({0})

    assert os.getpid() in asked
