"""Which jobs leave the table, when and in what order; what is published is a list."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, delete, insert, select, update

from customer_jobs import CustomerJobs, lifecycle
from customer_jobs.database import reading, writing
from customer_jobs.lanes import LONGEST_LEASE_SECONDS
from customer_jobs.limits import pause, resume
from customer_jobs.schema import credentials, jobs, lanes, leases, workers
from customer_jobs.sql import now
from customer_jobs.vocabulary import Priority, State
from tests.builders import (
    KEY,
    add_fetch,
    add_job,
    add_worker,
    age,
    as_read,
    change,
    claimed,
    dispatched,
    events_of,
    job_row,
    later,
    lead,
    rows,
    settings_for,
)
from worker.dispatcher.dispatch import SPARE_JOBS, Dispatch, spare_jobs
from worker.dispatcher.limits import SHARE
from worker.gateway import fingerprint
from worker.local_copy import answer_from_copy

PLENTY = 200  #: Threads, so that only what a test is about holds jobs back.
SLOW = 0.01  #: Calls per second: however slow the machine is, no token comes between two looks.
MOMENT = datetime(2026, 11, 5, tzinfo=UTC)


class Table:
    """A dispatcher that leads and notes what it publishes."""

    def __init__(self, engine: Engine, *, slots: int = PLENTY, **settings: Any) -> None:
        self.engine = engine
        self.published: list[str] = []
        self.kinds: list[str] = []
        if slots:
            add_worker(engine, slots)
        if "rate_limit_account" not in settings:
            _fill_account(engine)
        self.dispatch = Dispatch(engine, settings_for(**settings), self._publish, holder=lead(engine))

    def look(self) -> list[str]:
        """The ids that one look publishes."""
        before = len(self.published)
        self.dispatch.run_once()
        return self.published[before:]

    def look_until_empty(self) -> list[str]:
        """The ids that leave, with time for a full bucket between two looks; each is done when it has left."""
        left: list[str] = []
        for _ in range(100):
            age(self.engine, 10, lanes)
            if not (ids := self.look()):
                return left
            left += ids
            for job_id in ids:
                end(self.engine, job_id)
        raise AssertionError("jobs still leave after 100 looks")

    def _publish(self, jobs: Sequence[tuple[str, str]]) -> None:
        self.kinds += [kind for kind, _ in jobs]
        self.published += [job_id for _, job_id in jobs]


def _fill_account(engine: Engine) -> None:
    """The bucket of the whole account is full and holds nothing back; otherwise it would begin with one token."""
    with writing(engine) as transaction:
        transaction.change(delete(lanes).where(lanes.c.kind == "*"))
        for credential in ("default", "eu"):
            full = {"credential": credential, "kind": "*", "tokens": 500, "rate": 10_000, "refilled_at": now()}
            transaction.change(insert(lanes).values(full))


def end(engine: Engine, job_id: str) -> None:
    """The job is done and holds nothing back any more."""
    change(engine, job_id, state=State.CANCELLED, finished_at=now(), lease_token=None, lease_expires_at=None)


def test_a_due_job_is_handed_over_by_its_id(engine: Engine) -> None:
    job_id = add_job(engine)
    table = Table(engine)

    look = table.dispatch.run_once()

    row = job_row(engine, job_id)
    assert (look.dispatched, look.leads) == (1, True)
    assert (table.kinds, table.published) == (["customer.create"], [job_id])
    assert (row["state"], row["attempt"]) == (State.DISPATCHED, 0)
    assert row["lease_token"] is not None
    assert timedelta(seconds=3) < row["lease_expires_at"] - datetime.now(UTC) < timedelta(seconds=6)
    assert table.look() == []


@pytest.mark.parametrize("state", [State.DISPATCHED, State.RUNNING, State.SUCCEEDED, State.FAILED, State.CANCELLED])
def test_only_what_waits_leaves(engine: Engine, state: State) -> None:
    add_job(engine, state=state)

    assert Table(engine).look() == []


def test_a_job_leaves_when_it_is_due_and_not_before(engine: Engine) -> None:
    waiting = add_job(engine, due_at=now(60))
    retrying = add_job(engine, state=State.RETRYING, due_at=now(60), attempt=3)
    table = Table(engine)

    before = table.look()
    later(engine, 61)

    assert before == []
    assert set(table.look_until_empty()) == {waiting, retrying}


def test_a_job_that_is_not_due_does_not_keep_the_dispatcher_busy(engine: Engine) -> None:
    add_job(engine, due_at=now(60))
    table = Table(engine)
    table.look()
    age(engine, 10, lanes)

    look = table.dispatch.run_once()

    assert look.again_in_seconds is None or look.again_in_seconds > 0.01


def test_the_more_urgent_leave_first_and_then_the_longer_due(engine: Engine) -> None:
    ids = {
        (priority, seconds): add_job(engine, priority=priority.value, due_at=now(-seconds))
        for seconds in (10, 30, 20)
        for priority in reversed(Priority)
    }

    left = Table(engine).look_until_empty()

    assert left == [ids[priority, seconds] for priority in Priority for seconds in (30, 20, 10)]


def test_a_job_due_for_a_quarter_of_an_hour_counts_one_priority_higher(engine: Engine) -> None:
    aged_bulk = add_job(engine, priority=4, due_at=now(-16 * 60))
    young_low = add_job(engine, priority=3, due_at=now(-60))
    young_default = add_job(engine, priority=2, due_at=now(-60))
    aged_default = add_job(engine, priority=2, due_at=now(-16 * 60))
    aged_urgent = add_job(engine, priority=1, due_at=now(-17 * 60))
    young_urgent = add_job(engine, priority=1, due_at=now(-14 * 60))

    left = Table(engine).look_until_empty()

    assert left == [aged_urgent, aged_default, young_urgent, young_default, aged_bulk, young_low]


def test_waiting_ages_a_job(engine: Engine) -> None:
    bulk = add_job(engine, priority=4)
    later(engine, 14 * 60)
    low = add_job(engine, priority=3)
    table = Table(engine, slots=1, max_in_flight=1)

    later(engine, 2 * 60, bulk)

    assert table.look() == [bulk]
    assert job_row(engine, low)["state"] == State.QUEUED


def test_lanes_take_turns(engine: Engine) -> None:
    accounts = ("acct_a", "acct_b", "acct_c")
    lane_of = {add_job(engine, stripe_account=account): account for account in accounts for _ in range(8)}

    left = Table(engine, max_in_flight=1).look_until_empty()

    first = Counter(lane_of[job_id] for job_id in left[:12])
    assert len(left) == 24
    assert all(3 <= first[account] <= 5 for account in accounts)


@pytest.mark.parametrize("priority", Priority)
def test_the_backlog_of_one_credential_does_not_delay_the_single_job_of_another(
    engine: Engine, priority: Priority
) -> None:
    many = [{"kind": "customer.create", "payload": {"body": {}}, "priority": priority}] * 300
    with writing(engine) as transaction:
        transaction.rows(insert(jobs).returning(jobs.c.id), many)
    single = add_job(engine, credential="eu", priority=priority)

    left = Table(engine, max_in_flight=2, stripe_api_keys={"default": KEY, "eu": KEY}).look()

    assert len(left) == 2
    assert single in left


def test_what_one_credential_may_not_send_yet_leaves_room_for_less_urgent_jobs_of_another(engine: Engine) -> None:
    urgent = {add_job(engine, priority=1) for _ in range(30)}
    bulk = add_job(engine, credential="eu", priority=4)
    table = Table(engine, rate_limit_create=1, stripe_api_keys={"default": KEY, "eu": KEY})

    left = table.look()

    assert left[-1] == bulk
    assert set(left[:-1]) < urgent
    assert len(left) == 2


def test_every_lane_gets_its_turn_whoever_began(engine: Engine) -> None:
    credentials_of = {
        add_job(engine, credential=name): name for name in ("default", "eu", "shop_1", "shop_2") for _ in range(6)
    }
    names = dict.fromkeys(credentials_of.values(), KEY)
    table = Table(engine, max_in_flight=1, rate_limit_account=10_000, stripe_api_keys=names)

    left = table.look_until_empty()

    for first in range(0, 24, 4):
        assert len({credentials_of[job_id] for job_id in left[first : first + 4]}) >= 3


def test_a_lane_that_is_full_of_bulk_keeps_nobody_waiting(engine: Engine) -> None:
    for _ in range(30):
        add_job(engine, priority=4)
    fetch = add_fetch(engine, priority=4)
    urgent = add_job(engine, priority=1)

    left = Table(engine, rate_limit_create=25).look()

    assert left[0] == urgent
    assert fetch in left


def test_only_as_many_leave_as_threads_are_free(engine: Engine) -> None:
    for _ in range(2):
        claimed(engine)
    dispatched(engine)
    for _ in range(20):
        add_job(engine)
    table = Table(engine, slots=8)
    table.look()
    age(engine, 10, lanes)

    table.look()

    assert len(table.published) == 8 - 3
    assert table.look() == []


@pytest.mark.parametrize(("left", "spare"), [(0, 0), (19, 0), (25, 1), (79, 3), (200, SPARE_JOBS)])
def test_where_jobs_leave_fast_a_few_may_wait_for_a_thread(left: int, spare: int) -> None:
    present = datetime.now(UTC)
    older, lately = present - timedelta(seconds=2), present - timedelta(seconds=1.9)

    assert spare_jobs(deque([(older, 1000), (lately, left)]), present) == spare


@pytest.mark.parametrize("seen_seconds_ago", [11, -3600])  # The second before the database's clock was set back.
def test_the_threads_of_all_live_workers_count(engine: Engine, seen_seconds_ago: float) -> None:
    for _ in range(40):
        add_job(engine)
    table = Table(engine, slots=8)
    add_worker(engine, slots=4, name="w2")
    add_worker(engine, slots=100, name="silent")
    with writing(engine) as transaction:
        transaction.change(update(workers).where(workers.c.name == "silent").values(seen_at=now(-seen_seconds_ago)))

    for _ in range(3):
        table.look()
        age(engine, 10, lanes)

    assert len(table.published) == 8 + 4


def test_without_a_live_worker_nothing_leaves(engine: Engine) -> None:
    add_job(engine)

    assert Table(engine, slots=0).look() == []


def test_never_more_are_in_flight_than_the_setting_allows(engine: Engine) -> None:
    for _ in range(10):
        add_job(engine)
    claimed(engine)
    table = Table(engine, max_in_flight=4)

    for _ in range(3):
        table.look()
        age(engine, 10, lanes)

    assert len(table.published) == 3


def test_a_lease_that_ran_out_long_ago_holds_no_place(engine: Engine) -> None:
    for seconds in (1, 60, 60):
        add_job(engine, state=State.DISPATCHED, lease_expires_at=now(-seconds))
    waiting = {add_job(engine) for _ in range(3)}
    table = Table(engine, slots=2)
    table.look()
    age(engine, 10, lanes)

    table.look()

    assert len(waiting & set(table.published)) == 1


@pytest.mark.parametrize("state", [State.DISPATCHED, State.RUNNING])
def test_a_lease_beyond_any_of_ours_holds_no_place(engine: Engine, state: State) -> None:
    for _ in range(6):
        add_job(engine, state=state, lease_expires_at=now(LONGEST_LEASE_SECONDS + 10))
    waiting = add_job(engine)

    assert Table(engine, slots=1).look() == [waiting]


@pytest.mark.parametrize("database", ["postgresql"])
def test_a_job_that_somebody_holds_in_an_open_transaction_costs_no_token_and_keeps_nobody_waiting(
    engine: Engine,
) -> None:
    held = [add_job(engine, priority=1) for _ in range(3)]
    behind = add_job(engine, priority=4)
    table = Table(engine, rate_limit_create=1)

    with writing(engine) as transaction:
        transaction.rows(select(jobs.c.id).where(jobs.c.id.in_(held)).with_for_update())
        left = table.look()

    assert left == [behind]


def test_the_pause_of_an_endpoint_holds_for_connected_accounts_and_no_other_endpoint(engine: Engine) -> None:
    creates = [add_job(engine), add_job(engine, stripe_account="acct_1")]
    fetches = [add_fetch(engine), add_fetch(engine, stripe_account="acct_1")]
    with writing(engine) as transaction:
        transaction.change(insert(credentials).values(name="default", livemode=False, key_fingerprint=fingerprint(KEY)))
        pause(transaction, "default", endpoint="customer.create", reason="backfill")
    table = Table(engine)

    left = table.look_until_empty()

    assert sorted(left) == sorted(fetches)
    with writing(engine) as transaction:
        assert resume(transaction, "default")
    assert sorted(table.look_until_empty()) == sorted(creates)


def test_tokens_are_spent_and_written_down(engine: Engine) -> None:
    for _ in range(10):
        add_job(engine)
    table = Table(engine, rate_limit_create=SLOW)

    first, at_once = table.look(), table.look()
    (lane,) = rows(engine, lanes, kind="customer.create")
    age(engine, 1.1 / SLOW, lanes)
    after_some_time = table.look()
    age(engine, 60 / SLOW, lanes)
    after_a_long_time = table.look()

    assert (len(first), len(at_once), len(after_some_time), len(after_a_long_time)) == (1, 0, 1, 2)
    assert 0 <= lane["tokens"] < 1


def test_the_next_leader_goes_on_with_the_same_tokens(engine: Engine) -> None:
    for _ in range(10):
        add_job(engine)
    Table(engine, rate_limit_create=SLOW).look()
    with writing(engine) as transaction:
        transaction.change(update(leases).values(expires_at=now(-1)))
        transaction.change(workers.delete())

    assert Table(engine, rate_limit_create=SLOW).look() == []


def test_a_limit_says_when_the_next_job_may_leave(engine: Engine) -> None:
    for _ in range(3):
        add_job(engine)
    table = Table(engine, rate_limit_create=SLOW)
    table.look()

    look = table.dispatch.run_once()

    assert look.dispatched == 0
    assert look.again_in_seconds == pytest.approx(1 / (SLOW * SHARE), rel=0.1)


def test_each_endpoint_and_account_has_a_limit_of_its_own(engine: Engine) -> None:
    for _ in range(3):
        add_job(engine)
        add_job(engine, stripe_account="acct_1")
        add_fetch(engine)
    table = Table(engine, rate_limit_create=1, rate_limit_fetch=1)

    table.look()

    assert len(table.published) == 3
    assert {(row["stripe_account"], row["kind"]) for row in rows(engine, lanes)} >= {
        ("", "customer.create"),
        ("acct_1", "customer.create"),
        ("", "customer.fetch"),
    }


def test_a_credential_has_a_limit_over_all_its_endpoints(engine: Engine) -> None:
    for _ in range(3):
        add_job(engine)
        add_fetch(engine)
        add_job(engine, credential="eu")
    table = Table(engine, rate_limit_account=1, stripe_api_keys={"default": KEY, "eu": KEY})

    table.look()

    assert Counter(job_row(engine, job_id)["credential"] for job_id in table.published) == {"default": 1, "eu": 1}


def test_reconciling_has_a_lane_of_its_own(engine: Engine) -> None:
    for _ in range(3):
        add_job(engine)
    looking = add_job(engine, state=State.RETRYING, reconciling=True, priority=4)

    left = Table(engine, rate_limit_create=1).look()

    assert looking in left
    assert len(left) == 2


def test_who_does_not_lead_dispatches_nothing(engine: Engine) -> None:
    job_id = add_job(engine)
    table = Table(engine)
    other = Dispatch(engine, settings_for(), lambda *_: pytest.fail("published"), holder="another")

    look = other.run_once()

    assert (look.dispatched, look.leads) == (0, False)
    assert job_row(engine, job_id)["state"] == State.QUEUED
    assert table.look() == [job_id]


def take_over(engine: Engine) -> None:
    """Another dispatcher has taken the lead."""
    with writing(engine) as transaction:
        transaction.change(update(leases).values(holder="another", expires_at=now(10)))


def run_out(engine: Engine) -> None:
    """The leader was stopped for longer than its lease."""
    with writing(engine) as transaction:
        transaction.change(update(leases).values(expires_at=now(-0.1)))


@pytest.mark.parametrize("lose", [take_over, run_out])
def test_a_leader_that_has_lost_the_lead_before_it_looks_writes_nothing(
    engine: Engine, lose: Callable[[Engine], None]
) -> None:
    job_id = add_job(engine)
    add_job(engine, kind="customer.delete")
    table = Table(engine)
    lose(engine)
    before = rows(engine, lanes), job_row(engine, job_id)

    look = table.dispatch.run_once()

    assert not look.leads
    assert table.published == []
    assert (rows(engine, lanes), job_row(engine, job_id)) == before


def test_what_cannot_be_published_waits_again_and_uses_no_attempt(engine: Engine) -> None:
    ids = [add_job(engine, due_at=now(-10 + number)) for number in range(4)]
    table = Table(engine)
    table.look()
    for job_id in ids:
        change(engine, job_id, state=State.RETRYING, lease_token=None, lease_expires_at=None)
    age(engine, 10, lanes)
    published: list[str] = []

    def publish(jobs: Sequence[tuple[str, str]]) -> None:
        published.append(jobs[0][1])
        # Its message arrived, and a worker was fast.
        with writing(engine) as transaction:
            assert lifecycle.claim(transaction, as_read(transaction, published[0]), worker="w1", sending=None)
        raise ConnectionError("the broker is away")

    look = Dispatch(engine, settings_for(), publish, holder="holder").run_once()

    states = [(job_row(engine, job_id)["state"], job_row(engine, job_id)["attempt"]) for job_id in ids]
    assert published == ids[:1]
    assert (look.dispatched, look.again_in_seconds, look.broker_away) == (0, 1.0, True)
    assert states == [(State.RUNNING, 1)] + [(State.RETRYING, 0)] * 3
    age(engine, 10, lanes)
    assert set(table.look()) == set(ids[1:])


def test_a_job_of_an_unknown_kind_fails_and_the_others_go_on(engine: Engine) -> None:
    unknown = [add_job(engine, kind="customer.delete", customer_id=None) for _ in range(3)]
    known = add_job(engine)
    table = Table(engine)

    left = table.look()

    assert left == [known]
    for job_id in unknown:
        row = job_row(engine, job_id)
        assert (row["state"], row["attempt"], row["error"]["param"]) == (State.FAILED, 0, "kind")
        assert "known are customer.create, customer.fetch" in row["error"]["message"]
        assert len(events_of(engine, job_id)) == 1


def test_the_jobs_of_a_paused_key_wait(engine: Engine) -> None:
    waits = add_job(engine)
    goes = add_job(engine, credential="eu")
    with writing(engine) as transaction:
        values = {"name": "default", "livemode": False, "key_fingerprint": fingerprint(KEY), "paused_at": now()}
        transaction.change(insert(credentials).values(values))
    table = Table(engine, stripe_api_keys={"default": KEY, "eu": KEY})

    left = table.look_until_empty()

    assert left == [goes]
    assert job_row(engine, waits)["state"] == State.QUEUED


@pytest.mark.parametrize("kind", ["dispatch", "conflict", "link"])
def test_a_long_table_costs_no_more_than_a_short_one(engine: Engine, kind: str) -> None:
    if engine.dialect.name == "postgresql":
        pytest.skip("its plans are looked at where the indexes are")
    due = {"kind": "customer.create", "payload": {"body": {}}}
    many: list[dict[str, Any]] = [due | {"external_id": f"user-{number}"} for number in range(5_000)]
    with writing(engine) as transaction:
        transaction.rows(insert(jobs).returning(jobs.c.id), many)
    table = Table(engine)
    what: dict[str, Callable[[], object]] = {
        "dispatch": table.look,
        "conflict": lambda: CustomerJobs(engine).create_customer({}, external_id="user-4000"),
        "link": lambda: link(engine, many[4_000]),
    }

    thousands = thousands_of_steps(engine, what[kind])

    assert thousands < 20  # A pass over the whole table takes a hundred.


def link(engine: Engine, job: dict[str, Any]) -> object:
    """What the claim of a create with an external_id looks at."""
    with reading(engine) as transaction:
        row = {"credential": "default", "stripe_account": None, "first_sent_at": None, **job}
        return answer_from_copy(transaction, row, {}, livemode=False)


def thousands_of_steps(engine: Engine, run: Callable[[], object]) -> int:
    """How many thousands of its instructions SQLite executes."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    watch_sqlite(engine, count)
    run()
    watch_sqlite(engine, None)
    return steps


def watch_sqlite(engine: Engine, count: Callable[[], int] | None) -> None:
    with engine.connect() as connection:
        raw = connection.connection.driver_connection
        assert raw is not None
        raw.set_progress_handler(count, 1_000)
