"""What PostgreSQL and SQLite must answer alike: defaults, the column types, the clock, and the indexes they choose."""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import Engine, Executable, Select, event, func, insert, literal_column, select
from sqlalchemy.exc import DBAPIError, IntegrityError, StatementError

from customer_jobs.schema import events, is_in_flight, is_waiting, jobs
from customer_jobs.sql import Unreadable, now

MOMENT = datetime(2026, 11, 5, 12, 30, 15, 123456, tzinfo=UTC)
EMPTY_BODY = "INSERT INTO {jobs} (kind, payload) VALUES ('customer.create', '{{\"body\": {{}}}}')"


def plain(engine: Engine, statement: str) -> None:
    """Execute what somebody with nothing but SQL might write; {jobs} is the table's name."""
    with engine.begin() as connection:
        connection.exec_driver_sql(
            statement.format(jobs="jobs" if engine.dialect.name == "sqlite" else "customer_jobs.jobs")
        )


def insert_job(engine: Engine, **values: Any) -> None:
    with engine.begin() as connection:
        connection.execute(insert(jobs).values({"kind": "customer.create", "payload": {}, **values}))


def read(engine: Engine, statement: Executable) -> Any:
    with engine.connect() as connection:
        return connection.execute(statement).one()


def test_anybody_who_may_insert_is_a_producer(engine: Engine) -> None:
    before = read(engine, select(now()))[0]

    plain(engine, EMPTY_BODY)

    job = read(engine, select(jobs))
    after = read(engine, select(now()))[0]
    assert job.id == str(uuid.UUID(job.id))
    assert uuid.UUID(job.id).version == 4
    assert uuid.UUID(job.id).variant == uuid.RFC_4122
    assert before <= job.created_at <= after
    assert before <= job.due_at <= after
    assert (job.state, job.credential, job.priority, job.attempt, job.max_attempts) == ("queued", "default", 2, 0, 25)
    assert job.payload == {"body": {}}
    assert job.reconciling is False


def test_default_ids_differ_and_are_random_uuids(engine: Engine) -> None:
    for _ in range(50):
        plain(engine, EMPTY_BODY)

    with engine.connect() as connection:
        ids = connection.scalars(select(jobs.c.id)).all()

    assert len(set(ids)) == 50
    assert all(re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", id_) for id_ in ids)


@pytest.mark.parametrize(
    "values",
    [
        "'customer.create', '{{}}', 'sleeping', 2, NULL",
        "'customer.create', '{{}}', 'queued', 5, NULL",
        "'customer.create', '{{}}', 'queued', 2, ''",
        "'customer.create', '{{}}', 'succeeded', 2, NULL",
        "'customer.create', '{{}}', 'running', 2, NULL",
    ],
)
def test_a_row_that_contradicts_itself_is_refused(engine: Engine, values: str) -> None:
    with pytest.raises(IntegrityError):
        plain(engine, f"INSERT INTO {{jobs}} (kind, payload, state, priority, external_id) VALUES ({values})")


def test_the_same_external_id_is_taken_once_for_each_account(engine: Engine) -> None:
    insert_job(engine, external_id="user-1")
    insert_job(engine, external_id="user-1", stripe_account="acct_1")

    for account in (None, "acct_1"):
        with pytest.raises(IntegrityError):
            insert_job(engine, external_id="user-1", stripe_account=account)


@pytest.mark.parametrize(
    "value",
    [
        {"body": {"name": "Zoë 🎉", "metadata": {"b": "2", "a": "1"}}},
        [],
        0,
        1.5,
        "",
        "null",
        False,
        'it\'s 100% \\ "quoted" %s :name',
        {"big": 2**63, "line": "a\nb\u2028c"},
    ],
    ids=repr,
)
def test_json_comes_back_as_it_went_in(engine: Engine, value: Any) -> None:
    insert_job(engine, payload=value, context=value)

    job = read(engine, select(jobs.c.payload, jobs.c.context))

    assert job.payload == value
    assert type(job.payload) is type(value)
    assert job.context == value


def test_json_keeps_the_order_of_keys(engine: Engine) -> None:
    insert_job(engine, payload={"z": 1, "a": 2, "m": 3})

    assert list(read(engine, select(jobs.c.payload))[0]) == ["z", "a", "m"]


def test_none_is_null_in_a_json_column(engine: Engine) -> None:
    insert_job(engine, context=None)

    assert read(engine, select(jobs.c.context, jobs.c.context.is_(None))) == (None, True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_a_number_that_json_does_not_know_is_refused(engine: Engine, value: float) -> None:
    with pytest.raises((StatementError, ValueError)):
        insert_job(engine, payload={"amount": value})


def test_json_that_cannot_be_parsed_reads_as_unreadable(engine: Engine) -> None:
    if engine.dialect.name == "postgresql":
        with pytest.raises(DBAPIError):
            plain(engine, "INSERT INTO {jobs} (kind, payload) VALUES ('customer.create', 'no JSON')")
        return
    plain(engine, "INSERT INTO {jobs} (kind, payload) VALUES ('customer.create', 'no JSON')")
    plain(engine, "INSERT INTO {jobs} (kind, payload) VALUES ('customer.create', 12)")
    plain(engine, EMPTY_BODY)

    with engine.connect() as connection:
        payloads = connection.scalars(select(jobs.c.payload)).all()

    assert [type(payload) for payload in payloads] == [Unreadable, int, dict]


@pytest.mark.parametrize("depth", [500, 5_000, 100_000])
def test_deep_nesting_never_raises(engine: Engine, depth: int) -> None:
    nested = "[" * depth + "]" * depth
    try:
        plain(engine, f"INSERT INTO {{jobs}} (kind, payload) VALUES ('customer.create', '{nested}')")
    except DBAPIError:
        assert engine.dialect.name == "postgresql"  # It looks at what it stores, and has a stack, too.
        return

    payload = read(engine, select(jobs.c.payload))[0]

    assert isinstance(payload, list | Unreadable)


def test_json_is_read_from_a_returning_clause_too(engine: Engine) -> None:
    with engine.begin() as connection:
        row = connection.execute(
            insert(jobs)
            .values(kind="customer.create", payload={"body": {}})
            .returning(jobs.c.payload, jobs.c.id, jobs.c.created_at)
        ).one()

    assert row.payload == {"body": {}}
    assert isinstance(row.id, str)
    assert row.created_at.tzinfo is UTC


@pytest.mark.parametrize(
    "moment",
    [
        MOMENT,
        MOMENT.replace(microsecond=0),
        MOMENT.astimezone(timezone(timedelta(hours=-9, minutes=-30))),
        datetime(1, 1, 2, tzinfo=UTC),
        datetime(999, 12, 31, tzinfo=UTC),
        datetime(9999, 12, 30, 23, 59, 59, 999999, tzinfo=UTC),
    ],
    ids=str,
)
def test_a_time_comes_back_as_the_same_moment_in_utc(engine: Engine, moment: datetime) -> None:
    insert_job(engine, due_at=moment)

    found = read(engine, select(jobs.c.due_at))[0]

    assert found == moment
    assert found.tzinfo is UTC


def test_times_compare_as_moments_whatever_their_zone_and_fraction(engine: Engine) -> None:
    moments = [
        MOMENT.replace(microsecond=0),
        MOMENT.replace(microsecond=1).astimezone(timezone(timedelta(hours=14))),
        MOMENT.replace(microsecond=10).astimezone(timezone(timedelta(hours=-12))),
        MOMENT.replace(microsecond=999999),
        MOMENT + timedelta(seconds=1),
    ]
    for moment in reversed(moments):
        insert_job(engine, due_at=moment)

    with engine.connect() as connection:
        ordered = connection.scalars(select(jobs.c.due_at).order_by(jobs.c.due_at)).all()
        until = connection.scalar(select(func.count()).where(jobs.c.due_at <= moments[2]).select_from(jobs))

    assert list(ordered) == moments
    assert until == 3


def test_a_time_without_a_zone_is_refused(engine: Engine) -> None:
    with pytest.raises(StatementError, match="a time needs a zone"):
        insert_job(engine, due_at=datetime(2026, 11, 5))  # noqa: DTZ001 - what it is about


def test_the_databases_clock_is_ours_within_a_minute(engine: Engine) -> None:
    found = read(engine, select(now()))[0]

    assert abs(found - datetime.now(UTC)) < timedelta(minutes=1)


def test_the_clock_can_be_moved_by_seconds(engine: Engine) -> None:
    row = read(
        engine,
        select(
            now(),
            now(plus_seconds=1.5),
            now(plus_seconds=-90),
            now(plus_seconds=0.25),
            now(plus_seconds=86_400 * 365),
            now(plus_seconds=0.000001),
        ),
    )

    offsets = [(moment - row[0]).total_seconds() for moment in row[1:]]
    assert offsets == pytest.approx([1.5, -90, 0.25, 86_400 * 365, 0], abs=0.1)


def test_the_clock_can_be_moved_by_a_column(engine: Engine) -> None:
    insert_job(engine, max_attempts=60)

    row = read(engine, select(now(), now(plus_seconds=jobs.c.max_attempts)).select_from(jobs))

    assert (row[1] - row[0]).total_seconds() == pytest.approx(60, abs=0.1)


def test_the_clock_goes_on_within_a_transaction(engine: Engine) -> None:
    with engine.connect() as connection:
        first = connection.scalar(select(now()))
        for _ in range(100_000):
            latest = connection.scalar(select(now()))
            if latest != first:
                break

    assert first is not None
    assert latest is not None
    assert latest > first


def test_the_clock_is_stored_and_compared_like_a_bound_time(engine: Engine) -> None:
    insert_job(engine, due_at=now(plus_seconds=-60))
    insert_job(engine, due_at=now(plus_seconds=60))
    insert_job(engine, due_at=datetime.now(UTC) - timedelta(seconds=120))

    with engine.connect() as connection:
        due = connection.scalar(select(func.count()).select_from(jobs).where(jobs.c.due_at <= now()))

    assert due == 2


@pytest.mark.parametrize(
    "spelling",
    ["{}", "{{{}}}", "urn:uuid:{}"],
)
def test_an_id_is_found_however_it_is_spelled(engine: Engine, spelling: str) -> None:
    id_ = "0b5e3f0c-6c3f-4d57-9a55-0f4d0c1f2a3b"
    insert_job(engine, id=id_.upper())

    found = read(engine, select(jobs.c.id).where(jobs.c.id == spelling.format(id_)))[0]

    assert found == id_
    assert read(engine, select(jobs.c.id).where(jobs.c.id == uuid.UUID(id_)))[0] == id_
    assert read(engine, select(jobs.c.id).where(jobs.c.id.in_([id_])))[0] == id_


def test_what_is_no_id_is_refused_before_the_database_sees_it(engine: Engine) -> None:
    with pytest.raises(StatementError, match="badly formed"):
        read(engine, select(jobs).where(jobs.c.id == "cus_123"))


def test_events_are_numbered_in_order_and_no_number_is_used_twice(engine: Engine) -> None:
    event = {"type": "customer_jobs.customer.create.succeeded", "data": {}}
    with engine.begin() as connection:
        first = connection.scalar(insert(events).values(event | {"subject": "a"}).returning(events.c.seq))
        second = connection.scalar(insert(events).values(event | {"subject": "b"}).returning(events.c.seq))
        connection.execute(events.delete())
        third = connection.scalar(insert(events).values(event | {"subject": "c"}).returning(events.c.seq))

    assert first is not None
    assert (second, third) == (first + 1, first + 2)


@pytest.fixture
def many_finished_jobs(engine: Engine) -> None:
    """Enough of them, with statistics, that reading the whole table is no match for an index."""
    finished = {"kind": "customer.create", "payload": {}, "state": "cancelled"}
    with engine.begin() as connection:
        connection.execute(
            insert(jobs), [finished | {"finished_at": MOMENT + timedelta(seconds=number)} for number in range(5_000)]
        )
        connection.execute(insert(jobs).values(kind="customer.create", payload={}))
    plain(engine, "ANALYZE {jobs}")


def plan(engine: Engine, statement: Select[Any]) -> str:
    """How the database finds the rows of this statement, parameters sent as they really are."""
    sent: list[tuple[str, Any]] = []
    explain = "EXPLAIN QUERY PLAN " if engine.dialect.name == "sqlite" else "EXPLAIN "
    with engine.connect() as connection:
        event.listen(connection, "before_cursor_execute", lambda *sending: sent.append((sending[2], sending[3])))
        connection.execute(statement).all()
        text, parameters = sent[-1]  # SQLite's BEGIN comes first.
        return "\n".join(str(row[-1]) for row in connection.exec_driver_sql(explain + text, parameters))


@pytest.mark.usefixtures("many_finished_jobs")
def test_the_next_job_of_a_lane_comes_from_its_index(engine: Engine) -> None:
    lane = (
        jobs.c.credential == "default",
        func.coalesce(jobs.c.stripe_account, literal_column("''")) == "",
        jobs.c.reconciling.is_(False),
        jobs.c.kind == "customer.create",
    )
    of_one_priority = select(jobs.c.id).where(is_waiting(), *lane, jobs.c.priority == 2, jobs.c.due_at <= now())

    assert "jobs_dispatch" in plan(engine, of_one_priority.order_by(jobs.c.due_at).limit(10))


@pytest.mark.usefixtures("many_finished_jobs")
def test_the_lanes_with_work_come_from_their_index(engine: Engine) -> None:
    lane = (jobs.c.credential, func.coalesce(jobs.c.stripe_account, literal_column("''")), jobs.c.kind)

    assert "jobs_dispatch" in plan(engine, select(*lane).where(is_waiting()).distinct())


@pytest.mark.usefixtures("many_finished_jobs")
def test_jobs_in_flight_come_from_their_index(engine: Engine) -> None:
    count = select(func.count()).select_from(jobs).where(is_in_flight())
    overdue = select(jobs.c.id).where(is_in_flight(), jobs.c.lease_expires_at < now())

    assert "jobs_in_flight" in plan(engine, count)
    assert "jobs_in_flight" in plan(engine, overdue)


@pytest.mark.usefixtures("many_finished_jobs")
def test_a_span_of_time_up_to_now_is_looked_up_and_not_filtered(engine: Engine) -> None:
    old = (jobs.c.finished_at < now(-86_400), jobs.c.body_digest.is_(None))
    oldest = select(jobs.c.id).where(*old).order_by(jobs.c.finished_at).limit(100)

    found = plan(engine, oldest)

    looked_up = {"sqlite": r"jobs_finished \(finished_at>\? AND finished_at<\?|jobs_finished \(finished_at<\?"}
    assert re.search(looked_up.get(engine.dialect.name, r"jobs_finished(.|\n)*Index Cond: \(finished_at <"), found), (
        found
    )
