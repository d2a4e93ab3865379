"""Looks that begin behind what left before: they do not walk over it, and all that waits is found nevertheless."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, delete, event, insert, select, update

from customer_jobs import CustomerJobs
from customer_jobs.database import writing
from customer_jobs.schema import is_in_flight, jobs, lanes
from customer_jobs.sql import now
from customer_jobs.vocabulary import State
from tests.builders import Clock, add_fetch, add_job, add_worker, later, lead, settings_for
from worker.dispatcher.dispatch import Dispatch
from worker.dispatcher.front import IDLE_LANES, LEFT_UNNOTICED, Front

PLENTY = 500  #: Threads, so that none holds a job back.
LEFT = 1000  #: Jobs that left while a transaction was open.
#: What a statement touches that finds a few rows by an index; what a row of `lanes` was before fills more.
FEW_PAGES = 24
STEP_SECONDS = 0.1  #: Of the clock, with every question: a look from the beginning is not repeated for some seconds.

on_postgresql = pytest.mark.parametrize("database", ["postgresql"])


class Table:
    """A dispatcher that has handed out so many jobs that it begins behind them, and notes what it publishes."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.clock = Clock(STEP_SECONDS)
        self.again_in_seconds: float | None = None
        self._published: list[str] = []
        add_worker(engine, PLENTY)
        holder = lead(engine)
        self.dispatch = Dispatch(engine, settings_for(), self._publish, holder=holder, clock=self.clock)
        add_jobs(engine, LEFT_UNNOTICED)
        while self.look():
            pass
        with writing(engine) as transaction:
            transaction.change(delete(jobs))
        self.look_from_the_beginning()

    def look(self) -> list[str]:
        """The ids that one look publishes; no limit holds any of them back."""
        with writing(self.engine) as transaction:
            transaction.change(update(lanes).values(tokens=PLENTY))
        self._published.clear()
        self.again_in_seconds = self.dispatch.run_once().again_in_seconds
        return list(self._published)

    def look_from_the_beginning(self) -> list[str]:
        """The same when the time has come to begin at the first entry."""
        self.clock.seconds += 60
        return self.look()

    def _publish(self, jobs: Sequence[tuple[str, str]]) -> None:
        self._published += [job_id for _, job_id in jobs]


@pytest.fixture
def table(engine: Engine) -> Table:
    return Table(engine)


def add_jobs(engine: Engine, count: int, **columns: Any) -> list[str]:
    """The ids of so many waiting jobs."""
    row = {"kind": "customer.create", "payload": {"body": {}}, **columns}
    with writing(engine) as transaction:
        return [str(each["id"]) for each in transaction.rows(insert(jobs).returning(jobs.c.id), [row] * count)]


@contextmanager
def old_snapshot(engine: Engine) -> Iterator[None]:
    """A transaction that has read something, and may read as of then for as long as it lasts."""
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        connection.execute(select(jobs.c.id).limit(1))
        yield


@contextmanager
def counted_pages(engine: Engine) -> Iterator[list[int]]:
    """How many pages each SELECT touches that is executed in this block."""
    pages: list[int] = []

    def explain(_: Any, cursor: Any, statement: str, parameters: Any, *__: Any) -> None:
        if not statement.startswith(("SELECT", "WITH")):
            return
        with cursor.connection.cursor() as another:
            another.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters)
            (plan,) = another.fetchone()
        (top,) = plan if isinstance(plan, list) else json.loads(plan)
        pages.append(top["Plan"]["Shared Hit Blocks"] + top["Plan"]["Shared Read Blocks"])

    event.listen(engine, "before_cursor_execute", explain)
    yield pages
    event.remove(engine, "before_cursor_execute", explain)


def let_jobs_leave(engine: Engine, count: int) -> None:
    """Jobs that waited, were under way, and ended; what they were leaves entries in the indexes behind."""
    ids = add_jobs(engine, count, due_at=datetime.now(UTC) - timedelta(minutes=1), context={"note": "x" * 500})
    for values in (
        {"state": State.DISPATCHED, "lease_expires_at": now(-50)},
        {"state": State.RUNNING, "lease_expires_at": now(-40)},
        {"state": State.CANCELLED, "lease_expires_at": None, "finished_at": now()},
    ):
        with writing(engine) as transaction:
            transaction.change(update(jobs).where(jobs.c.id.in_(ids)).values(values))
    with writing(engine) as transaction:
        for _ in range(count):
            transaction.change(update(lanes).values(refilled_at=now()))


@on_postgresql
def test_a_look_does_not_walk_over_what_left_while_a_transaction_is_open(engine: Engine, table: Table) -> None:
    with old_snapshot(engine):
        let_jobs_leave(engine, LEFT)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("ANALYZE")
        job_id = add_job(engine)
        first = table.look_from_the_beginning()
        table.look()
        with counted_pages(engine) as short:
            table.dispatch.run_once()
        with counted_pages(engine) as whole:
            table.clock.seconds += 60
            table.dispatch.run_once()

    assert first == [job_id]
    assert max(whole) > 2 * FEW_PAGES
    assert max(short) < FEW_PAGES


@on_postgresql
def test_jobs_leave_in_their_order(engine: Engine, table: Table) -> None:
    low = [add_job(engine, priority=3, due_at=now(-seconds)) for seconds in (30, 20, 10)]
    bulk = [add_job(engine, priority=4, due_at=now(-seconds)) for seconds in (2000, 1000, 5)]
    first = table.look_from_the_beginning()
    default, aged = add_job(engine), add_job(engine, priority=3)

    later(engine, 16 * 60, aged)
    urgent = add_job(engine, priority=1)

    assert first == [*bulk[:2], *low, bulk[2]]
    assert set(table.look()) == {urgent, default}
    assert table.look_from_the_beginning() == [aged]


def test_what_comes_into_a_lane_that_was_idle_is_found_at_once(engine: Engine, table: Table) -> None:
    create, urgent, bulk = add_job(engine), add_job(engine, priority=1), add_job(engine, priority=4)

    left = table.look()

    assert left == [urgent, create, bulk]


def test_a_job_that_is_retried_by_hand_is_found_at_once(engine: Engine, table: Table) -> None:
    failed = add_job(engine, state=State.FAILED, due_at=now(-3600))

    again = CustomerJobs(engine).retry(failed)

    assert table.look() == [str(again.id)]


def test_a_job_whose_time_comes_is_found_at_once(engine: Engine, table: Table) -> None:
    waits = add_job(engine, state=State.RETRYING, attempt=1, due_at=now(60))
    before = table.look()

    later(engine, 61, waits)

    assert before == []
    assert table.look() == [waits]


def test_a_job_of_a_lane_that_nobody_knew_is_found_by_the_next_look_from_the_beginning(
    engine: Engine, table: Table
) -> None:
    new = {add_fetch(engine), add_job(engine, stripe_account="acct_1"), add_job(engine, reconciling=True)}

    left = table.look()
    again_in_seconds = table.again_in_seconds
    table.clock.seconds += again_in_seconds or 0
    left += table.look()

    assert again_in_seconds is not None
    assert again_in_seconds < 10
    assert set(left) == new


@on_postgresql
@pytest.mark.parametrize(("seconds", "at_once"), [(5, True), (3600, False)])
def test_a_job_that_is_committed_long_after_it_was_due_is_found(
    engine: Engine, table: Table, seconds: float, at_once: bool
) -> None:
    with engine.begin() as producer:
        job = insert(jobs).values(kind="customer.create", payload={}, due_at=now(-seconds)).returning(jobs.c.id)
        job_id = str(producer.scalar(job))
        young = add_job(engine)
        before = table.look()

    left = table.look()
    left_later = table.look_from_the_beginning()

    assert before == [young]
    assert (left, left_later) == (([job_id], []) if at_once else ([], [job_id]))


@on_postgresql
def test_a_job_that_was_locked_is_found_once_it_is_free(engine: Engine, table: Table) -> None:
    held = add_job(engine, priority=1, due_at=now(-3600))
    behind = add_job(engine, priority=1, due_at=now(-60))
    with writing(engine) as transaction:
        transaction.rows(select(jobs.c.id).where(jobs.c.id == held).with_for_update())
        before = table.look_from_the_beginning()

    left = table.look()
    left += table.look_from_the_beginning()

    assert before == [behind]
    assert left == [held]


def test_a_job_of_a_paused_lane_is_not_passed_by(engine: Engine, table: Table) -> None:
    ids = [add_job(engine, due_at=now(-3600 + number)) for number in range(12)]
    add_worker(engine, 3)
    left = table.look_from_the_beginning()
    with writing(engine) as transaction:
        transaction.change(delete(jobs).where(is_in_flight()))
        transaction.change(update(lanes).values(paused_at=now()))

    paused = table.look()
    with writing(engine) as transaction:
        transaction.change(update(lanes).values(paused_at=None))
    again = table.look()

    assert left
    assert paused == []
    assert again
    assert left + again == ids[: len(left + again)]


@on_postgresql
def test_a_lane_that_a_look_from_the_beginning_asked_for_nothing_is_looked_at_whole(
    engine: Engine, table: Table
) -> None:
    add_job(engine, due_at=now(-60))
    table.look_from_the_beginning()
    late = add_job(engine, due_at=now(-3600))
    with writing(engine) as transaction:
        transaction.change(update(lanes).values(tokens=-PLENTY))
    table.clock.seconds += 60
    asked_for_nothing = table.dispatch.run_once().dispatched

    left = table.look()

    assert asked_for_nothing == 0
    assert left == [late]


def test_a_dispatcher_without_room_rests(engine: Engine, table: Table) -> None:
    table.look()  # Begins behind what left.
    add_worker(engine, 0)
    table.clock.seconds += 60

    look = table.dispatch.run_once()

    assert (look.full, look.again_in_seconds) == (True, None)


def test_a_backlog_leaves_without_a_look_from_the_beginning(engine: Engine, table: Table) -> None:
    ids = [add_job(engine, due_at=now(-3600 + number)) for number in range(12)]
    add_worker(engine, 3)
    left = table.look_from_the_beginning()

    while len(left) < len(ids):
        with writing(engine) as transaction:
            transaction.change(delete(jobs).where(is_in_flight()))
        again = table.look()
        assert again
        left += again

    assert left == ids


@on_postgresql
def test_only_so_many_idle_lanes_are_remembered(engine: Engine) -> None:
    front = Front(Clock(STEP_SECONDS))
    for number in range(IDLE_LANES + 5):
        add_job(engine, stripe_account=f"acct_{number:03}")
    with writing(engine) as transaction:
        busy = front.lanes(transaction)
        transaction.change(delete(jobs).where(~is_in_flight()))
        front.lanes(transaction)
        front.note_left(busy[-1:] * LEFT_UNNOTICED)
        front.next_jobs(transaction, {}, transaction.value(select(now())))
        idle = front.lanes(transaction)

    assert len(busy) == IDLE_LANES + 5
    assert idle == busy[-IDLE_LANES:]
