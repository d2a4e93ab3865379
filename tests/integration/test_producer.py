"""Enqueueing, showing, retrying and cancelling jobs, on either database."""

from __future__ import annotations

import multiprocessing
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, select, text
from sqlalchemy.orm import Session

from customer_jobs import ConflictError, CustomerJobs, InvalidJob, NotRetryable, UnknownJob
from customer_jobs import lifecycle as change_of_state
from customer_jobs.database import open_engine, writing
from customer_jobs.errors import InvalidSetting, Unavailable
from customer_jobs.job import Job
from customer_jobs.migrate import migrate
from customer_jobs.schema import customers as customers_table
from customer_jobs.schema import jobs as jobs_table
from customer_jobs.vocabulary import State, Verdict
from tests.builders import CUSTOMER_ID, EMAIL, add_job, change, claimed, entry, job_row, raw, rows, success
from tests.proxy import Proxy

BODY = {"email": EMAIL, "name": "Jenny Rosen", "metadata": {"plan": "pro"}}
SAME_BODY = {"metadata": {"plan": "pro"}, "name": "Jenny Rosen", "email": f" {EMAIL} "}
OTHER_BODY = {"email": "other@example.com"}
NO_JOB = "0b1c9f1e-5b0c-4b55-9d2f-0c8b1b0f6a1d"
START = multiprocessing.get_context("spawn")  # Threads of the test must not be forked.


@pytest.fixture
def jobs(engine: Engine) -> CustomerJobs:
    return CustomerJobs(engine)


@pytest.fixture
def app_engine(database_url: str) -> Iterator[Engine]:
    """The app's own engine, of which we know nothing."""
    engine = create_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture(params=[Session, Connection], ids=["Session", "Connection"])
def open_session(request: pytest.FixtureRequest, app_engine: Engine) -> Callable[[], Any]:
    """Opens what an app passes as `session=`."""
    return lambda: Session(app_engine) if request.param is Session else app_engine.connect()


def count(engine: Engine) -> int:
    return len(rows(engine, jobs_table))


def fail_certainly(engine: Engine, job_id: str) -> None:
    """The job failed, and Stripe certainly made no customer."""
    held = claimed(engine, job_id)
    with writing(engine) as transaction:
        assert change_of_state.fail(transaction, held, entry(Verdict.FAILED, http_status=400), error={"type": "x"})


def fail_ambiguously(engine: Engine, job_id: str) -> None:
    """The job failed, and Stripe may have made the customer."""
    held = claimed(engine, job_id)
    with writing(engine) as transaction:
        unknown = entry(Verdict.FAILED, ambiguous=True)
        assert change_of_state.fail(transaction, held, unknown, error={"type": "x", "code": "outcome_unknown"})


def succeed(engine: Engine, job_id: str, **customer: Any) -> None:
    held = claimed(engine, job_id)
    with writing(engine) as transaction:
        assert change_of_state.succeed(transaction, held, success(**customer), entry())


def test_a_create_waits_with_what_it_was_given(engine: Engine, jobs: CustomerJobs) -> None:
    due_at = datetime(2030, 1, 2, 3, 4, 5, 678900, tzinfo=UTC)

    job = jobs.create_customer(
        BODY,
        external_id="user-1",
        credential="eu",
        stripe_account="acct_1",
        priority="urgent",
        due_at=due_at,
        context={"order": [7]},
    )

    row = job_row(engine, job.id)
    assert row["payload"] == {"body": BODY}
    assert (job.kind, job.state, job.attempt, job.max_attempts) == ("customer.create", State.QUEUED, 0, 25)
    assert (job.credential, job.stripe_account, job.external_id) == ("eu", "acct_1", "user-1")
    assert (job.priority, job.due_at, job.context) == (1, due_at, {"order": [7]})
    assert (job.result, job.error, job.outcome, job.attempts, job.final) == (None, None, None, (), False)
    assert jobs.get(job.id) == job


def test_what_is_left_out_has_the_tables_defaults(engine: Engine, jobs: CustomerJobs) -> None:
    job = jobs.create_customer({})

    assert (job.credential, job.stripe_account, job.priority) == ("default", None, 2)
    assert (job.external_id, job.context, job.retry_of) == (None, None, None)
    assert abs(job.due_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert job_row(engine, job.id)["payload"] == {"body": {}}


def test_a_fetch_waits_with_what_it_was_given(engine: Engine, jobs: CustomerJobs) -> None:
    job = jobs.fetch_customer(CUSTOMER_ID, expand=["tax", "tax"], max_age_seconds=60, external_id="user-1", context=7)

    payload = {"customer_id": CUSTOMER_ID, "expand": ["tax"], "max_age_seconds": 60}
    assert job_row(engine, job.id)["payload"] == payload
    assert (job.kind, job.customer_id, job.external_id, job.context) == ("customer.fetch", CUSTOMER_ID, "user-1", 7)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"body": []}, "body"),
        ({"body": {"id": "cus_1"}}, "id"),
        ({"external_id": ""}, "external_id"),
        ({"credential": "EU"}, "credential"),
        ({"stripe_account": "cus_1"}, "stripe_account"),
        ({"priority": 5}, "priority"),
        ({"due_at": datetime(2026, 1, 1)}, "due_at"),  # noqa: DTZ001 - what it is about
        ({"context": object()}, "context"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_refused_before_anything_is_written(
    engine: Engine, jobs: CustomerJobs, arguments: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidJob) as caught:
        jobs.create_customer(**{"body": BODY} | arguments)

    assert caught.value.field == field
    assert count(engine) == 0


def test_a_bad_fetch_is_refused_before_anything_is_written(engine: Engine, jobs: CustomerJobs) -> None:
    with pytest.raises(InvalidJob):
        jobs.fetch_customer("")

    assert count(engine) == 0


def test_the_number_of_attempts_is_a_setting(jobs: CustomerJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_ATTEMPTS", "3")
    job = jobs.create_customer(BODY)
    monkeypatch.setenv("MAX_ATTEMPTS", "none")

    assert job.max_attempts == 3
    with pytest.raises(InvalidSetting, match="MAX_ATTEMPTS must be"):
        jobs.create_customer(BODY)


# external_id


def test_the_same_external_id_and_body_is_the_same_job(engine: Engine, jobs: CustomerJobs) -> None:
    first = jobs.create_customer(BODY, external_id="user-1")

    again = jobs.create_customer(SAME_BODY, external_id="user-1", priority="urgent", context=7)

    assert again == first
    assert count(engine) == 1


def test_the_same_external_id_with_another_body_is_a_conflict(engine: Engine, jobs: CustomerJobs) -> None:
    first = jobs.create_customer(BODY, external_id="user-1")

    with pytest.raises(ConflictError, match=f"'user-1' already belongs to job {first.id}") as caught:
        jobs.create_customer(OTHER_BODY, external_id="user-1")

    assert caught.value.job == first
    assert count(engine) == 1


def test_an_external_id_is_one_for_each_credential_and_account(engine: Engine, jobs: CustomerJobs) -> None:
    for credential in ("default", "eu"):
        for account in (None, "acct_1"):
            jobs.create_customer(BODY, external_id="user-1", credential=credential, stripe_account=account)

    assert count(engine) == 4


def test_a_fetch_does_not_take_an_external_id_away(engine: Engine, jobs: CustomerJobs) -> None:
    jobs.fetch_customer(CUSTOMER_ID, external_id="user-1")

    created = jobs.create_customer(BODY, external_id="user-1")

    assert created.kind == "customer.create"
    assert count(engine) == 2


@pytest.mark.parametrize("end", [fail_ambiguously, succeed])
def test_an_id_stays_taken_while_its_customer_may_exist(
    engine: Engine, jobs: CustomerJobs, end: Callable[[Engine, str], None]
) -> None:
    first = jobs.create_customer(BODY, external_id="user-1")
    end(engine, first.id)

    again = jobs.create_customer(SAME_BODY, external_id="user-1")

    assert again.id == first.id
    assert again.final
    with pytest.raises(ConflictError):
        jobs.create_customer(OTHER_BODY, external_id="user-1")


def test_a_job_that_certainly_made_no_customer_releases_its_id(engine: Engine, jobs: CustomerJobs) -> None:
    first = jobs.create_customer(BODY, external_id="user-1")
    fail_certainly(engine, first.id)

    second = jobs.create_customer(OTHER_BODY, external_id="user-1")

    assert second.id != first.id


def test_a_cancelled_job_releases_its_id(jobs: CustomerJobs) -> None:
    first = jobs.create_customer(BODY, external_id="user-1")
    jobs.cancel(first.id)

    second = jobs.create_customer(OTHER_BODY, external_id="user-1")

    assert second.id != first.id


def test_an_emptied_row_still_knows_its_body(engine: Engine, jobs: CustomerJobs) -> None:
    from customer_jobs.payload import payload_digest

    first = jobs.create_customer(BODY, external_id="user-1")
    succeed(engine, first.id)
    digest = payload_digest(job_row(engine, first.id)["payload"])
    change(engine, first.id, payload={}, params=None, result=None, body_digest=digest)

    again = jobs.create_customer(SAME_BODY, external_id="user-1")

    assert again.id == first.id
    with pytest.raises(ConflictError):
        jobs.create_customer(OTHER_BODY, external_id="user-1")


def test_many_threads_with_one_external_id_make_one_job(engine: Engine, jobs: CustomerJobs) -> None:
    at_once = threading.Barrier(8)

    def enqueue(_: int) -> Job:
        at_once.wait()
        return jobs.create_customer(BODY, external_id="user-1")

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(enqueue, range(8)))

    assert len({job.id for job in made}) == 1
    assert count(engine) == 1


def test_threads_that_disagree_make_one_job_and_conflicts(engine: Engine, jobs: CustomerJobs) -> None:
    at_once = threading.Barrier(6)

    def enqueue(number: int) -> str:
        at_once.wait()
        try:
            return jobs.create_customer({"name": str(number)}, external_id="user-1").id
        except ConflictError as error:
            return f"conflict with {error.job.id}"

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(enqueue, range(6)))

    (row,) = rows(engine, jobs_table)
    assert sorted(answers) == sorted([row["id"], *[f"conflict with {row['id']}"] * 5])


def enqueue_elsewhere(url: str, at_once: Any, answers: Any) -> None:
    jobs = CustomerJobs(url)
    jobs.get(NO_JOB)
    at_once.wait(30)
    answers.put([jobs.create_customer(BODY, external_id=f"user-{number}").id for number in range(20)])


def test_two_processes_with_the_same_external_ids_make_one_job_each(engine: Engine, database_url: str) -> None:
    answers, at_once = START.Queue(), START.Barrier(2)
    processes = [START.Process(target=enqueue_elsewhere, args=(database_url, at_once, answers)) for _ in range(2)]

    for process in processes:
        process.start()
    made = [answers.get(timeout=30) for _ in processes]
    for process in processes:
        process.join()

    assert made[0] == made[1]
    assert count(engine) == 20


# session=


def test_a_rollback_takes_the_job_along(engine: Engine, open_session: Callable[[], Any]) -> None:
    jobs = CustomerJobs(engine)

    with open_session() as session:
        created = jobs.create_customer(BODY, external_id="user-1", session=session)
        fetched = jobs.fetch_customer(CUSTOMER_ID, session=session)
        many = jobs.create_customers([{"body": BODY}], session=session)
        for job in (created, fetched, *many):
            assert jobs.get(job.id, session=session) == job
        session.rollback()

    assert count(engine) == 0


@pytest.mark.parametrize("first", ["create_customers", "retry"])
def test_a_rollback_takes_along_what_a_savepoint_began(
    engine: Engine, open_session: Callable[[], Any], first: str
) -> None:
    jobs = CustomerJobs(engine)
    failed = add_job(engine, state=State.FAILED)

    with open_session() as session:
        if first == "retry":
            jobs.retry(failed, session=session)
        else:
            jobs.create_customers([{"body": BODY}], session=session)
        session.rollback()

    assert [row["id"] for row in rows(engine, jobs_table)] == [failed]


def test_a_commit_of_the_app_commits_the_job_and_nothing_before(
    engine: Engine, open_session: Callable[[], Any]
) -> None:
    jobs = CustomerJobs(engine)

    with open_session() as session:
        job = jobs.create_customer(BODY, session=session)
        before = count(engine)
        session.commit()

    assert before == 0
    assert jobs.get(job.id) == job


def test_a_conflict_leaves_the_apps_transaction_usable(engine: Engine, open_session: Callable[[], Any]) -> None:
    jobs = CustomerJobs(engine)
    first = jobs.create_customer(BODY, external_id="user-1")

    with open_session() as session:
        before = jobs.create_customer(OTHER_BODY, session=session)
        with pytest.raises(ConflictError):
            jobs.create_customer(OTHER_BODY, external_id="user-1", session=session)
        with pytest.raises(ConflictError):
            jobs.create_customers([{"body": {}}, {"body": {}, "external_id": "user-1"}], session=session)
        after = jobs.create_customer(OTHER_BODY, session=session)
        session.commit()

    assert {row["id"] for row in rows(engine, jobs_table)} == {first.id, before.id, after.id}


def test_a_conflict_inside_a_savepoint_leaves_it_usable(engine: Engine, open_session: Callable[[], Any]) -> None:
    jobs = CustomerJobs(engine)
    first = jobs.create_customer(BODY, external_id="user-1")

    with open_session() as session:
        with session.begin_nested():
            with pytest.raises(ConflictError):
                jobs.create_customer(OTHER_BODY, external_id="user-1", session=session)
            kept = jobs.create_customer(OTHER_BODY, session=session)
        undone = session.begin_nested()
        jobs.create_customer(OTHER_BODY, session=session)
        undone.rollback()
        session.commit()

    assert {row["id"] for row in rows(engine, jobs_table)} == {first.id, kept.id}


def test_everything_goes_through_the_session(open_session: Callable[[], Any], database_url: str) -> None:
    nowhere = CustomerJobs("postgresql://nobody@127.0.0.1:1/nowhere" if "postgresql" in database_url else "sqlite://")

    with open_session() as session:
        job = nowhere.create_customer(BODY, external_id="user-1", session=session)
        nowhere.fetch_customer(CUSTOMER_ID, session=session)
        nowhere.create_customers([{"body": BODY}], session=session)
        found = nowhere.get(job.id, session=session)
        listed = nowhere.list(session=session)
        copy = nowhere.customer(external_id="user-1", session=session)
        cancelled = nowhere.cancel(job.id, session=session)
        session.rollback()

    nowhere.engine.dispose()
    assert found == job
    assert len(listed) == 3
    assert copy is None
    assert cancelled


def test_an_apps_connection_keeps_its_own_options(engine: Engine, app_engine: Engine) -> None:
    jobs = CustomerJobs(app_engine)

    with app_engine.connect() as connection:
        jobs.create_customer(BODY, session=connection)
        jobs.create_customers([{"body": BODY}], session=connection)
        jobs.list(session=connection)
        options = dict(connection.get_execution_options())
        connection.commit()
    jobs.create_customer(BODY)

    assert "schema_translate_map" not in options
    assert "schema_translate_map" not in app_engine.get_execution_options()
    assert "only_reads" not in app_engine.get_execution_options()
    assert count(engine) == 3


def test_an_app_that_maps_its_tenants_finds_our_tables_all_the_same(jobs: CustomerJobs) -> None:
    job = jobs.create_customer(BODY)
    tenants = jobs.engine.execution_options(schema_translate_map={"tenant": None})

    with Session(tenants) as session:
        found = jobs.get(job.id, session=session)

    assert found == job


def test_an_apps_own_tables_are_found_where_they_are(app_engine: Engine) -> None:
    jobs = CustomerJobs(app_engine)
    theirs = "app_users"

    with app_engine.begin() as connection:
        connection.execute(text(f"CREATE TABLE {theirs} (id integer)"))
        connection.execute(text(f"INSERT INTO {theirs} VALUES (1)"))
        jobs.create_customer(BODY, session=connection)
        found = connection.execute(text(f"SELECT id FROM {theirs}")).scalar_one()

    assert found == 1


def test_an_apps_plain_engine_is_enough_for_many_threads(engine: Engine, app_engine: Engine) -> None:
    jobs = CustomerJobs(app_engine)

    def enqueue(number: int) -> None:
        jobs.create_customer({"name": str(number)}, external_id=f"user-{number % 5}")
        jobs.fetch_customer(f"cus_{number % 5}")

    with ThreadPoolExecutor(5) as pool:
        for _ in range(4):
            list(pool.map(enqueue, range(5)))

    assert len(rows(engine, jobs_table, kind="customer.create")) == 5
    assert len(rows(engine, jobs_table, kind="customer.fetch")) == 5


def test_what_is_no_session_is_refused(jobs: CustomerJobs) -> None:
    with pytest.raises(TypeError, match="run_sync"):
        jobs.create_customer(BODY, session=object())  # type: ignore[arg-type]


def test_the_schema_may_have_another_name(empty_postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_SCHEMA", "shop_jobs")
    jobs = CustomerJobs(empty_postgres_url)
    migrate(jobs.engine)

    job = jobs.create_customer(BODY, external_id="user-1")
    app_engine = create_engine(empty_postgres_url)
    with app_engine.connect() as connection:
        by_connection = jobs.get(job.id, session=connection)
        by_sql = connection.execute(text("SELECT id FROM shop_jobs.jobs")).scalar_one()
    monkeypatch.delenv("DATABASE_SCHEMA")
    by_argument = CustomerJobs(empty_postgres_url, schema="shop_jobs")

    assert by_connection == job
    assert str(by_sql) == job.id
    assert by_argument.get(job.id) == job
    for each in (app_engine, jobs.engine, by_argument.engine):
        each.dispose()


def test_a_database_out_of_reach_is_said_in_one_line(postgres_database_url: str) -> None:
    with Proxy.before(postgres_database_url) as proxy:
        jobs = CustomerJobs(proxy.through(postgres_database_url))
        jobs.create_customer(BODY)
        proxy.refuse()
        proxy.reset()

        with pytest.raises(Unavailable) as caught:
            jobs.create_customer(BODY)

        proxy.accept()
        again = jobs.create_customer(BODY)
        jobs.engine.dispose()

    assert "\n" not in str(caught.value)
    assert again.state == State.QUEUED


# equal waiting fetches


def test_equal_waiting_fetches_are_one_job(engine: Engine, jobs: CustomerJobs) -> None:
    first = jobs.fetch_customer(CUSTOMER_ID, expand=["tax"], context={"a": 1, "b": 2})

    again = jobs.fetch_customer(CUSTOMER_ID, expand=["tax"], context={"b": 2, "a": 1})

    assert again == first
    assert count(engine) == 1


@pytest.mark.parametrize(
    "different",
    [
        {"expand": ["tax"]},
        {"context": {"a": 2}},
        {"context": {"a": True}},
        {"context": None},
        {"credential": "eu"},
        {"stripe_account": "acct_1"},
        {"max_age_seconds": 60},
        {"external_id": "user-1"},
    ],
    ids=str,
)
def test_fetches_that_differ_are_two_jobs(engine: Engine, jobs: CustomerJobs, different: dict[str, Any]) -> None:
    jobs.fetch_customer(CUSTOMER_ID, context={"a": 1})

    jobs.fetch_customer(CUSTOMER_ID, **{"context": {"a": 1}} | different)

    assert count(engine) == 2


def test_the_more_urgent_priority_and_the_earlier_time_win(jobs: CustomerJobs) -> None:
    soon, late = (datetime.now(UTC).replace(microsecond=0) + timedelta(hours=hours) for hours in (1, 2))
    first = jobs.fetch_customer(CUSTOMER_ID, priority="low", due_at=late)

    more_urgent = jobs.fetch_customer(CUSTOMER_ID, priority="urgent", due_at=late)
    earlier = jobs.fetch_customer(CUSTOMER_ID, priority="bulk", due_at=soon)
    now = jobs.fetch_customer(CUSTOMER_ID, priority="bulk")
    later = jobs.fetch_customer(CUSTOMER_ID, priority="bulk", due_at=late)

    assert {job.id for job in (more_urgent, earlier, now, later)} == {first.id}
    assert (first.priority, first.due_at) == (3, late)
    assert (more_urgent.priority, more_urgent.due_at) == (1, late)
    assert (earlier.priority, earlier.due_at) == (1, soon)
    assert now.due_at < soon
    assert (later.priority, later.due_at) == (1, now.due_at)


@pytest.mark.parametrize("state", [State.DISPATCHED, State.RUNNING, State.RETRYING, State.SUCCEEDED])
def test_a_fetch_that_waits_no_more_answers_nobody_else(engine: Engine, jobs: CustomerJobs, state: State) -> None:
    first = add_job(engine, kind="customer.fetch", state=state)

    again = jobs.fetch_customer(CUSTOMER_ID)

    assert again.id != first


# create_customers


def test_two_thousand_creates_come_back_in_their_order(engine: Engine, jobs: CustomerJobs) -> None:
    existing = jobs.create_customer({"name": "7"}, external_id="user-7")
    due_at = datetime(2030, 1, 1, tzinfo=UTC)
    batch: list[Mapping[str, Any]] = [
        {"body": {"name": str(number)}, "external_id": f"user-{number}", "priority": "bulk"} for number in range(1_990)
    ]
    batch += [{"body": {"name": "0"}, "external_id": "user-0"}, {"body": {"name": "no id"}, "due_at": due_at}] * 5

    made = jobs.create_customers(batch)

    assert len(made) == 2_000
    assert [job.external_id for job in made] == [row.get("external_id") for row in batch]
    assert made[7] == existing
    assert {job.id for job in made[1_990::2]} == {made[0].id}
    assert all(job.due_at == due_at for job in made[1_991::2])
    assert count(engine) == 1_990 + 5


def test_a_conflict_in_the_middle_writes_nothing(engine: Engine, jobs: CustomerJobs) -> None:
    existing = jobs.create_customer(OTHER_BODY, external_id="user-1000")

    with pytest.raises(ConflictError) as caught:
        jobs.create_customers({"body": BODY, "external_id": f"user-{number}"} for number in range(2_000))

    assert caught.value.job == existing
    assert count(engine) == 1


def test_rows_that_contradict_each_other_are_a_conflict(engine: Engine, jobs: CustomerJobs) -> None:
    batch = [{"body": BODY, "external_id": "user-1"}, {"body": OTHER_BODY, "external_id": "user-1"}]

    with pytest.raises(ConflictError):
        jobs.create_customers(batch)

    assert count(engine) == 0


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"body": {"id": "x"}}, "rows[1].id"),
        ({"body": BODY, "priority": 9}, "rows[1].priority"),
        ({"body": BODY, "expand": []}, "rows[1]"),
        ({"external_id": "x"}, "rows[1]"),
        ("text", "rows[1]"),
        (None, "rows[1]"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(engine: Engine, jobs: CustomerJobs, row: Any, field: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        jobs.create_customers([{"body": BODY}, row])

    assert caught.value.field == field
    assert count(engine) == 0


def test_no_rows_are_no_jobs(jobs: CustomerJobs) -> None:
    assert jobs.create_customers([]) == []


# enqueue, by a door


def test_the_same_id_at_a_door_is_the_same_job(engine: Engine, jobs: CustomerJobs) -> None:
    job_id = str(uuid.uuid4())

    made = [jobs.enqueue("customer.create", {"body": BODY}, job_id=job_id.upper(), context=7) for _ in range(2)]

    assert [job.id for job in made] == [job_id] * 2
    assert count(engine) == 1


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"kind": "customer.delete"}, "kind"),
        ({"job_payload": {"body": 7}}, "body"),
        ({"job_id": "7"}, "job_id"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_door_refuses_what_a_call_refuses(jobs: CustomerJobs, arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        jobs.enqueue(**{"kind": "customer.create", "job_payload": {"body": BODY}} | arguments)

    assert caught.value.field == field


# get, wait and list


@pytest.mark.parametrize("job_id", [NO_JOB, "", "7", "cus_1", uuid.UUID(NO_JOB)])
def test_an_unknown_id_is_none(jobs: CustomerJobs, job_id: Any) -> None:
    assert jobs.get(job_id) is None


def test_a_job_is_found_however_its_id_is_spelled(jobs: CustomerJobs) -> None:
    job = jobs.create_customer(BODY)

    assert jobs.get(job.id.upper()) == jobs.get(uuid.UUID(job.id)) == jobs.get(f"{{{job.id}}}") == job


def test_a_job_is_shown_with_its_attempts(engine: Engine, jobs: CustomerJobs) -> None:
    job = jobs.create_customer(BODY)
    held = claimed(engine, job.id, worker="w7")
    with writing(engine) as transaction:
        retry = entry(Verdict.RETRY, ambiguous=True, http_status=500, request_id="req_1")
        change_of_state.retry_later(transaction, held, retry, delay_seconds=0, error={"type": "api_error"})
    succeed(engine, job.id)

    found = jobs.get(job.id)

    assert found is not None
    assert [(each.number, each.verdict, each.http_status) for each in found.attempts] == [
        (1, "retry", 500),
        (2, "succeeded", None),
    ]
    assert found.attempts[0].worker == "w7"
    assert found.document()["attempts"][0]["request_id"] == "req_1"


def test_waiting_ends_with_the_job(engine: Engine, jobs: CustomerJobs) -> None:
    job = jobs.create_customer(BODY)
    threading.Timer(0.1, succeed, args=(engine, job.id)).start()

    found = jobs.wait(job.id, timeout_seconds=30)

    assert found.state == State.SUCCEEDED
    assert found.result is not None
    assert found.result["customer_email"] == EMAIL


def test_waiting_for_a_failed_job_raises_nothing(engine: Engine, jobs: CustomerJobs) -> None:
    job = jobs.create_customer(BODY)
    fail_certainly(engine, job.id)

    assert jobs.wait(job.id).state == State.FAILED


def test_waiting_is_over_when_the_time_is_up(jobs: CustomerJobs) -> None:
    job = jobs.create_customer(BODY)

    assert jobs.wait(job.id, timeout_seconds=0.05) == job
    assert jobs.wait(job.id, timeout_seconds=0) == job
    assert jobs.wait(job.id, timeout_seconds=-1) == job


def test_waiting_for_nothing_is_an_error(jobs: CustomerJobs) -> None:
    with pytest.raises(UnknownJob, match=NO_JOB):
        jobs.wait(NO_JOB)


def test_a_list_shows_the_latest_first_page_by_page(engine: Engine, jobs: CustomerJobs) -> None:
    moment = datetime(2026, 11, 5, tzinfo=UTC)
    ids = [add_job(engine, created_at=moment + timedelta(seconds=number // 3)) for number in range(10)]
    ordered = sorted(ids, key=lambda id_: (job_row(engine, id_)["created_at"], uuid.UUID(id_)), reverse=True)

    pages = [jobs.list(limit=4)]
    while pages[-1]:
        pages.append(jobs.list(limit=4, before=pages[-1][-1]))

    assert [job.id for page in pages for job in page] == ordered
    assert [len(page) for page in pages] == [4, 4, 2, 0]


def test_a_list_filters_by_everything_it_names(engine: Engine, jobs: CustomerJobs) -> None:
    create = jobs.create_customer(BODY, external_id="user-1", credential="eu", stripe_account="acct_1")
    fetch = jobs.fetch_customer("cus_2")
    done = jobs.create_customer(OTHER_BODY)
    held = claimed(engine, done.id)
    with writing(engine) as transaction:
        change_of_state.succeed(transaction, held, success("cus_3"), entry(request_id="req_3"))

    def found(**filters: Any) -> set[str]:
        return {job.id for job in jobs.list(**filters)}

    assert found(state="queued") == {create.id, fetch.id}
    assert found(state=State.SUCCEEDED) == {done.id}
    assert found(state=["queued", "succeeded"]) == {create.id, fetch.id, done.id}
    assert found(kind="customer.fetch") == {fetch.id}
    assert found(credential="eu") == found(stripe_account="acct_1") == found(external_id="user-1") == {create.id}
    assert found(customer_id="cus_2") == {fetch.id}
    assert found(customer_id="cus_3") == found(request_id="req_3") == {done.id}
    assert found(kind="customer.create", state="queued", credential="default") == set()


@pytest.mark.parametrize("filters", [{"state": "sleeping"}, {"state": ["queued", ""]}, {"limit": 0}, {"limit": 10_001}])
def test_a_list_refuses_what_makes_no_sense(jobs: CustomerJobs, filters: dict[str, Any]) -> None:
    with pytest.raises(InvalidJob):
        jobs.list(**filters)


# retry and cancel


def test_a_retry_is_a_new_job_that_takes_over(engine: Engine, jobs: CustomerJobs) -> None:
    old = jobs.create_customer(
        BODY, external_id="user-1", credential="eu", stripe_account="acct_1", priority="low", context={"order": 7}
    )
    fail_certainly(engine, old.id)

    new = jobs.retry(old.id)

    assert (new.retry_of, new.state, new.attempt) == (old.id, State.QUEUED, 0)
    assert new.external_id == "user-1"
    assert (new.credential, new.stripe_account, new.priority, new.context) == ("eu", "acct_1", 3, {"order": 7})
    row = job_row(engine, new.id)
    assert row["payload"] == {"body": BODY}
    assert (row["params"], row["first_sent_at"], row["reconciling"]) == (None, None, False)
    found = jobs.get(old.id)
    assert found is not None
    assert (found.state, found.external_id) == (State.FAILED, None)


def test_a_retry_of_an_ambiguous_job_looks_before_it_creates(engine: Engine, jobs: CustomerJobs) -> None:
    old = jobs.create_customer(BODY, external_id="user-1")
    fail_ambiguously(engine, old.id)
    before = job_row(engine, old.id)

    new = jobs.retry(old.id)

    row = job_row(engine, new.id)
    assert row["reconciling"] is True
    for name in ("params", "first_sent_at", "sent_to", "external_id"):
        assert row[name] == before[name] is not None


def test_a_fetch_is_retried_too(engine: Engine, jobs: CustomerJobs) -> None:
    old = add_job(engine, kind="customer.fetch", state=State.FAILED)

    new = jobs.retry(old)

    assert (new.kind, new.customer_id, new.retry_of) == ("customer.fetch", CUSTOMER_ID, old)


def test_a_job_is_retried_once(engine: Engine, jobs: CustomerJobs) -> None:
    old = add_job(engine, state=State.FAILED)
    at_once = threading.Barrier(5)

    def retry(_: int) -> Job:
        at_once.wait()
        return jobs.retry(old)

    with ThreadPoolExecutor(5) as pool:
        made = list(pool.map(retry, range(5)))

    assert len({job.id for job in made}) == 1
    assert count(engine) == 2


def test_a_retry_can_be_retried(engine: Engine, jobs: CustomerJobs) -> None:
    first = jobs.create_customer(BODY, external_id="user-1")
    fail_certainly(engine, first.id)
    second = jobs.retry(first.id)
    fail_certainly(engine, second.id)

    third = jobs.retry(second.id)

    assert (third.retry_of, third.external_id) == (second.id, "user-1")


def test_a_job_whose_external_id_has_been_taken_cannot_be_retried(engine: Engine, jobs: CustomerJobs) -> None:
    old = jobs.create_customer(BODY, external_id="user-1")
    fail_certainly(engine, old.id)
    jobs.create_customer(OTHER_BODY, external_id="user-1")

    with pytest.raises(NotRetryable, match="has gone to another job"):
        jobs.retry(old.id)

    assert job_row(engine, old.id)["external_id"] == "user-1"
    assert count(engine) == 2


@pytest.mark.parametrize("state", [state for state in State if state != State.FAILED])
def test_only_a_failed_job_can_be_retried(engine: Engine, jobs: CustomerJobs, state: State) -> None:
    job_id = add_job(engine, state=state)

    with pytest.raises(NotRetryable, match=f"is {state}"):
        jobs.retry(job_id)


def test_a_job_that_cannot_be_read_cannot_be_retried(engine: Engine, jobs: CustomerJobs) -> None:
    job_id = add_job(engine, state=State.FAILED)
    raw(engine, f"""UPDATE jobs SET payload = '{{"body": {{"balance": 1e400}}}}' WHERE id = '{job_id}'""")

    with pytest.raises(NotRetryable, match=f"payload of job {job_id} cannot be read"):
        jobs.retry(job_id)

    assert count(engine) == 1


def test_a_context_that_cannot_be_read_keeps_no_job_from_being_retried(engine: Engine, jobs: CustomerJobs) -> None:
    job_id = add_job(engine, state=State.FAILED)
    raw(engine, f"UPDATE jobs SET context = '[1e400]' WHERE id = '{job_id}'")

    again = jobs.retry(job_id)

    assert (again.retry_of, again.context) == (job_id, None)


def test_nothing_cannot_be_retried_or_cancelled(jobs: CustomerJobs) -> None:
    for job_id in (NO_JOB, "7"):
        with pytest.raises(UnknownJob):
            jobs.retry(job_id)
        with pytest.raises(UnknownJob):
            jobs.cancel(job_id)


@pytest.mark.parametrize("state", State)
def test_only_a_waiting_job_can_be_cancelled(engine: Engine, jobs: CustomerJobs, state: State) -> None:
    job_id = add_job(engine, state=state)

    cancelled = jobs.cancel(job_id)

    assert cancelled == (state in {State.QUEUED, State.RETRYING})
    assert job_row(engine, job_id)["state"] == (State.CANCELLED if cancelled else state)


def test_a_job_that_stripe_may_have_heard_of_cannot_be_cancelled(engine: Engine, jobs: CustomerJobs) -> None:
    job = jobs.create_customer(BODY)
    held = claimed(engine, job.id)
    with writing(engine) as transaction:
        unknown = entry(Verdict.RETRY, ambiguous=True)
        change_of_state.retry_later(transaction, held, unknown, delay_seconds=9, error={"type": "api_error"})

    assert not jobs.cancel(job.id)
    assert job_row(engine, job.id)["state"] == State.RETRYING


# customer


def test_the_local_copy_is_found_by_either_id(engine: Engine, jobs: CustomerJobs) -> None:
    job = jobs.create_customer(BODY, external_id="user-1")
    succeed(engine, job.id, name="Jenny Rosen", metadata={"plan": "pro"})

    by_id = jobs.customer(CUSTOMER_ID)

    assert by_id is not None
    assert by_id == jobs.customer(external_id="user-1")
    assert (by_id.id, by_id.email, by_id.name, by_id.metadata) == (CUSTOMER_ID, EMAIL, "Jenny Rosen", {"plan": "pro"})
    assert (by_id.credential, by_id.stripe_account, by_id.livemode, by_id.deleted) == ("default", None, False, False)
    assert by_id.data["object"] == "customer"
    assert jobs.customer(CUSTOMER_ID, credential="eu") is None
    assert jobs.customer(CUSTOMER_ID, stripe_account="acct_1") is None
    assert len(rows(engine, customers_table)) == 1


@pytest.mark.parametrize("arguments", [{}, {"customer_id": "cus_1", "external_id": "user-1"}])
def test_a_customer_is_asked_for_by_one_id(jobs: CustomerJobs, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidJob):
        jobs.customer(**arguments)


@pytest.mark.parametrize("driver", ["", "an app's own"])
def test_where_the_table_is_can_be_said_by_the_environment(
    engine: Engine, database_url: str, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _, rest = database_url.partition("://")
    plain, asynchronous = ("sqlite", "sqlite+aiosqlite") if name == "sqlite" else ("postgres", "postgresql+asyncpg")
    monkeypatch.setenv("DATABASE_URL", f"{asynchronous if driver else plain}://{rest}")
    jobs = CustomerJobs()

    job = jobs.create_customer(BODY)
    jobs.engine.dispose()

    assert job_row(engine, job.id)["state"] == State.QUEUED


def test_without_a_database_it_says_how_to_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)

    with pytest.raises(InvalidSetting, match="export DATABASE_URL="):
        CustomerJobs()


def test_an_engine_of_ours_may_be_passed_as_one(database_url: str) -> None:
    engine = open_engine(database_url)

    job = CustomerJobs(engine).create_customer(BODY)

    with engine.connect() as connection:
        assert connection.scalar(select(jobs_table.c.id)) == job.id
    engine.dispose()
