"""A leader that was stopped and goes on does no harm: another has taken over between two of its statements."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from sqlalchemy import Connection, Engine, event, insert, text, update

from customer_jobs import lifecycle
from customer_jobs.database import IDLE_TIMEOUT_SECONDS, Transaction, open_engine, reading, writing
from customer_jobs.embedded import wait_until
from customer_jobs.errors import Unavailable
from customer_jobs.lifecycle import Claim, Sending
from customer_jobs.schema import events, jobs, lanes, leases
from customer_jobs.sql import now
from customer_jobs.vocabulary import State, Verdict
from tests.builders import (
    SENT_TO,
    add_fetch,
    add_job,
    add_worker,
    age,
    as_read,
    claimed,
    dispatched,
    entry,
    events_of,
    job_row,
    later,
    lead,
    ledger,
    rows,
    settings_for,
)
from worker.dispatcher.dispatch import Dispatch
from worker.dispatcher.leader import LEASE_SECONDS, still_leads, take_lead
from worker.dispatcher.limits import CAPACITY_TOKENS
from worker.dispatcher.prune import Prune
from worker.dispatcher.relay import Relay, connect
from worker.dispatcher.upkeep import rescue

TAKES_OVER = pytest.mark.parametrize("database", ["postgresql"])  #: SQLite lets nobody write between two statements.
STATEMENTS = ("FROM customer_jobs.lanes", "UNION ALL", "UPDATE customer_jobs.jobs", "UPDATE customer_jobs.lanes")
FADES_IN_SECONDS = 2.0  #: What is left of a lease that runs out while its holder does not run.
DAY_SECONDS = 86_400.0
READY_SECONDS = 30.0
HARDLY_ANY = 0.001  #: Calls per second: a bucket that is spent stays so.
IDLE_IN_TRANSACTION = b"25P03"  #: PostgreSQL's code for a transaction that it ended because it stood still.


@pytest.fixture
def other(database_url: str) -> Iterator[Engine]:
    """The database as another process sees it, one that does not wait long for a lock."""
    engine = open_engine(database_url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA busy_timeout = 50"))
    yield engine
    engine.dispose()


class Stop:
    """Stops whoever is about to execute a statement with these words, once; something else happens meanwhile."""

    def __init__(self, engine: Engine, words: str, meanwhile: Callable[[], object]) -> None:
        self.happened = False
        self._words = words
        self._meanwhile = meanwhile
        event.listen(engine, "before_cursor_execute", self._before)

    def _before(self, _: object, __: object, statement: str, *___: object) -> None:
        if self._words in statement and not self.happened:
            self.happened = True
            self._meanwhile()


def take_over(engine: Engine) -> None:
    """The lease has run out, and another leads."""
    with writing(engine) as transaction:
        transaction.change(update(leases).values(expires_at=now(-0.1)))
        assert take_lead(transaction, "another")


def dispatch_of(engine: Engine, published: list[str], holder: str = "holder", **settings: Any) -> Dispatch:
    def publish(jobs: Sequence[tuple[str, str]]) -> None:
        published.extend(job_id for _, job_id in jobs)

    return Dispatch(engine, settings_for(**settings), publish, holder=holder)


def state(engine: Engine, job_id: str) -> str:
    return str(job_row(engine, job_id)["state"])


@TAKES_OVER
@pytest.mark.parametrize("words", STATEMENTS)
def test_a_look_in_which_the_lead_is_lost_is_undone(engine: Engine, other: Engine, words: str) -> None:
    job_id = add_job(engine)
    add_worker(engine)
    lead(engine)
    late: list[str] = []
    stop = Stop(engine, words, lambda: take_over(other))

    look = dispatch_of(engine, late).run_once()

    assert stop.happened
    assert (look.leads, look.dispatched, late) == (False, 0, [])
    assert state(engine, job_id) == State.QUEUED
    assert rows(engine, lanes) == []
    heirs: list[str] = []
    assert dispatch_of(other, heirs, "another").run_once().dispatched == 1
    assert heirs == [job_id]


def test_a_look_that_outlives_the_lease_is_undone_while_nobody_leads(engine: Engine, other: Engine) -> None:
    job_id = add_job(engine)
    add_worker(engine)
    with writing(engine) as transaction:
        take_lead(transaction, "holder")
        transaction.change(update(leases).values(expires_at=now(FADES_IN_SECONDS)))
    late: list[str] = []
    taken: list[bool] = []

    def wait_until_it_has_run_out() -> None:
        while leads(other, "holder"):
            time.sleep(0.02)
        if other.dialect.name == "sqlite":
            # Whoever writes keeps the others from writing, also while it is stopped: nobody leads in its place.
            with pytest.raises(Unavailable, match="locked"), writing(other) as transaction:
                take_lead(transaction, "another")
        taken.append(leads(other, "another"))

    Stop(engine, "lanes SET", wait_until_it_has_run_out)
    look = dispatch_of(engine, late).run_once()

    assert taken == [False]
    assert (look.leads, look.dispatched, late) == (False, 0, [])
    assert (state(engine, job_id), rows(engine, lanes)) == (State.QUEUED, [])
    take_over(other)


def leads(engine: Engine, holder: str) -> bool:
    with reading(engine) as transaction:
        return still_leads(transaction, holder)


@TAKES_OVER
def test_a_transaction_that_stands_still_is_ended_by_the_database_before_the_lease_is(engine: Engine) -> None:
    add_job(engine)
    add_worker(engine)
    lead(engine)
    late: list[str] = []
    farewells: list[bytes] = []
    with reading(engine) as transaction:
        limit = transaction.value(text("SHOW idle_in_transaction_session_timeout"))

    def stand_still(connection: Connection, _: object, statement: str, *__: object) -> None:
        if "lanes SET" in statement:
            driver: Any = connection.connection.driver_connection
            driver.execute("SET idle_in_transaction_session_timeout = '100ms'")  # Less, so that the test is short.
            assert select.select([driver.fileno()], [], [], READY_SECONDS)[0]
            # The server's own last words; what the driver makes of them depends on when the connection closes.
            with socket.socket(fileno=os.dup(driver.fileno())) as peeking:
                farewells.append(peeking.recv(4096, socket.MSG_PEEK))

    event.listen(engine, "before_cursor_execute", stand_still)

    with pytest.raises(Unavailable):
        dispatch_of(engine, late).run_once()

    assert [IDLE_IN_TRANSACTION in each for each in farewells] == [True]
    assert limit == f"{IDLE_TIMEOUT_SECONDS}s"
    assert IDLE_TIMEOUT_SECONDS < LEASE_SECONDS
    assert (late, rows(engine, lanes)) == ([], [])


@TAKES_OVER
def test_who_is_stopped_after_the_marks_keeps_nobody_from_leading_and_its_jobs_from_everybody(
    engine: Engine, other: Engine
) -> None:
    held, free = add_job(engine), add_fetch(engine)
    add_worker(engine)
    with writing(engine) as transaction:
        lifecycle.mark_dispatched(transaction, [held], token=str(uuid.uuid4()), lease_seconds=5)
        take_over(other)
        heirs: list[str] = []

        look = dispatch_of(other, heirs, "another").run_once()

        assert (look.dispatched, heirs) == (1, [free])


def test_what_could_not_be_published_is_taken_back_only_by_who_dispatched_it_last(engine: Engine) -> None:
    add_worker(engine)
    lead(engine)
    job_id = add_job(engine)
    again: list[str] = []

    def publish(_: object) -> None:
        # Stopped here until the lease has run out, another has rescued the job and dispatched it anew.
        later(engine, 6, job_id)
        take_over(engine)
        assert rescue(engine, "another", lambda *_: None) == 1
        age(engine, 10, lanes)
        assert dispatch_of(engine, again, "another").run_once().dispatched == 1
        raise ConnectionError("the broker has gone meanwhile")

    look = Dispatch(engine, settings_for(), publish, holder="holder").run_once()

    assert (look.dispatched, again) == (0, [job_id])
    assert state(engine, job_id) == State.DISPATCHED


def test_the_message_of_a_late_leader_is_one_too_many_and_claims_nothing(engine: Engine) -> None:
    held = claimed(engine)

    claim = claim_again(engine, held.job["id"])

    assert claim is None
    assert len(ledger(engine, held.job["id"])) == 1


def claim_again(engine: Engine, job_id: str) -> object:
    sending = Sending("{}", SENT_TO, f"customer-jobs-{job_id}", may_create=True)
    with writing(engine) as transaction:
        return lifecycle.claim(transaction, as_read(transaction, job_id), worker="w2", sending=sending)


@TAKES_OVER
def test_a_rescue_that_comes_late_takes_nothing_from_who_has_the_job_now(engine: Engine, other: Engine) -> None:
    lead(engine)
    job_id = dispatched(engine, lease_seconds=5)
    later(engine, 6, job_id)

    def rescue_and_claim() -> None:
        take_over(other)
        assert rescue(other, "another", lambda *_: None) == 1
        claimed(other, job_id)

    stop = Stop(engine, "UPDATE customer_jobs.jobs", rescue_and_claim)

    count = rescue(engine, "holder", lambda *_: None)

    assert stop.happened
    assert (count, state(engine, job_id)) == (0, State.RUNNING)


@TAKES_OVER
def test_an_attempt_is_abandoned_once_though_two_believe_they_lead(engine: Engine, other: Engine) -> None:
    held = claimed(engine)
    later(engine, 16, held.job["id"])
    lead(engine)
    counts: list[int] = []

    def abandon(transaction: Transaction, claim: Claim) -> object:
        take_over(other)
        counts.append(rescue(other, "another", abandon))
        ended = entry(Verdict.ABANDONED, ambiguous=True)
        return lifecycle.retry_later(transaction, claim, ended, delay_seconds=1, error={"type": "api_error"})

    counts.append(rescue(engine, "holder", abandon))

    assert counts == [0, 1]
    assert [each["verdict"] for each in ledger(engine, held.job["id"])] == ["abandoned"]
    assert state(engine, held.job["id"]) == State.RETRYING


@TAKES_OVER
def test_a_late_mark_leaves_an_event_as_another_published_it(engine: Engine, other: Engine, redis_url: str) -> None:
    stream = f"test:{uuid.uuid4().hex}"
    client = connect(redis_url)
    with writing(engine) as transaction:
        transaction.change(insert(events).values(type="x", subject="y", data={"credential": "default"}))
    lead(engine)
    seen: list[Any] = []

    def publish_in_its_place() -> None:
        take_over(other)
        assert Relay(other, client, stream, holder="another").run_once() == 1
        seen.extend(rows(other, events))

    stop = Stop(engine, "UPDATE customer_jobs.events", publish_in_its_place)

    count = Relay(engine, client, stream, holder="holder").run_once()

    assert stop.happened
    assert (count, rows(engine, events)) == (0, seen)
    assert len({entry[b"event"] for _, entry in entries(client, stream)}) == 1  # Twice on the stream, under one id.
    client.close()


@TAKES_OVER
def test_an_event_whose_mark_comes_late_stays_for_whoever_leads(engine: Engine, other: Engine, redis_url: str) -> None:
    stream = f"test:{uuid.uuid4().hex}"
    client = connect(redis_url)
    with writing(engine) as transaction:
        transaction.change(insert(events).values(type="x", subject="y", data={"credential": "default"}))
    lead(engine)
    stop = Stop(engine, "UPDATE customer_jobs.events", lambda: take_over(other))

    late = Relay(engine, client, stream, holder="holder").run_once()

    assert stop.happened
    assert late == 0
    assert Relay(other, client, stream, holder="another").run_once() == 1
    assert len(entries(client, stream)) == 2
    client.close()


def entries(client: redis.Redis, stream: str) -> Any:
    return client.xrange(stream)


@TAKES_OVER
def test_two_who_prune_at_once_remove_only_what_is_old(engine: Engine, other: Engine, redis_url: str) -> None:
    old, young = add_job(engine, state=State.SUCCEEDED), add_job(engine, state=State.SUCCEEDED)
    later(engine, 31 * DAY_SECONDS, old)
    lead(engine)
    client = connect(redis_url)
    counts: list[int] = []

    def prune_in_its_place() -> None:
        take_over(other)
        counts.append(Prune(other, client, "unused", 30, holder="another").run_once())

    stop = Stop(engine, "FROM customer_jobs.jobs", prune_in_its_place)

    counts.append(Prune(engine, client, "unused", 30, holder="holder").run_once())

    assert stop.happened
    assert counts == [1, 0]
    assert [row["id"] for row in rows(engine, jobs)] == [young]
    assert events_of(engine, young) == []
    client.close()


@TAKES_OVER
def test_of_two_that_believe_they_lead_one_waits_until_the_other_has_spent_its_tokens(
    engine: Engine, other: Engine
) -> None:
    jobs_in_turn = [add_job(engine, due_at=now(-seconds)) for seconds in (3, 2, 1)]
    add_worker(engine)
    lead(engine)
    published: list[str] = []
    one, twin = (dispatch_of(each, published, rate_limit_create=HARDLY_ANY) for each in (engine, other))
    one.run_once()  # The bucket is in the table from now on.
    age(engine, 1.5 / HARDLY_ANY, lanes)
    seen: list[list[str]] = []

    def look_beside_it() -> None:
        # The one has read what may leave, and not yet which jobs are there.
        threads.submit(twin.run_once)
        wait_until(lambda: is_waiting_for_a_lock(other), READY_SECONDS, "the twin waits")
        seen.append(published.copy())

    with ThreadPoolExecutor(1) as threads:
        Stop(engine, "SKIP LOCKED", look_beside_it)
        one.run_once()

    assert seen == [jobs_in_turn[:1]]
    assert published == jobs_in_turn[:2]


def is_waiting_for_a_lock(engine: Engine) -> bool:
    """Whether a statement in this database waits for a transaction to end."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with reading(engine) as transaction:
        return bool(transaction.value(text(query)))


def test_two_that_believe_they_lead_dispatch_each_job_once_and_spend_one_allowance(engine: Engine) -> None:
    per_second = 40
    ids = {add_job(engine) for _ in range(60)}
    add_worker(engine, slots=200)
    lead(engine)
    published: list[str] = []
    twins = [dispatch_of(engine, published, rate_limit_create=per_second) for _ in range(2)]
    began = time.monotonic()

    def look_until_all_have_left(dispatch: Dispatch) -> None:
        while len(published) < len(ids):
            lead(engine)
            pause = dispatch.run_once().again_in_seconds
            time.sleep(pause or 0.005)

    threads = [threading.Thread(target=look_until_all_have_left, args=(twin,)) for twin in twins]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(published) == sorted(ids)
    assert len(ids) <= CAPACITY_TOKENS + per_second * (time.monotonic() - began)
