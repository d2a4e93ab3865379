"""Many lanes with work: a look asks few of them, and none waits longer for its turn than it should."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, delete, event, insert, update

from customer_jobs.database import reading, writing
from customer_jobs.lanes import Head, Lane, heads_of_lanes, lanes_with_work
from customer_jobs.schema import is_in_flight, jobs, lanes
from customer_jobs.sql import now
from customer_jobs.vocabulary import State
from tests.builders import Clock, add_fetch, add_job, add_worker, age, job_row, lead, settings_for
from worker.dispatcher.dispatch import Dispatch
from worker.dispatcher.front import FEW_LANES, SHORTEST_PAUSE_SECONDS

MANY = FEW_LANES + 15  #: Lanes: a look cannot know what is due in each.
SLOTS = 50
STEP_SECONDS = 0.001  #: Of the clock, with every question: a look from the beginning is not repeated at once.


class Table:
    """A dispatcher that leads and lets one or two calls leave in a look, all of them of one credential."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.clock = Clock(STEP_SECONDS)
        self.again_in_seconds: float | None = None
        self._published: list[str] = []
        add_worker(engine, SLOTS)
        settings = settings_for(rate_limit_account=25)
        self.dispatch = Dispatch(engine, settings, self._publish, holder=lead(engine), clock=self.clock)

    def look(self) -> list[str]:
        """The accounts whose jobs one look publishes; what was published before is done."""
        with writing(self.engine) as transaction:
            transaction.change(delete(jobs).where(is_in_flight()))
        self._published.clear()
        self.again_in_seconds = self.dispatch.run_once().again_in_seconds
        return [job_row(self.engine, job_id)["stripe_account"] for job_id in self._published]

    def look_later(self) -> list[str]:
        """The same when buckets have had time to fill."""
        age(self.engine, 1, lanes)
        return self.look()

    def look_from_the_beginning(self) -> list[str]:
        self.clock.seconds += 60
        return self.look_later()

    def _publish(self, jobs: Sequence[tuple[str, str]]) -> None:
        self._published += [job_id for _, job_id in jobs]


@pytest.fixture
def table(engine: Engine) -> Table:
    return Table(engine)


def accounts(count: int = MANY) -> list[str]:
    return [f"acct_{number:03}" for number in range(count)]


def add_jobs(engine: Engine, names: Sequence[str], each: int = 1, **columns: Any) -> None:
    """So many waiting jobs of each account."""
    row = {"kind": "customer.create", "payload": {"body": {}}, **columns}
    with writing(engine) as transaction:
        many = [row | {"stripe_account": name} for name in names for _ in range(each)]
        transaction.rows(insert(jobs).returning(jobs.c.id), many)


@contextmanager
def sent_values(engine: Engine) -> Iterator[list[int]]:
    """How many values each statement carries that is executed in this block."""
    counts: list[int] = []

    def count(*arguments: Any) -> None:
        counts.append(len(arguments[3]))

    event.listen(engine, "before_cursor_execute", count)
    yield counts
    event.remove(engine, "before_cursor_execute", count)


def test_a_look_costs_the_same_however_many_lanes_wait(engine: Engine, table: Table) -> None:
    sent = []
    for more in (accounts(), [f"{name}_b" for name in accounts()]):
        add_jobs(engine, more, 3)
        table.look_from_the_beginning()
        age(engine, 1, lanes)
        with sent_values(engine) as counts:
            assert table.dispatch.run_once().dispatched
        sent.append(sum(counts))

    assert sent[1] == pytest.approx(sent[0], rel=0.1)


def test_every_lane_gets_its_turn(engine: Engine, table: Table) -> None:
    add_jobs(engine, accounts(), 3)

    left: list[str] = []
    while len(left) < 2 * MANY:
        again = table.look_later()
        assert again
        left += again

    assert set(left[:MANY]) == set(left[MANY : 2 * MANY]) == set(accounts())


def test_the_most_urgent_job_of_many_lanes_leaves_first(engine: Engine, table: Table) -> None:
    add_jobs(engine, accounts())
    add_jobs(engine, ["acct_last"], priority=1)

    assert table.look_later()[0] == "acct_last"


def test_an_urgent_job_does_not_wait_for_its_lanes_turn(engine: Engine, table: Table) -> None:
    add_jobs(engine, accounts(), 2)
    table.look_later()
    add_jobs(engine, ["acct_030", "acct_new"], priority=1)

    left = table.look_later()
    again_in_seconds = table.again_in_seconds
    left += table.look_from_the_beginning()

    assert again_in_seconds is not None
    assert again_in_seconds < 10
    assert set(left) >= {"acct_030", "acct_new"}


def test_what_has_waited_long_leaves_before_other_lanes_too(engine: Engine, table: Table) -> None:
    add_jobs(engine, accounts(), due_at=datetime.now(UTC) - timedelta(minutes=14), priority=4)
    add_jobs(engine, ["acct_last"], due_at=datetime.now(UTC) - timedelta(minutes=16), priority=4)

    assert table.look_later()[0] == "acct_last"


def test_jobs_that_are_due_later_keep_no_other_lane_waiting(engine: Engine, table: Table) -> None:
    add_jobs(engine, accounts(), due_at=datetime.now(UTC) + timedelta(days=1), priority=1)
    add_jobs(engine, ["acct_last"], priority=4)

    left = table.look_later()
    table.look_from_the_beginning()

    assert left == ["acct_last"]
    assert table.again_in_seconds is None


def test_lanes_that_may_send_nothing_yet_keep_no_other_lane_waiting(engine: Engine, table: Table) -> None:
    add_jobs(engine, accounts(20), priority=1)
    add_jobs(engine, [*accounts()[20:], "acct_last"], priority=4)
    with writing(engine) as transaction:
        empty = {"credential": "default", "kind": "customer.create", "tokens": -1000, "rate": 1, "refilled_at": now()}
        for name in accounts(20):
            transaction.change(insert(lanes).values(empty | {"stripe_account": name}))

    left: list[str] = []
    pauses = []
    while not left:
        left = table.look_later()
        pauses.append(table.again_in_seconds)

    assert not set(left) & set(accounts(20))
    assert len(pauses) < 4
    assert set(pauses[:-1]) <= {0, SHORTEST_PAUSE_SECONDS}


def test_a_pause_of_the_endpoint_holds_for_every_lane_and_no_other_endpoint(engine: Engine, table: Table) -> None:
    add_jobs(engine, accounts(), priority=1)
    add_fetch(engine, stripe_account="acct_last", priority=4)
    with writing(engine) as transaction:
        transaction.change(insert(lanes).values(credential="default", kind="customer.create", rate=25, paused_at=now()))

    left = table.look_later()
    table.look_from_the_beginning()

    assert left == ["acct_last"]
    assert table.again_in_seconds is None


def test_a_lane_whose_jobs_have_gone_keeps_no_other_waiting(engine: Engine, table: Table) -> None:
    add_jobs(engine, accounts(), priority=1)
    add_jobs(engine, ["acct_last"], priority=4)
    first = table.look_later()
    with writing(engine) as transaction:
        gone = update(jobs).where(jobs.c.priority == 1, jobs.c.state == State.QUEUED)
        transaction.change(gone.values(state=State.CANCELLED, finished_at=now()))

    looks = 0
    while "acct_last" not in table.look_later():
        looks += 1
        assert table.again_in_seconds in {0, SHORTEST_PAUSE_SECONDS}

    assert first
    assert looks < MANY // 4


def test_the_heads_of_lanes_are_what_is_due_first_of_each_priority(engine: Engine) -> None:
    present = datetime(2026, 11, 5, tzinfo=UTC)
    create, fetch = "customer.create", "customer.fetch"
    for minutes in (3, 1, 2):
        add_job(engine, due_at=present + timedelta(minutes=minutes))
        add_job(engine, due_at=present - timedelta(minutes=minutes), priority=4)
        add_fetch(engine, due_at=present + timedelta(minutes=minutes), priority=1)
    add_job(engine, due_at=present, stripe_account="acct_1")
    add_job(engine, due_at=present, state=State.RETRYING, reconciling=True)
    add_job(engine, state=State.CANCELLED, credential="eu")

    with reading(engine) as transaction:
        heads = heads_of_lanes(transaction)
        found = lanes_with_work(transaction)

    assert heads == [
        Head(Lane("default", "", False, create), 2, present + timedelta(minutes=1)),
        Head(Lane("default", "", False, create), 4, present - timedelta(minutes=3)),
        Head(Lane("default", "", False, fetch), 1, present + timedelta(minutes=1)),
        Head(Lane("default", "", True, create), 2, present),
        Head(Lane("default", "acct_1", False, create), 2, present),
    ]
    assert found == list(dict.fromkeys(head.lane for head in heads))
