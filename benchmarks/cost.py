"""What the table costs: beside a bare task, by the jobs that wait in it, behind jobs that left, with nothing to do."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sqlalchemy import Engine, delete

from benchmarks import peers
from benchmarks.arrivals import answered, speed, turned_away
from benchmarks.line import Line
from benchmarks.parts import database, enqueue, stage
from customer_jobs.database import writing
from customer_jobs.schema import is_in_flight, jobs
from tests import servers
from tests.builders import add_worker, lead, settings_for
from worker.dispatcher.dispatch import Dispatch
from worker.process import THREADS

NO_LIMIT = "100000"  #: Calls per second that the settings take.
WARM_UP_LOOKS = 10  #: Statements are built and prepared once.
SETTLE_SECONDS = 5.0  #: After its start a worker still has things to do.
CLOCK_TICKS_PER_SECOND = 100  #: What Linux counts a process's time in, on every machine that Python runs on.


def of_the_table(postgres_url: str | None, count: int) -> Iterator[Line]:
    """Creates a second with no limit and a Stripe that answers at once, beside a bare task's before and after them."""
    before = of_a_bare_task(count)
    with stage(postgres_url) as on:
        enqueue(on.engine, count)
        on.start_workers(RATE_LIMIT_CREATE=NO_LIMIT, RATE_LIMIT_ACCOUNT=NO_LIMIT)
        log = answered(on, count)
    # A machine that others use, too, is not as fast all the time.
    bare = statistics.mean([before, of_a_bare_task(count)])
    ratio = speed(log) / bare
    yield Line("limits off: a bare task without a table", 2 * count, bare, "/s", None)
    yield Line("limits off, 1 worker", count, speed(log), "/s", turned_away(log))
    yield Line("  against the bare task", count, ratio, "x", None, ">= 0.45 x", reached=ratio >= 0.45)


def of_a_bare_task(count: int) -> float:
    """Creates a second."""
    with stage(None) as on:
        peers.publish(on.redis_url, peers.bare.name, count)
        peers.start(on)
        return speed(answered(on, count))


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


#: What jobs and their dispatcher write, from the INSERT to the published event, as of half an hour ago; a thousand jobs
#: in each statement, which leaves the same rows and index entries behind as one by one, in a minute instead of an hour.
PASSING_AT_ONCE = 1000
PASSING = """
    INSERT INTO customer_jobs.jobs (kind, payload, due_at)
        SELECT 'customer.create', '{"body": {}}', clock_timestamp() - interval '30 min' FROM generate_series(1, 1000);
    UPDATE customer_jobs.jobs SET state = 'dispatched', lease_token = gen_random_uuid(),
        lease_expires_at = clock_timestamp() - interval '30 min' WHERE id IN (
            SELECT id FROM customer_jobs.jobs WHERE state IN ('queued', 'retrying')
            AND due_at < clock_timestamp() - interval '25 min');
    UPDATE customer_jobs.jobs SET state = 'running', attempt = 1, started_at = clock_timestamp(),
        lease_expires_at = clock_timestamp() - interval '30 min' WHERE state = 'dispatched';
    INSERT INTO customer_jobs.attempts (job_id, number) SELECT id, 1 FROM customer_jobs.jobs WHERE state = 'running';
    UPDATE customer_jobs.attempts SET verdict = 'succeeded', finished_at = clock_timestamp()
        WHERE finished_at IS NULL;
    INSERT INTO customer_jobs.events (type, subject, data)
        SELECT 'benchmark', id, '{}' FROM customer_jobs.jobs WHERE state = 'running';
    UPDATE customer_jobs.jobs SET state = 'succeeded', outcome = 'created', finished_at = clock_timestamp(),
        lease_token = NULL, lease_expires_at = NULL WHERE state = 'running';
    UPDATE customer_jobs.events SET published_at = clock_timestamp() WHERE published_at IS NULL;
"""
#: The rows that are written with every job, by their place: by their keys each would walk over all the earlier ones.
PASSING_THE_LANES = """
    DO $$ DECLARE place tid; of_kind text; BEGIN
        PERFORM set_config('enable_seqscan', 'off', false);
        FOR of_kind IN SELECT kind FROM customer_jobs.lanes LOOP
            SELECT ctid INTO place FROM customer_jobs.lanes WHERE kind = of_kind;
            FOR number IN 1..1000 LOOP
                UPDATE customer_jobs.lanes SET refilled_at = clock_timestamp() WHERE ctid = place
                    RETURNING ctid INTO place;
            END LOOP;
        END LOOP;
    END $$
"""


@contextmanager
def left_behind(postgres_url: str, count: int, *, is_open: bool) -> Iterator[None]:
    """What so many jobs leave behind in the tables; `is_open`: while a transaction goes on that began before them."""
    with servers.connect(postgres_url) as producer, servers.connect(postgres_url) as passing:
        if is_open:
            producer.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            producer.execute("SELECT count(*) FROM customer_jobs.workers")
        for _ in range(count // PASSING_AT_ONCE):
            passing.execute(PASSING)
            passing.execute(PASSING_THE_LANES)
        passing.execute("VACUUM ANALYZE")
        yield


def of_an_open_transaction(postgres_url: str, count: int, looks: int) -> Iterator[Line]:
    """The cost of a look when so many jobs have left, and nothing or a producer's transaction was open meanwhile."""
    with ExitStack() as open_ones:
        directory = Path(open_ones.enter_context(tempfile.TemporaryDirectory(prefix="customer-jobs-")))
        tables = []
        for is_open in (False, True):
            url, engine = open_ones.enter_context(database(directory, postgres_url))
            table = Table(engine, THREADS)
            table.look()
            open_ones.enter_context(left_behind(url, count, is_open=is_open))
            tables.append(table)
        for _ in range(WARM_UP_LOOKS + looks):
            for table in tables:
                table.look()
        without, within = ([each * THREADS for each in table.milliseconds[-looks:]] for table in tables)
    for what, each in (("nothing was open", without), ("a transaction is open", within)):
        yield Line(f"a look when {count:,} jobs have left, {what}", looks, statistics.median(each), "ms", None)
    ratio = statistics.mean(within) / statistics.mean(without)
    yield Line("  open against nothing open, mean", looks, ratio, "x", None, "<= 1.5 x", reached=ratio <= 1.5)


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
