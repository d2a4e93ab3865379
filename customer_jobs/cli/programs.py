"""Programs that run together: started in order, watched, started again when they end, stopped in reverse order."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Self

from customer_jobs import embedded
from customer_jobs.embedded import EmbeddedError, Program
from customer_jobs.errors import CustomerJobsError

WATCH_SECONDS = 0.1  #: Between two looks: soon enough for a person who has pressed Ctrl-C.
FIRST_PAUSE_SECONDS = 1.0  #: Before a program is started again; doubled if it ends again soon, up to …
LAST_PAUSE_SECONDS = 30.0
SETTLED_SECONDS = 60.0  #: A program that has run for so long is not failing for the same reason again.
ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ended(BaseException):
    """Somebody asked to end; raised where something was being waited for."""


class Ending:
    """Whether somebody asked to end, by Ctrl-C, SIGTERM or a closed terminal; asked twice, nothing is waited for."""

    def __init__(self) -> None:
        self.asked = False
        self.at_once: Callable[[], None] = lambda: None  #: What to do when asked again.
        self._before: dict[signal.Signals, Any] = {}

    def check(self) -> None:
        """Return if nobody has asked. Raises Ended."""
        if self.asked:
            raise Ended

    def __enter__(self) -> Self:
        for number in ASKING:
            # nohup ignores SIGHUP on purpose; a script that starts us in its background has SIGINT ignored by accident.
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, _: int, __: FrameType | None) -> None:
        # Only a flag: raising here could lose a program between its start and its place in the list.
        if self.asked:
            self.at_once()
        self.asked = True


@dataclass(frozen=True)
class Part:
    """One of the programs, and how to know that it is ready."""

    name: str
    begin: Callable[[], Program]
    is_ready: Callable[[], bool]
    ready_seconds: float
    grace_seconds: float = embedded.GRACE_SECONDS  #: From the request to end to SIGKILL.


@dataclass
class _Run:
    """A part as it runs."""

    part: Part
    program: Program
    began_at: float
    pause_seconds: float = FIRST_PAUSE_SECONDS
    again_at: float | None = None  #: It has ended and will be started again then.


class Programs:
    """The programs of one command; leaving its `with` block stops them."""

    def __init__(self, ending: Ending, say: Callable[[str], None]) -> None:
        self._ending = ending
        self._say = say
        self._runs: list[_Run] = []
        ending.at_once = self._kill

    def begin(self, part: Part) -> None:
        """Start a program; it may not be ready yet."""
        self._ending.check()
        self._runs.append(_Run(part, part.begin(), time.monotonic()))

    def await_ready(self, name: str) -> float:
        """The seconds it took the program to get ready.

        Raises:
            CustomerJobsError: it ended, or did not get ready in time; the message is its own last word if it had one.
        """
        run = next(each for each in self._runs if each.part.name == name)

        def is_ready() -> bool:
            self._ending.check()
            return run.part.is_ready()

        try:
            embedded.wait_until(is_ready, run.part.ready_seconds, f"{name} is ready", program=run.program)
        except EmbeddedError as error:
            for line in reversed(run.program.log_tail().splitlines()):
                if line.startswith("error: "):
                    raise CustomerJobsError(f"{name} does not start: {line.removeprefix('error: ')}") from error
            raise
        return time.monotonic() - run.began_at

    def watch(self) -> None:
        """Return once somebody asks to end; until then a program that ends is started again after a pause."""
        while not self._ending.asked:
            for run in self._runs:
                self._look_after(run)
            time.sleep(WATCH_SECONDS)

    def stop(self) -> None:
        """End all, the last started first; each has ended before the next is asked to."""
        while self._runs:
            run = self._runs[-1]
            if run.program.running():
                self._say(f"stopping {run.part.name}")
                run.program.stop(run.part.grace_seconds)
            self._runs.pop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _look_after(self, run: _Run) -> None:
        now = time.monotonic()
        if run.program.running():
            return
        if run.again_at is None:
            self._plan(run, f"{run.part.name} ended with exit code {run.program.exit_code()}", now)
        elif now >= run.again_at:
            run.again_at = None
            run.began_at = now
            try:
                run.program = run.part.begin()
            except EmbeddedError as error:
                self._plan(run, str(error), now)

    def _plan(self, run: _Run, why: str, now: float) -> None:
        settled = now - run.began_at >= SETTLED_SECONDS
        pause = FIRST_PAUSE_SECONDS if settled else run.pause_seconds
        run.pause_seconds = min(pause * 2, LAST_PAUSE_SECONDS)
        run.again_at = now + pause
        self._say(f"{why}; starting it again in {pause:g} s (log: {run.program.log})")

    def _kill(self) -> None:
        for run in self._runs:
            run.program.send(signal.SIGKILL)
