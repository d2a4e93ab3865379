"""What the table costs: beside a bare task, by the jobs that wait in it, and with nothing to do."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from sqlalchemy import Engine, delete

from benchmarks import peers
from benchmarks.arrivals import answered, speed, turned_away
from benchmarks.line import Line
from benchmarks.parts import database, enqueue, stage
from customer_jobs.database import writing
from customer_jobs.schema import is_in_flight, jobs, lanes
from tests.builders import add_worker, age, lead, settings_for
from worker.dispatcher.dispatch import Dispatch
from worker.process import THREADS

NO_LIMIT = "100000"  #: Calls per second that the settings take.
WARM_UP_LOOKS = 10  #: Statements are built and prepared once.
SETTLE_SECONDS = 5.0  #: After its start a worker still has things to do.
CLOCK_TICKS_PER_SECOND = 100  #: What Linux counts a process's time in, on every machine that Python runs on.


def of_the_table(postgres_url: str | None, count: int) -> Iterator[Line]:
    """Creates a second with no limit and a Stripe that answers at once, beside a bare task's."""
    with stage(None) as on:
        peers.publish(on.redis_url, peers.bare.name, count)
        peers.start(on)
        bare = speed(answered(on, count))
    yield Line("limits off: a bare task without a table", count, bare, "/s", None)
    with stage(postgres_url) as on:
        enqueue(on.engine, count)
        on.start_workers(RATE_LIMIT_CREATE=NO_LIMIT, RATE_LIMIT_ACCOUNT=NO_LIMIT)
        log = answered(on, count)
    ratio = speed(log) / bare
    yield Line("limits off, 1 worker", count, speed(log), "/s", turned_away(log))
    yield Line("  against the bare task", count, ratio, "x", None, ">= 0.45 x", reached=ratio >= 0.45)


class Table:
    """A table in which so many jobs wait, and a dispatcher that looks at it."""

    def __init__(self, engine: Engine, waiting: int) -> None:
        self.waiting = waiting
        self.milliseconds: list[float] = []  #: For each job, look by look.
        self._engine = engine
        self._dispatch = Dispatch(engine, settings_for(), lambda *_: None, holder="benchmark")
        enqueue(engine, waiting)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("ANALYZE")

    def look(self) -> None:
        """Dispatch what a worker has room for; the table is as full as before when this returns."""
        lead(self._engine, "benchmark")
        add_worker(self._engine, THREADS)
        age(self._engine, 1, lanes)
        began = time.perf_counter()
        look = self._dispatch.run_once()
        self.milliseconds.append((time.perf_counter() - began) * 1000 / look.dispatched)
        with writing(self._engine) as transaction:
            transaction.change(delete(jobs).where(is_in_flight()))
        enqueue(self._engine, look.dispatched)


def of_looks(postgres_url: str | None, backlogs: tuple[int, int], looks: int) -> Iterator[Line]:
    """The cost of a job by how many wait; looks take turns, so that both see the same machine."""
    name = "SQLite" if postgres_url is None else "PostgreSQL"
    with ExitStack() as open_ones:
        directory = Path(open_ones.enter_context(tempfile.TemporaryDirectory(prefix="customer-jobs-")))
        tables = [Table(open_ones.enter_context(database(directory, postgres_url))[1], waiting) for waiting in backlogs]
        for _ in range(WARM_UP_LOOKS + looks):
            for each in tables:
                each.look()
        medians = [statistics.median(each.milliseconds[WARM_UP_LOOKS:]) for each in tables]
    for waiting, median in zip(backlogs, medians, strict=True):
        yield Line(f"dispatching a job of {waiting:,} on {name}", looks, median, "ms", None)
    ratio = medians[1] / medians[0]
    yield Line("  many against few", looks, ratio, "x", None, "<= 1.3 x", reached=ratio <= 1.3)


def of_idling(postgres_url: str | None, seconds: float) -> Line:
    """The share of a core that a worker takes with nothing to do."""
    with stage(postgres_url) as on:
        (worker,) = on.start_workers()
        time.sleep(SETTLE_SECONDS)
        before, began = cpu_seconds(worker.pid), time.perf_counter()
        time.sleep(seconds)
        share = (cpu_seconds(worker.pid) - before) / (time.perf_counter() - began)
    name, most = ("SQLite", 0.03) if postgres_url is None else ("PostgreSQL", 0.01)
    what = f"an idle worker on {name}, for {seconds:.0f} s"
    return Line(what, 1, share * 100, "% of a core", None, f"< {most:.0%}", reached=share < most)


def cpu_seconds(pid: int) -> float:
    """What a process has used so far, on Linux. Source: https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html"""
    # Behind its name, which may hold anything.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS_PER_SECOND
