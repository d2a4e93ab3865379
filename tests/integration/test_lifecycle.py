"""Each change of a job's state: from where it is allowed, what is written beside it, and who is too late."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, insert, select
from sqlalchemy.exc import IntegrityError

from customer_jobs import lifecycle
from customer_jobs.database import Transaction, reading, writing
from customer_jobs.events import completion_event
from customer_jobs.lifecycle import Claim, Success
from customer_jobs.schema import customers, events, jobs
from customer_jobs.vocabulary import FINAL_STATES, IN_FLIGHT_STATES, WAITING_STATES, Outcome, State, Verdict
from tests.builders import (
    CUSTOMER_ID,
    EMAIL,
    SENT_TO,
    add_fetch,
    add_job,
    as_read,
    change,
    claimed,
    dispatched,
    entry,
    events_of,
    job_row,
    later,
    ledger,
    rows,
    success,
)

ERROR = {"type": "api_error", "code": "x", "message": "", "http_status": 500, "request_id": "req_1", "remedy": ""}
TOKEN = "0b1c9f1e-5b0c-4b55-9d2f-0c8b1b0f6a1d"


def succeed(engine: Engine, held: Claim, **customer: Any) -> bool:
    with writing(engine) as transaction:
        return lifecycle.succeed(transaction, held, success(**customer), entry(http_status=200, request_id="req_1"))


def retry_later(engine: Engine, held: Claim, *, ambiguous: bool = False, delay_seconds: float = 60, **how: Any) -> bool:
    with writing(engine) as transaction:
        end = entry(Verdict.RETRY, ambiguous=ambiguous)
        return lifecycle.retry_later(transaction, held, end, delay_seconds=delay_seconds, error=ERROR, **how)


def fail(engine: Engine, held: Claim, *, ambiguous: bool = False, result: dict[str, Any] | None = None) -> bool:
    with writing(engine) as transaction:
        end = entry(Verdict.FAILED, ambiguous=ambiguous)
        return lifecycle.fail(transaction, held, end, error=ERROR, result=result)


def is_as_claimed(engine: Engine, held: Claim) -> bool:
    """Whether the table has the job as its claim does."""
    row = job_row(engine, held.job["id"])
    return row == {name: held.job[name] for name in row}


#: The ends that the holder of a claim may record.
ENDS: dict[str, Callable[[Engine, Claim], bool]] = {"succeed": succeed, "retry_later": retry_later, "fail": fail}


def claim_again(engine: Engine, held: Claim) -> Claim:
    """The claim of another worker, after the first one's lease had run out."""
    later(engine, 60, held.job["id"])
    with writing(engine) as transaction:
        (lost,) = lifecycle.expired(transaction, 10)
        abandoned = entry(Verdict.ABANDONED, ambiguous=True)
        lifecycle.retry_later(transaction, lost, abandoned, delay_seconds=0, error=ERROR)
    return claimed(engine, held.job["id"], worker="w2")


def test_a_claim_writes_down_what_is_about_to_be_sent(engine: Engine) -> None:
    job_id = add_job(engine)

    held = claimed(engine, job_id)

    row = job_row(engine, job_id)
    assert is_as_claimed(engine, held)
    assert (row["state"], row["attempt"], row["lease_token"]) == (State.RUNNING, 1, held.lease_token)
    assert (row["params"], row["sent_to"]) == ('{"email": "jenny.rosen@example.com"}', SENT_TO)
    assert row["started_at"] is not None
    assert row["first_sent_at"] is not None
    assert timedelta(seconds=14) < row["lease_expires_at"] - row["started_at"] < timedelta(seconds=16)
    (attempt,) = ledger(engine, job_id)
    assert (attempt["number"], attempt["worker"], attempt["verdict"], attempt["finished_at"]) == (1, "w1", None, None)
    assert (attempt["ambiguous"], attempt["idempotency_key"]) == (True, f"customer-jobs-{job_id}")


def test_a_fetch_is_never_ambiguous(engine: Engine) -> None:
    job_id = add_fetch(engine)

    claimed(engine, job_id, may_create=False)

    assert job_row(engine, job_id)["first_sent_at"] is None
    assert ledger(engine, job_id)[0]["ambiguous"] is False


@pytest.mark.parametrize("state", [state for state in State if state != State.DISPATCHED])
def test_only_a_dispatched_job_can_be_claimed(engine: Engine, state: State) -> None:
    job_id = add_job(engine, state=state, lease_token=TOKEN)
    before = job_row(engine, job_id), ledger(engine, job_id)

    with writing(engine) as transaction:
        held = lifecycle.claim(transaction, as_read(transaction, job_id), worker="w1", sending=None)

    assert held is None
    assert (job_row(engine, job_id), ledger(engine, job_id)) == before


def test_a_job_that_plain_sql_dispatched_without_a_token_is_rescued_not_claimed(engine: Engine) -> None:
    job_id = dispatched(engine, lease_seconds=5)
    change(engine, job_id, lease_token=None)

    with writing(engine) as transaction:
        held = lifecycle.claim(transaction, as_read(transaction, job_id), worker="w1", sending=None)
    later(engine, 6, job_id)
    with writing(engine) as transaction:
        rescued = lifecycle.rescue_unclaimed(transaction)

    assert held is None
    assert rescued == 1
    assert job_row(engine, job_id)["state"] == State.RETRYING


def test_a_job_is_claimed_by_one_of_many(engine: Engine) -> None:
    job_id = dispatched(engine)
    job = job_row(engine, job_id)

    def claim(number: int) -> Claim | None:
        with writing(engine) as transaction:
            return lifecycle.claim(transaction, job, worker=f"w{number}", sending=None)

    with ThreadPoolExecutor(6) as pool:
        claims = list(pool.map(claim, range(6)))

    assert sum(held is not None for held in claims) == 1
    assert len(ledger(engine, job_id)) == 1


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)  # On SQLite one writes at a time.
def test_a_job_that_an_app_holds_keeps_no_other_waiting(engine: Engine) -> None:
    held, lost = [claimed(engine), claimed(engine)], [dispatched(engine), dispatched(engine)]
    taken = [add_job(engine), add_job(engine)]
    with writing(engine) as transaction:
        lifecycle.mark_dispatched(transaction, taken, token=TOKEN, lease_seconds=60)
    for job_id in lost:
        later(engine, 61, job_id)

    with writing(engine) as app:
        # As `cancel` does within a transaction of the app's own.
        for job_id in (held[0].job["id"], lost[0], taken[0]):
            app.rows(select(jobs.c.id).where(jobs.c.id == job_id).with_for_update())
        with writing(engine) as transaction:
            counts = [
                lifecycle.extend(transaction, held, longest_seconds=120),
                lifecycle.rescue_unclaimed(transaction),
                lifecycle.take_back(transaction, taken, token=TOKEN),
            ]

    assert counts == [1, 1, 1]


@pytest.mark.parametrize("state", State)
def test_only_what_waits_is_dispatched(engine: Engine, state: State) -> None:
    job_id = add_job(engine, state=state)

    with writing(engine) as transaction:
        marked = lifecycle.mark_dispatched(transaction, [job_id], token=TOKEN, lease_seconds=5)

    assert bool(marked) == (state in WAITING_STATES)
    assert job_row(engine, job_id)["state"] == (State.DISPATCHED if marked else state)


def test_a_success_is_recorded_whole(engine: Engine) -> None:
    held = claimed(engine, add_job(engine, external_id="user-1", context={"order": 7}))
    job_id = held.job["id"]

    assert succeed(engine, held)

    row = job_row(engine, job_id)
    assert (row["state"], row["outcome"], row["customer_id"]) == (State.SUCCEEDED, "created", CUSTOMER_ID)
    assert (row["livemode"], row["error"], row["lease_token"], row["lease_expires_at"]) == (False, None, None, None)
    assert row["finished_at"] >= row["started_at"]
    assert row["result"]["customer_id"] == CUSTOMER_ID
    assert row["result"]["customer_email"] == EMAIL
    assert row["result"]["response"]["object"] == "customer"
    assert row["result"]["headers"] == {"Request-Id": "req_1"}
    (attempt,) = ledger(engine, job_id)
    assert (attempt["verdict"], attempt["ambiguous"], attempt["http_status"]) == ("succeeded", False, 200)
    (event,) = events_of(engine, job_id)
    assert event["type"] == "customer_jobs.customer.create.succeeded"
    assert (event["data"]["external_id"], event["data"]["context"]) == ("user-1", {"order": 7})
    (copy,) = rows(engine, customers)
    assert (copy["id"], copy["external_id"], copy["email"]) == (CUSTOMER_ID, "user-1", EMAIL)
    assert copy["fetched_at"] == attempt["started_at"]


def test_a_retry_waits_and_tells_nobody(engine: Engine) -> None:
    held = claimed(engine)

    assert retry_later(engine, held, delay_seconds=60)

    row = job_row(engine, held.job["id"])
    assert (row["state"], row["attempt"], row["error"]) == (State.RETRYING, 1, ERROR)
    assert timedelta(seconds=59) < row["due_at"] - row["started_at"] < timedelta(seconds=65)
    assert (row["lease_token"], row["lease_expires_at"], row["finished_at"]) == (None, None, None)
    assert ledger(engine, held.job["id"])[0]["verdict"] == "retry"
    assert rows(engine, events) == []


def test_an_attempt_that_does_not_count_is_given_back(engine: Engine) -> None:
    held = claimed(engine)

    retry_later(engine, held, attempt_used=False)

    assert job_row(engine, held.job["id"])["attempt"] == 0
    assert claimed(engine, held.job["id"]).number == 2


def test_what_was_frozen_stays_for_every_further_attempt(engine: Engine) -> None:
    first = claimed(engine)
    retry_later(engine, first, ambiguous=True)
    dispatched(engine, first.job["id"])

    with writing(engine) as transaction:
        other = lifecycle.Sending('{"email": "other@example.com"}', "key_other", "other", may_create=True)
        second = lifecycle.claim(transaction, as_read(transaction, first.job["id"]), worker="w1", sending=other)

    assert second is not None
    for name in ("params", "sent_to", "first_sent_at", "started_at"):
        assert second.job[name] == first.job[name]


def test_a_create_that_certainly_was_not_executed_was_never_sent(engine: Engine) -> None:
    held = claimed(engine)

    retry_later(engine, held, ambiguous=False)

    assert job_row(engine, held.job["id"])["first_sent_at"] is None


def test_one_ambiguous_attempt_is_remembered_whatever_comes_after(engine: Engine) -> None:
    first = claimed(engine)
    retry_later(engine, first, ambiguous=True)
    second = claimed(engine, first.job["id"])

    fail(engine, second, ambiguous=False)

    assert job_row(engine, first.job["id"])["first_sent_at"] == first.job["first_sent_at"]


def test_a_failure_is_recorded_with_its_event(engine: Engine) -> None:
    held = claimed(engine)

    assert fail(engine, held)

    row = job_row(engine, held.job["id"])
    assert (row["state"], row["error"], row["outcome"], row["first_sent_at"]) == (State.FAILED, ERROR, None, None)
    assert row["finished_at"] is not None
    (event,) = events_of(engine, held.job["id"])
    assert event["type"] == "customer_jobs.customer.create.failed"
    assert event["data"]["error"] == {"type": "api_error", "code": "x", "http_status": 500, "request_id": "req_1"}


def test_what_stripe_refused_with_is_kept_in_the_row_and_not_in_the_event(engine: Engine) -> None:
    held = claimed(engine)
    said = {"error": {"message": "Invalid email address: jenny"}}

    assert fail(engine, held, result=lifecycle.refusal(said, {"Request-Id": "req_1"}))

    assert job_row(engine, held.job["id"])["result"] == {
        "customer_id": None,
        "customer_email": None,
        "response": said,
        "headers": {"Request-Id": "req_1"},
    }
    (event,) = events_of(engine, held.job["id"])
    assert "Invalid email" not in str(event)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("other", ENDS)
def test_a_claim_ends_once(engine: Engine, end: str, other: str) -> None:
    held = claimed(engine)
    assert ENDS[end](engine, held)
    before = job_row(engine, held.job["id"])

    assert not ENDS[other](engine, held)

    assert job_row(engine, held.job["id"]) == before
    assert len(events_of(engine, held.job["id"])) == (before["state"] in FINAL_STATES)


@pytest.mark.parametrize("end", ENDS)
def test_a_late_writer_is_refused_but_completes_its_own_attempt(engine: Engine, end: str) -> None:
    late = claimed(engine)
    job_id = late.job["id"]
    current = claim_again(engine, late)

    assert not ENDS[end](engine, late)

    assert is_as_claimed(engine, current)
    first, second = ledger(engine, job_id)
    assert first["verdict"] == {"succeed": "succeeded", "retry_later": "retry", "fail": "failed"}[end]
    assert (second["verdict"], second["finished_at"]) == (None, None)
    assert rows(engine, events) == []
    assert succeed(engine, current)
    assert len(events_of(engine, job_id)) == 1


def test_a_success_that_came_too_late_may_have_made_the_customer_all_the_same(engine: Engine) -> None:
    late = claimed(engine)
    current = claim_again(engine, late)
    succeed(engine, late)

    with writing(engine) as transaction:
        past = lifecycle.past(transaction, current, entry(Verdict.FAILED))
    retry_later(engine, current)

    assert past.ambiguous
    assert job_row(engine, late.job["id"])["first_sent_at"] == current.job["first_sent_at"]
    with writing(engine) as transaction:
        assert not lifecycle.cancel(transaction, late.job["id"])


def test_what_was_only_read_made_no_customer(engine: Engine) -> None:
    late = claimed(engine, add_fetch(engine), may_create=False)
    current = claim_again(engine, late)
    succeed(engine, late, outcome=Outcome.FOUND)

    with writing(engine) as transaction:
        past = lifecycle.past(transaction, current, entry(Verdict.FAILED))

    assert not past.ambiguous


def test_a_claim_holds_only_for_the_job_as_it_was_read(engine: Engine) -> None:
    job_id = dispatched(engine)
    read = job_row(engine, job_id)
    with writing(engine) as transaction:
        lifecycle.postpone(transaction, read, delay_seconds=0)
    dispatched(engine, job_id)

    def try_everything(as_it_is: Mapping[str, Any]) -> list[object]:
        with writing(engine) as transaction:
            return [
                lifecycle.postpone(transaction, as_it_is, delay_seconds=0),
                lifecycle.start_reconciling(transaction, as_it_is),
                lifecycle.claim(transaction, as_it_is, worker="w1", sending=None),
            ]

    assert try_everything(read) == [0, 0, None]
    assert job_row(engine, job_id)["state"] == State.DISPATCHED
    with writing(engine) as transaction:
        assert lifecycle.claim(transaction, as_read(transaction, job_id), worker="w1", sending=None)


def test_a_late_answer_never_overwrites_the_local_copy(engine: Engine) -> None:
    late = claimed(engine)
    current = claim_again(engine, late)
    succeed(engine, current, name="new")

    succeed(engine, late, name="old")

    assert [copy["name"] for copy in rows(engine, customers)] == ["new"]


def test_the_newest_answer_is_the_local_copy_whatever_the_order(engine: Engine) -> None:
    older, newer = (claimed(engine, add_fetch(engine), may_create=False) for _ in range(2))
    later(engine, 5, older.job["id"])

    succeed(engine, newer, outcome=Outcome.FOUND, name="new")
    succeed(engine, older, outcome=Outcome.FOUND, name="old")

    assert [copy["name"] for copy in rows(engine, customers)] == ["new"]


@pytest.mark.parametrize("deleted", [False, True])
def test_a_link_is_kept_though_a_newer_answer_came_first(engine: Engine, *, deleted: bool) -> None:
    linking = claimed(engine, add_fetch(engine, external_id="user-1"), may_create=False)
    newer = claimed(engine, add_fetch(engine), may_create=False)
    later(engine, 5, linking.job["id"])

    succeed(engine, newer, outcome=Outcome.FOUND, name="new")
    (known,) = rows(engine, customers)
    succeed(engine, linking, outcome=Outcome.FOUND, name="old", deleted=deleted)

    assert rows(engine, customers) == [{**known, "external_id": "user-1"}]


def test_what_was_known_of_a_deleted_customer_stays(engine: Engine) -> None:
    succeed(engine, claimed(engine), name="Jenny Rosen")

    held = claimed(engine, add_fetch(engine), may_create=False)
    stub = {"id": CUSTOMER_ID, "object": "customer", "deleted": True}
    with writing(engine) as transaction:
        lifecycle.succeed(transaction, held, Success(Outcome.DELETED, stub, {}, livemode=False), entry())

    (copy,) = rows(engine, customers)
    assert (copy["deleted"], copy["name"], copy["email"]) == (True, "Jenny Rosen", EMAIL)
    assert copy["data"]["object"] == "customer"


def test_a_job_has_one_event(engine: Engine) -> None:
    held = claimed(engine)
    succeed(engine, held)
    row = job_row(engine, held.job["id"])

    with pytest.raises(IntegrityError), writing(engine) as transaction:
        transaction.change(insert(events).values(completion_event(row, State.FAILED)))


def test_leases_held_are_extended(engine: Engine) -> None:
    held = claimed(engine)
    later(engine, 10, held.job["id"])
    before = job_row(engine, held.job["id"])["lease_expires_at"]

    with writing(engine) as transaction:
        extended = lifecycle.extend(transaction, [held], longest_seconds=120)

    after = job_row(engine, held.job["id"])["lease_expires_at"]
    assert extended == 1
    assert timedelta(seconds=9) < after - before < timedelta(seconds=20)


def test_no_lease_is_extended_two_minutes_after_its_claim(engine: Engine) -> None:
    held = claimed(engine)

    def extend_after(seconds: float) -> int:
        later(engine, seconds, held.job["id"])
        with writing(engine) as transaction:
            return lifecycle.extend(transaction, [held], longest_seconds=120)

    assert [extend_after(110), extend_after(11)] == [1, 0]


def test_a_lost_lease_is_not_extended(engine: Engine) -> None:
    lost = claimed(engine)
    current = claim_again(engine, lost)
    ended = claimed(engine)
    succeed(engine, ended)

    with writing(engine) as transaction:
        extended = lifecycle.extend(transaction, [lost, ended], longest_seconds=120)

    assert extended == 0
    assert is_as_claimed(engine, current)


def test_an_attempt_whose_lease_ran_out_can_be_ended_by_anybody_once(engine: Engine) -> None:
    held = claimed(engine)
    claimed(engine)
    later(engine, 16, held.job["id"])

    with writing(engine) as transaction:
        silent = lifecycle.expired(transaction, 10)

    assert [(each.job["id"], each.lease_token, each.number) for each in silent] == [
        (held.job["id"], held.lease_token, held.number)
    ]
    assert succeed(engine, held)
    assert not fail(engine, silent[0])


def test_unclaimed_jobs_wait_again_without_using_an_attempt(engine: Engine) -> None:
    lost = dispatched(engine, lease_seconds=5)
    fresh = dispatched(engine, lease_seconds=5)
    running = claimed(engine).job["id"]
    later(engine, 6, lost)

    with writing(engine) as transaction:
        rescued = lifecycle.rescue_unclaimed(transaction)

    row = job_row(engine, lost)
    assert rescued == 1
    assert (row["state"], row["attempt"], row["lease_token"]) == (State.RETRYING, 0, None)
    assert job_row(engine, fresh)["state"] == State.DISPATCHED
    assert job_row(engine, running)["state"] == State.RUNNING


def test_jobs_that_could_not_be_published_wait_again_unless_claimed(engine: Engine) -> None:
    unpublished, somebody_elses = add_job(engine), add_job(engine)
    with writing(engine) as transaction:
        lifecycle.mark_dispatched(transaction, [unpublished], token=TOKEN, lease_seconds=5)
    dispatched(engine, somebody_elses)

    with writing(engine) as transaction:
        back = lifecycle.take_back(transaction, [unpublished, somebody_elses], token=TOKEN)

    assert back == 1
    assert job_row(engine, unpublished)["state"] == State.RETRYING
    assert job_row(engine, somebody_elses)["state"] == State.DISPATCHED


@pytest.mark.parametrize("state", State)
def test_a_job_that_cannot_be_tried_ends_while_it_waits(engine: Engine, state: State) -> None:
    job_id = add_job(engine, state=state)

    with writing(engine) as transaction:
        ended = lifecycle.fail_unclaimed(transaction, job_id, error=ERROR)

    assert ended == (state in WAITING_STATES)
    assert len(events_of(engine, job_id)) == ended
    assert job_row(engine, job_id)["state"] == (State.FAILED if ended else state)


def test_a_cancelled_job_has_its_event(engine: Engine) -> None:
    job_id = add_job(engine)

    with writing(engine) as transaction:
        assert lifecycle.cancel(transaction, job_id)
        assert not lifecycle.cancel(transaction, job_id)

    assert [event["type"] for event in events_of(engine, job_id)] == ["customer_jobs.customer.create.cancelled"]


#: Every change there is, tried on a job in any state.
CHANGES: list[Callable[[Transaction, Claim], object]] = [
    lambda tx, held: lifecycle.claim(tx, as_read(tx, held.job["id"]), worker="w1", sending=None),
    lambda tx, held: lifecycle.mark_dispatched(tx, [held.job["id"]], token=TOKEN, lease_seconds=5),
    lambda tx, held: lifecycle.take_back(tx, [held.job["id"]], token=held.lease_token),
    lambda tx, held: lifecycle.postpone(tx, held.job, delay_seconds=1),
    lambda tx, held: lifecycle.start_reconciling(tx, held.job),
    lambda tx, held: lifecycle.rescue_unclaimed(tx),  # noqa: ARG005 - one signature for all
    lambda tx, held: lifecycle.succeed(tx, held, success(), entry()),
    lambda tx, held: lifecycle.retry_later(tx, held, entry(Verdict.RETRY), delay_seconds=1, error=ERROR),
    lambda tx, held: lifecycle.fail(tx, held, entry(Verdict.FAILED), error=ERROR),
    lambda tx, held: lifecycle.fail_unclaimed(tx, held.job["id"], error=ERROR),
    lambda tx, held: lifecycle.cancel(tx, held.job["id"]),
    lambda tx, held: lifecycle.suggest(tx, held.job["id"], CUSTOMER_ID),
    lambda tx, held: lifecycle.extend(tx, [held], longest_seconds=120),
]
#: The arrows of the design.
ARROWS = {
    State.QUEUED: {State.DISPATCHED, State.FAILED, State.CANCELLED},
    State.RETRYING: {State.DISPATCHED, State.FAILED, State.CANCELLED},
    State.DISPATCHED: {State.RUNNING, State.RETRYING},
    State.RUNNING: {State.SUCCEEDED, State.FAILED, State.RETRYING},
    State.SUCCEEDED: set(),
    State.FAILED: set(),
    State.CANCELLED: set(),
}


@pytest.mark.parametrize("state", State)
def test_nothing_leads_elsewhere_than_the_design_says(engine: Engine, state: State) -> None:
    reached = set()

    for apply in CHANGES:
        job_id = add_job(engine, state=state, lease_token=TOKEN)
        row = job_row(engine, job_id)
        later(engine, 120, job_id)
        with writing(engine) as transaction:
            apply(transaction, Claim(row, row["lease_token"], 1, row["created_at"]))
        after = job_row(engine, job_id)
        reached |= {State(after["state"])} - {state}
        assert len(events_of(engine, job_id)) == (after["state"] in FINAL_STATES and state not in FINAL_STATES)
        assert (after["lease_expires_at"] is not None) == (after["state"] in IN_FLIGHT_STATES)

    assert reached == ARROWS[state]


def test_a_decision_knows_what_has_happened_so_far(engine: Engine) -> None:
    held = claimed(engine)
    job_id = held.job["id"]
    retry_later(engine, held, ambiguous=True)
    for _ in range(3):
        held = claimed(engine, job_id)
        with writing(engine) as transaction:
            limited = entry(Verdict.RATE_LIMITED)
            lifecycle.retry_later(transaction, held, limited, delay_seconds=0, error=ERROR, attempt_used=False)
    later(engine, 100, job_id)
    held = claimed(engine, job_id)

    with reading(engine) as transaction:
        past = lifecycle.past(transaction, held, entry(Verdict.RATE_LIMITED))
        interrupted = lifecycle.past(transaction, held, entry(Verdict.RETRY))

    assert (past.ambiguous, past.abandoned, past.rate_limited) == (True, 0, 4)
    assert timedelta(seconds=99) < past.rate_limited_for < timedelta(seconds=120)
    assert past.since_first_sent is not None
    assert past.since_first_sent >= timedelta(seconds=100)
    assert (interrupted.rate_limited, interrupted.rate_limited_for) == (0, timedelta(0))


def test_an_emptied_ledger_decides_nothing_by_mistake(engine: Engine) -> None:
    job_id = add_job(engine)
    change(engine, job_id, state=State.RETRYING, attempt=3)

    held = claimed(engine, job_id)

    assert (held.number, held.job["attempt"]) == (1, 4)
    assert rows(engine, jobs)[0]["attempt"] == 4
