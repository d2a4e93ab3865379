"""An app's own SQLAlchemy transaction carries the job, with the worker live: what is rolled back reaches nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Column, MetaData, String, Table, create_engine, func, insert, make_url, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from customer_jobs import ConflictError, Job
from tests.acceptance.stack import Stack, email, unique

users = Table("app_users", MetaData(), Column("id", String(64), primary_key=True))

#: Runs a piece of work in one transaction of an app and commits it, or rolls it back.
InTransaction = Callable[[Callable[[Any], Any], bool], Any]


def in_session(url: str, work: Callable[[Any], Any], commit: bool) -> Any:
    engine = create_engine(url)
    with Session(engine) as session:
        done = work(session)
        (session.commit if commit else session.rollback)()
    engine.dispose()
    return done


def in_connection(url: str, work: Callable[[Any], Any], commit: bool) -> Any:
    engine = create_engine(url)
    with engine.connect() as connection:
        done = work(connection)
        (connection.commit if commit else connection.rollback)()
    engine.dispose()
    return done


def in_async_session(url: str, work: Callable[[Any], Any], commit: bool) -> Any:
    async def main() -> Any:
        address = make_url(url)
        if address.get_backend_name() == "sqlite":
            address = address.set(drivername="sqlite+aiosqlite")
        engine = create_async_engine(address)
        async with AsyncSession(engine) as session:
            done = await session.run_sync(work)
            await (session.commit if commit else session.rollback)()
        await engine.dispose()
        return done

    return asyncio.run(main())


@pytest.fixture(params=[in_session, in_connection, in_async_session], ids=["Session", "Connection", "AsyncSession"])
def in_transaction(request: pytest.FixtureRequest, stack: Stack) -> InTransaction:
    """The app, by each of the ways to hold a transaction; with a table of its own."""
    users.create(stack.engine, checkfirst=True)
    return lambda work, commit: request.param(stack.database_url, work, commit)


def number_of_users(stack: Stack, user_id: str) -> int:
    with stack.engine.connect() as connection:
        return connection.execute(select(func.count()).where(users.c.id == user_id)).scalar_one()


def sign_up(stack: Stack, user_id: str, **body: Any) -> Callable[[Any], Job]:
    """An app's sign-up: its user and our job in one transaction."""

    def work(session: Any) -> Job:
        session.execute(insert(users).values(id=user_id))
        return stack.jobs.create_customer({"email": email(), **body}, external_id=user_id, session=session)

    return work


def test_user_and_job_are_committed_together(stack: Stack, in_transaction: InTransaction) -> None:
    mine = unique("user")

    job = in_transaction(sign_up(stack, mine), True)

    ended = stack.wait_for_end(job)
    assert (ended.outcome, ended.external_id) == ("created", mine)
    assert (number_of_users(stack, mine), len(stack.customers_of(job))) == (1, 1)


def test_what_is_rolled_back_reaches_nobody(stack: Stack, in_transaction: InTransaction) -> None:
    mine = unique("user")

    def enqueue_a_lot(session: Any) -> list[Job]:
        made = [sign_up(stack, mine)(session)]
        made += stack.jobs.create_customers([{"body": {"email": email()}} for _ in range(3)], session=session)
        return [*made, stack.jobs.fetch_customer("cus_rolled_back", session=session)]

    undone = in_transaction(enqueue_a_lot, False)
    # Dispatched in the order of their due times: once this one has ended, they would have been on their way.
    stack.wait_for_end(in_transaction(sign_up(stack, unique("user")), True))

    assert [stack.jobs.get(job.id) for job in undone] == [None] * 5
    assert number_of_users(stack, mine) == 0
    assert [request for job in undone for request in stack.requests_of(job)] == []
    assert [entry for job in undone for entry in stack.consumer.entries_about(job.id)] == []


def test_a_conflict_leaves_the_apps_transaction_usable(stack: Stack, in_transaction: InTransaction) -> None:
    mine, theirs = unique("user"), unique("user")
    first = in_transaction(sign_up(stack, theirs), True)

    def work(session: Any) -> list[Job]:
        session.execute(insert(users).values(id=mine))
        with pytest.raises(ConflictError) as caught:
            stack.jobs.create_customer({"name": "Somebody else"}, external_id=theirs, session=session)
        rows: list[dict[str, Any]] = [{"body": {}}, {"body": {"name": "Somebody else"}, "external_id": theirs}]
        with pytest.raises(ConflictError):
            stack.jobs.create_customers(rows, session=session)
        return [caught.value.job, stack.jobs.create_customer({"email": email()}, external_id=mine, session=session)]

    holder, made = in_transaction(work, True)

    assert holder.id == first.id
    assert stack.wait_for_end(made).outcome == "created"
    assert number_of_users(stack, mine) == 1
    assert len(stack.jobs.list(external_id=theirs)) == 1


def test_everything_else_sees_what_is_not_committed_yet(stack: Stack, in_transaction: InTransaction) -> None:
    mine = unique("user")

    def work(session: Any) -> None:
        job = sign_up(stack, mine)(session)
        assert stack.jobs.get(job.id, session=session) == job
        assert stack.jobs.list(external_id=mine, session=session) == [job]
        assert stack.jobs.create_customer({"email": email()}, session=session) != job
        assert stack.jobs.customer(external_id=mine, session=session) is None
        assert stack.jobs.cancel(job.id, session=session)

    in_transaction(work, True)

    (job,) = stack.jobs.list(external_id=mine)
    assert job.state == "cancelled"
    assert stack.requests_of(job) == []
