"""The threads of a process on one core while it is busy, and when they are left to the kernel."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path

import pytest

from customer_jobs.embedded import wait_until

SOON_SECONDS = 30.0

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) == 1, reason="there is no other core"
)

#: Works with one thread, waits with another, and does as each line tells it.
PROCESS = """
import os, sys, threading
from worker import core

core.LOOK_EVERY_SECONDS = 0.1
working = threading.Event()
working.set()

def wait():
    threading.Event().wait()

def burn():
    while True:
        working.wait()
        sum(range(1000))

for each in (wait, burn):
    threading.Thread(target=each, daemon=True).start()
together = core.OneCore()
together.start()
for line in sys.stdin:
    match line.strip():
        case "rest":
            working.clear()
        case "work":
            working.set()
        case "execute":
            together.stop()
            os.execv(sys.executable, [sys.executable, "-c", "print('executed', flush=True); input()"])
"""


@contextmanager
def process(before: str = "") -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", before + PROCESS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as running:
        try:
            yield running
        finally:
            running.kill()


def tell(running: subprocess.Popen[str], word: str) -> None:
    assert running.stdin is not None
    running.stdin.write(f"{word}\n")


def cores(running: subprocess.Popen[str]) -> list[Set[int]]:
    """Where each of its threads may run."""
    return [os.sched_getaffinity(int(task.name)) for task in Path(f"/proc/{running.pid}/task").iterdir()]


def are_together(running: subprocess.Popen[str]) -> bool:
    first, *others = cores(running)
    return len(first) == 1 and len(others) == 3 and all(other == first for other in others)


def are_free(running: subprocess.Popen[str]) -> bool:
    return all(each == os.sched_getaffinity(0) for each in cores(running))


def test_threads_are_together_while_there_is_much_to_do() -> None:
    with process() as running:
        wait_until(lambda: are_together(running), SOON_SECONDS, "all threads may run on one core, the same")

        tell(running, "rest")
        wait_until(lambda: are_free(running), SOON_SECONDS, "they are left to the kernel")

        tell(running, "work")
        wait_until(lambda: are_together(running), SOON_SECONDS, "they are together again")


def test_what_is_executed_in_its_place_may_run_anywhere() -> None:
    with process() as running:
        wait_until(lambda: are_together(running), SOON_SECONDS, "all threads may run on one core")

        tell(running, "execute")

        assert running.stdout is not None
        assert running.stdout.readline() == "executed\n"
        assert are_free(running)


def test_an_operator_says_where_they_may_run() -> None:
    with process() as running:
        wait_until(lambda: are_together(running), SOON_SECONDS, "all threads may run on one core")

        # As `taskset -ap` does it; a look that is under way may not have reached some thread.
        only = max(os.sched_getaffinity(0) - cores(running)[0], default=0)
        wait_until(lambda: put(running, only) == [{only}] * 4, SOON_SECONDS, "all threads are on the other core")

        assert not becomes(lambda: cores(running) != [{only}] * 4, 1.0)


def test_a_system_that_ends_whoever_asks_is_not_asked() -> None:
    forbidden = "import subprocess; subprocess.run = lambda *_, **__: subprocess.CompletedProcess([], -31)\n"
    with process(forbidden) as running:
        assert running.stdout is not None
        assert "slower than it could be" in running.stdout.readline()
        assert not becomes(lambda: not are_free(running), 1.0)


def put(running: subprocess.Popen[str], core: int) -> list[Set[int]]:
    for task in Path(f"/proc/{running.pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {core})
    return cores(running)


def becomes(condition: Callable[[], bool], within_seconds: float) -> bool:
    give_up_at = time.monotonic() + within_seconds
    while time.monotonic() < give_up_at:
        if condition():
            return True
        time.sleep(0.001)
    return False
