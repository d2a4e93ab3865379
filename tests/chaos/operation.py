"""One piece of work that a test may kill at any statement, or stop between two transactions and let go on later.

Each runs in a greenlet: only one runs at a time and every run can be repeated. What the work does is not known here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from greenlet import getcurrent, greenlet
from sqlalchemy import Connection, Engine, event


class Killed(BaseException):
    """The process is gone: no `except Exception` hears of it, and the database rolls back what was not committed."""


@dataclass(frozen=True)
class Harm:
    """What happens to a piece of work, and at which of its seams, counted from 1."""

    what: Literal["kill", "stop"] | None = None
    seam: int = 0


NONE = Harm()


class Operation(greenlet):  # type: ignore[misc] # it has no types
    """A piece of work under way."""

    def __init__(
        self,
        name: str,
        work: Callable[[], object],
        *,
        fault: str | None = None,
        job_id: str | None = None,
        holder: str | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.job_id = job_id  #: Of an attempt.
        self.holder = holder  #: Of a dispatcher's work.
        self.fault = fault  #: What its next call to Stripe meets.
        self.seam = "the beginning"  #: The last that it reached.
        self.killed = False
        self.was_not_sent = False  #: Whether a create was entered in the ledger and then not sent.
        self._work = work
        self._harm = NONE
        self._left = 0

    def go_on(self, harm: Harm = NONE) -> None:
        """Work to the end, or as far as the harm allows; an error of the work is raised here."""
        self._harm, self._left = harm, harm.seam
        self.parent = getcurrent()
        self.switch()

    def kill(self) -> None:
        """End it where it stopped."""
        self.go_on(Harm("kill", 0))

    def run(self) -> None:
        try:
            self._work()
        except Killed:
            self.killed = True

    def reach(self, seam: str, *, may_stop: bool) -> None:
        self.seam = seam
        if self._harm.what == "stop" and not may_stop:
            return
        self._left -= 1
        if self._left == 0 and self._harm.what == "kill":
            self._die()
        if self._left == 0 and self._harm.what == "stop":
            self.parent.switch()
            if self._harm == Harm("kill", 0):
                self._die()

    def _die(self) -> NoReturn:
        self._harm = NONE  # Rolling back is the database's doing, and meets no seam.
        raise Killed(self.seam)


def seam(name: str, *, may_stop: bool = True) -> None:
    """Where an operation may be killed; or stopped, unless others would have to wait for it."""
    if isinstance(current := getcurrent(), Operation):
        current.reach(name, may_stop=may_stop)


def add_seams(engine: Engine) -> None:
    """Make a seam of every statement, and of the moments before a transaction begins and before it is committed."""

    def before_statement(_: Connection, __: Any, statement: str, *___: Any) -> None:
        seam(statement, may_stop=False)

    event.listen(engine, "before_cursor_execute", before_statement)
    event.listen(engine, "commit", lambda _: seam("the commit", may_stop=False))
    # First of all: on SQLite another listener takes the lock that everybody else would wait for.
    event.listen(engine, "begin", lambda _: seam("a transaction"), insert=True)
