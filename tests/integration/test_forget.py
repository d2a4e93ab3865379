"""`customer-jobs forget`: a person's data are erased for good, and nothing is done a second time for it."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from sqlalchemy import Engine, func, insert, select
from typer.testing import CliRunner, Result

from customer_jobs import ConflictError, CustomerJobs
from customer_jobs.cli import app
from customer_jobs.database import reading, writing
from customer_jobs.errors import NotRetryable
from customer_jobs.events import completion_event
from customer_jobs.forget import find, forget
from customer_jobs.schema import attempts, consumed_events, customers, events, jobs, webhook_events
from customer_jobs.vocabulary import State
from tests.builders import add_fetch, add_job, age, job_row, lead, raw, rows
from worker.dispatcher.prune import Prune

#: Whatever holds it is about the person.
SECRET = "Jenny-Rosen-0815"
EMAIL = f"{SECRET}@Example.com"
CUSTOMER_ID = "cus_jenny"


def run(url: str, *flags: str, said: str = "") -> Result:
    return CliRunner().invoke(app, ["forget", *flags], env={"DATABASE_URL": url}, input=said)


def everything(engine: Engine) -> str:
    """All that the tables hold, as text."""
    tables = (jobs, attempts, events, customers, webhook_events, consumed_events)
    with reading(engine) as transaction:
        return json.dumps([transaction.rows(select(*table.c)) for table in tables], default=str)


def add_person(engine: Engine, **columns: Any) -> str:
    """The id of a create that succeeded, with all that is kept of it."""
    customer = {"id": CUSTOMER_ID, "object": "customer", "email": EMAIL, "name": SECRET}
    values = {
        "state": State.SUCCEEDED,
        "external_id": "user-1",
        "customer_id": CUSTOMER_ID,
        "payload": {"body": {"email": EMAIL, "name": SECRET}},
        "params": json.dumps({"email": EMAIL, "name": SECRET}),
        "context": {"greeting": SECRET},
        "result": {"customer_id": CUSTOMER_ID, "customer_email": EMAIL, "response": customer, "headers": {}},
    } | columns
    job_id = add_job(engine, **values)
    with writing(engine) as transaction:
        transaction.change(insert(attempts).values(job_id=job_id, number=1, error_message=f"{SECRET} is taken"))
        row = {**job_row(engine, job_id)}
        transaction.change(insert(events).values(completion_event(row, State(row["state"]))))
        if row["customer_id"]:
            copy = {"email": EMAIL, "name": SECRET, "metadata": {"n": SECRET}, "external_id": row["external_id"]}
            statement = transaction.insert(customers).values(
                credential="default", livemode=False, id=row["customer_id"], data=customer, **copy
            )
            transaction.change(statement.on_conflict_do_nothing())
    return job_id


@pytest.fixture
def others(engine: Engine) -> str:
    """A job of somebody else."""
    return add_job(
        engine,
        state=State.SUCCEEDED,
        external_id="user-2",
        customer_id="cus_other",
        payload={"body": {"email": "other@example.com", "name": "Not Jenny"}},
    )


@pytest.mark.parametrize(
    "flags",
    [
        ["--customer", CUSTOMER_ID],
        ["--external-id", "user-1"],
        ["--email", EMAIL.lower()],
        ["--job", "JOB"],
    ],
    ids=lambda flags: flags[0],
)
def test_whatever_names_a_person_erases_all_of_it(
    engine: Engine, database_url: str, others: str, flags: list[str]
) -> None:
    created = add_person(engine)
    fetched = add_fetch(
        engine, state=State.SUCCEEDED, customer_id=CUSTOMER_ID, outcome="found", result={"customer_email": EMAIL}
    )
    refused = add_person(engine, state=State.FAILED, customer_id=None, error={"message": SECRET, "code": "gone"})
    before = job_row(engine, others)
    assert SECRET in everything(engine)

    result = run(database_url, *[created if flag == "JOB" else flag for flag in flags], "--yes", "--json")

    assert result.exit_code == 0, result.output
    assert SECRET not in everything(engine)
    assert SECRET.lower() not in everything(engine).lower()
    told = json.loads(result.stdout)
    assert set(told["jobs"]) == {created, fetched, refused}
    assert (told["copies"], told["customer_ids"]) == (1, [CUSTOMER_ID])
    assert job_row(engine, others) == before


@pytest.mark.parametrize("flag", ["--customer", "--external-id", "--email"])
@pytest.mark.parametrize("blank", ["", "  "])
def test_a_blank_names_nobody(engine: Engine, database_url: str, flag: str, blank: str) -> None:
    job_id = add_job(engine, state=State.SUCCEEDED, payload={"body": {"email": "", "name": SECRET}})

    result = run(database_url, flag, blank, "--yes")

    assert result.exit_code == 2
    assert "names nobody" in result.stderr
    assert job_row(engine, job_id)["payload"] == {"body": {"email": "", "name": SECRET}}


def test_ids_and_the_ledger_stay(engine: Engine, database_url: str) -> None:
    job_id = add_person(engine, error=None)
    before = job_row(engine, job_id)

    assert run(database_url, "--customer", CUSTOMER_ID, "--yes").exit_code == 0

    after = job_row(engine, job_id)
    kept = ("id", "kind", "state", "external_id", "customer_id", "outcome", "created_at", "finished_at", "attempt")
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    (attempt,) = rows(engine, attempts, job_id=job_id)
    assert (attempt["number"], attempt["error_message"]) == (1, None)
    (event,) = rows(engine, events, subject=job_id)
    assert (event["data"]["customer_id"], event["data"]["context"]) == (CUSTOMER_ID, None)
    (copy,) = rows(engine, customers)
    assert (copy["id"], copy["external_id"], copy["email"], copy["name"]) == (CUSTOMER_ID, "user-1", None, None)


def test_no_second_customer_comes_of_it(engine: Engine, database_url: str) -> None:
    job_id = add_person(engine)
    run(database_url, "--external-id", "user-1", "--yes")
    enqueue = CustomerJobs(engine).create_customer

    again = enqueue({"email": EMAIL, "name": SECRET}, external_id="user-1")
    with pytest.raises(ConflictError):
        enqueue({"email": "another@example.com"}, external_id="user-1")

    assert (again.id, again.customer_id, again.result) == (job_id, CUSTOMER_ID, None)


def test_an_emptied_copy_is_never_young_enough(engine: Engine, database_url: str) -> None:
    add_person(engine)

    run(database_url, "--customer", CUSTOMER_ID, "--yes")

    copy = CustomerJobs(engine).customer(CUSTOMER_ID)
    assert copy is not None
    assert (copy.fetched_at.year, copy.data) == (1970, {"id": CUSTOMER_ID, "object": "customer"})


@pytest.mark.parametrize("state", [State.QUEUED, State.RETRYING, State.DISPATCHED, State.RUNNING])
def test_a_job_that_is_not_over_is_named_and_nothing_is_erased(engine: Engine, database_url: str, state: State) -> None:
    add_person(engine)
    waits = add_fetch(engine, state=state, customer_id=CUSTOMER_ID)
    before = everything(engine)

    result = run(database_url, "--external-id", "user-1", "--yes")

    assert result.exit_code == 2
    assert f"job {waits} is {state}" in result.stderr
    assert everything(engine) == before


def test_a_retry_by_hand_belongs_to_the_same_person(engine: Engine, database_url: str) -> None:
    old = add_person(engine, state=State.FAILED, external_id=None, customer_id=None, error={"code": "gone"})
    new = add_person(engine, external_id=None, customer_id=None, retry_of=old)

    result = run(database_url, "--job", old, "--yes", "--json")

    assert set(json.loads(result.stdout)["jobs"]) == {old, new}


def test_an_emptied_job_cannot_be_retried(engine: Engine, database_url: str) -> None:
    job_id = add_person(engine, state=State.FAILED, external_id=None, customer_id=None, error={"code": "gone"})
    run(database_url, "--job", job_id, "--yes")

    with pytest.raises(NotRetryable, match="was emptied, by `forget`"):
        CustomerJobs(engine).retry(job_id)


def test_what_holds_no_external_id_is_pruned_as_ever(engine: Engine, database_url: str) -> None:
    job_id = add_person(engine, external_id=None)
    run(database_url, "--job", job_id, "--yes")
    age(engine, 31 * 86_400, jobs)

    Prune(engine, None, "", 30, holder=lead(engine)).run_once()  # type: ignore[arg-type]

    assert rows(engine, jobs) == []


def test_twice_is_as_once(engine: Engine, database_url: str) -> None:
    add_person(engine)
    run(database_url, "--customer", CUSTOMER_ID, "--yes")
    before = everything(engine)

    assert run(database_url, "--customer", CUSTOMER_ID, "--yes").exit_code == 0

    assert everything(engine) == before


def test_a_mail_address_inside_another_is_another_persons(engine: Engine) -> None:
    longer = add_job(engine, state=State.SUCCEEDED, payload={"body": {"email": f"x{EMAIL}"}})
    quoted = add_job(engine, state=State.SUCCEEDED, payload={"body": {"email": "a@b.c", "description": EMAIL}})

    with writing(engine) as transaction:
        found = find(transaction, email=EMAIL)

    assert {longer, quoted}.isdisjoint(found.job_ids)


def test_an_address_that_is_not_ascii_is_found_however_json_spells_it(engine: Engine) -> None:
    escaped = add_job(engine, state=State.SUCCEEDED, payload={"body": {"email": "JÖRG@example.com"}})
    plain = add_job(engine, state=State.SUCCEEDED)
    raw(engine, f"""UPDATE jobs SET payload = '{{"body": {{"email": "jörg@example.com"}}}}' WHERE id = '{plain}'""")

    with writing(engine) as transaction:
        found = find(transaction, email="jörg@example.com")

    assert set(found.job_ids) == {escaped, plain}


@pytest.mark.slow
@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_whoever_was_fetched_every_minute_for_two_months_is_erased(engine: Engine, database_url: str) -> None:
    count = 66_000  # A statement of PostgreSQL's protocol has 65,535 parameters at most.
    columns = "kind, customer_id, payload, context, state, outcome, finished_at"
    fetch = f"""'customer.fetch', '{CUSTOMER_ID}', '{{}}', '"{SECRET}"', 'succeeded', 'found', now()"""
    raw(engine, f"INSERT INTO jobs ({columns}) SELECT {fetch} FROM generate_series(1, {count})")

    result = run(database_url, "--customer", CUSTOMER_ID, "--yes", "--json")

    assert len(json.loads(result.stdout)["jobs"]) == count
    with reading(engine) as transaction:
        assert transaction.value(select(func.count()).where(jobs.c.context.is_not(None))) == 0


def test_an_address_is_found_whatever_a_program_escapes_in_it(engine: Engine) -> None:
    job_id = add_job(engine, state=State.FAILED)
    as_dotnet_does = r"O\u0027Brien\u002Bshop@example.com"
    raw(engine, f"""UPDATE jobs SET payload = '{{"body": {{"email": "{as_dotnet_does}"}}}}' WHERE id = '{job_id}'""")

    with writing(engine) as transaction:
        found = find(transaction, email="o'brien+shop@example.com")

    assert found.job_ids == [job_id]


def test_the_same_external_id_at_another_account_is_another_customers(engine: Engine) -> None:
    mine = add_person(engine)
    theirs = add_job(engine, state=State.SUCCEEDED, external_id="user-1", stripe_account="acct_1")

    with writing(engine) as transaction:
        by_customer = find(transaction, customer_id=CUSTOMER_ID)
        by_external_id = find(transaction, external_id="user-1")

    assert by_customer.job_ids == [mine]
    assert set(by_external_id.job_ids) == {mine, theirs}


def test_a_row_that_cannot_be_read_is_emptied_too(engine: Engine) -> None:
    job_id = add_job(engine, state=State.FAILED, payload=[SECRET], external_id="user-1")

    with writing(engine) as transaction:
        forget(transaction, find(transaction, job_id=job_id))

    assert SECRET not in everything(engine)


def test_without_somebody_to_confirm_nothing_is_erased(engine: Engine, database_url: str) -> None:
    add_person(engine)
    before = everything(engine)

    result = run(database_url, "--customer", CUSTOMER_ID, said="y\n")

    assert result.exit_code == 2
    assert "found 1 job and 1 local copy; at Stripe: cus_jenny" in result.stderr
    assert "give --yes" in result.stderr
    assert everything(engine) == before


def test_what_is_not_touched_is_said(engine: Engine, database_url: str) -> None:
    add_person(engine)

    result = run(database_url, "--customer", CUSTOMER_ID, "--yes")

    assert result.stdout == "erased 1 job and 1 local copy; at Stripe: cus_jenny\n"
    assert result.stderr.startswith("not touched: Stripe itself, entries in the event stream")


def test_nobody_is_forgotten_by_mistake(database_url: str) -> None:
    nothing = run(database_url, "--customer", "cus_nobody", "--yes")
    unknown = run(database_url, "--job", str(uuid.uuid4()), "--yes")

    assert (nothing.exit_code, nothing.stdout) == (0, "there is nothing about them in the tables\n")
    assert (unknown.exit_code, unknown.stdout) == (0, "there is nothing about them in the tables\n")


@pytest.mark.parametrize("flags", [[], ["--customer", "cus_1", "--email", "a@example.com"], ["--job", "x"]])
def test_one_thing_names_a_person(database_url: str, flags: list[str]) -> None:
    result = run(database_url, *flags, "--yes")

    assert (result.exit_code, result.stdout) == (2, "")
