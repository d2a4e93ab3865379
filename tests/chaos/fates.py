"""Workers that are doomed to die at a point, those that take over from them, and what must hold afterwards."""

from __future__ import annotations

import signal
import threading
from dataclasses import dataclass, field
from pathlib import Path

from customer_jobs import Job
from customer_jobs.embedded import Program, wait_until
from customer_jobs.schema import events, jobs
from tests.acceptance.stack import READY_SECONDS, Stack, email
from tests.builders import ledger, rows
from tests.chaos.invariants import broken_at_the_end, look
from tests.chaos.points import DIE_AT, LAST_WORDS

APP = "tests.chaos.doomed"
#: Stripe's limit is another subject; with these several jobs leave the table in one look.
UNLIMITED = {f"RATE_LIMIT_{what}": "1000" for what in ("CREATE", "FETCH", "ACCOUNT")}
DEATH_SECONDS = 60.0  #: For a doomed worker to come to its point on a busy machine.
END_SECONDS = 90.0  #: Leases run out within 16 s, a lost message of the door comes again after a minute.
STARTS_AT_ONCE = threading.BoundedSemaphore(4)  #: More would only wait for one another.


@dataclass
class Fate:
    """A process that is to die, and what it said last."""

    stack: Stack
    point: str
    settings: dict[str, str] = field(default_factory=dict)
    program: Program = field(init=False)

    @property
    def words(self) -> Path:
        return self.stack.directory / f"{self.name}.died"

    @property
    def name(self) -> str:
        return self.point.replace(" ", "-").replace(",", "")

    def begin(self) -> Fate:
        """A worker that is ready to die, or has done so: some points are reached as soon as it leads."""
        with STARTS_AT_ONCE:
            fatal = {DIE_AT: self.point, LAST_WORDS: str(self.words)}
            self.program = self.stack.launch_worker(self.name, app=APP, **UNLIMITED, **fatal, **self.settings)
            ready = f"{self.name}@test ready"
            wait_until(
                lambda: ready in self.program.log.read_text() or not self.program.running(),
                READY_SECONDS,
                f"{ready!r} is logged",
            )
        return self

    def await_death(self) -> str:
        """The id of the job whose turn it was, if it was one's; the process died at its point and of nothing else."""
        wait_until(lambda: not self.program.running(), DEATH_SECONDS, f"a worker dies: {self.point}")
        assert self.program.exit_code() == -signal.SIGKILL, self.program.log_tail()
        point, job_id = self.words.read_text().splitlines()
        assert point == self.point
        return job_id


def heir_of(stack: Stack) -> Program:
    with STARTS_AT_ONCE:
        return stack.start_worker("heir", **UNLIMITED)


def create(stack: Stack, external_id: str | None = None) -> Job:
    return stack.jobs.create_customer({"email": email()}, external_id=external_id)


def verdicts(stack: Stack, job_id: str) -> list[str | None]:
    return [row["verdict"] for row in ledger(stack.engine, job_id)]


def require_a_whole_world(stack: Stack) -> None:
    """Every job ends, and every invariant holds."""

    def is_over() -> bool:
        left = [row for row in rows(stack.engine, jobs) if row["finished_at"] is None]
        return not left and all(row["published_at"] for row in rows(stack.engine, events))

    wait_until(is_over, END_SECONDS, "every job is final and every event published")
    subjects = [row["subject"] for row in rows(stack.engine, events)]
    for subject in subjects:
        stack.consumer.event_about(subject)
    stream = [entry["event"] for subject in subjects for entry in stack.consumer.entries_about(subject)]
    assert broken_at_the_end(look(stack.engine, stack.sandbox), stream) == []
