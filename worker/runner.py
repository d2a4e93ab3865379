"""The life of one attempt: claim the job (a transaction), call Stripe (none open), record what came back (another)."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import structlog
from sqlalchemy import Engine

from customer_jobs import lifecycle
from customer_jobs.database import Transaction, writing
from customer_jobs.errors import InvalidJob, Unavailable
from customer_jobs.lifecycle import Claim, Entry, Sending, Success, entry_of, success_of
from customer_jobs.problems import (
    INVALID_PAYLOAD,
    OUTCOME_UNKNOWN,
    RATE_LIMITED_TOO_LONG,
    UNKNOWN_CREDENTIAL,
    WORKER_DIED,
    Problem,
)
from customer_jobs.request import Request, request_of
from customer_jobs.vocabulary import Kind, Outcome, State, Verdict
from worker.answers import Answer, Answered, Frozen, KeyReused, NotAnswered, RateLimited, Transient
from worker.gateway import Gateway
from worker.leases import LeaseKeeper
from worker.local_copy import LINK_PAUSE_SECONDS, NotYet, answer_from_copy
from worker.retry import GiveUp, History, RetryPolicy, TryAgain, plan_rate_limited, plan_retry

RECORD_FOR_SECONDS = 60  #: An answer is worth waiting for the database; after that the lease has run out anyway.
RECORD_PAUSE_SECONDS = 0.5  #: Between two tries to record.

log = structlog.get_logger(__name__)

Call = Callable[[Gateway, Request], Answer]
T = TypeVar("T")


@dataclass(frozen=True)
class Recorded:
    """What an attempt came to, for the log and for Celery: nothing of the customer's."""

    state: State
    outcome: Outcome | None = None
    code: str | None = None  #: Of the error, if there was one.
    delay_seconds: float | None = None  #: Until the next attempt.


class Runner:
    """Makes attempts. One in each process, used by all its threads."""

    def __init__(
        self,
        engine: Engine,
        gateway: Gateway,
        *,
        when_recorded: Callable[[], None] = lambda: None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._engine = engine
        self._gateway = gateway
        self._leases = LeaseKeeper(engine)
        self._when_recorded = when_recorded
        self._draw = draw

    def attempt(self, job_id: str, call: Call, policy: RetryPolicy, *, worker: str) -> Recorded | None:
        """Make one attempt at a dispatched job; None if there is nothing to do, as after a doubled message."""
        with writing(self._engine) as transaction:
            claimed = self._claim(transaction, job_id, worker)
        if claimed is None:
            log.debug("nothing to claim", job_id=job_id)
            return None
        held, prepared = claimed
        if isinstance(prepared, Request):
            with self._leases.holding(held):
                began = time.perf_counter()
                answer = call(self._gateway, prepared)
                duration_ms = round((time.perf_counter() - began) * 1000, 3)
                recorded = self._until_recorded(held, lambda tx: self._record(tx, held, answer, policy, duration_ms))
        else:
            duration_ms, recorded = None, prepared
        self._when_recorded()
        _log_attempt(held, recorded, duration_ms)
        return recorded

    def _claim(self, transaction: Transaction, job_id: str, worker: str) -> tuple[Claim, Request | Recorded] | None:
        job = lifecycle.read(transaction, job_id)
        if job is None or job["state"] != State.DISPATCHED:
            return None
        try:
            request = request_of(job)
        except InvalidJob as error:
            message = f"{error.field}: {error.problem}"
            problem = Problem("invalid_request_error", INVALID_PAYLOAD, message, param=error.field)
            return self._refuse(transaction, job, problem, worker)
        if not self._gateway.knows(request.credential):
            problem = Problem("authentication_error", UNKNOWN_CREDENTIAL, "no worker has a key of this name")
            return self._refuse(transaction, job, problem, worker)
        match answer_from_copy(transaction, job, livemode=self._gateway.is_live(request.credential)):
            case Success() as success:
                return self._succeed_without_call(transaction, job, success, worker)
            case NotYet():
                lifecycle.postpone(transaction, job_id, delay_seconds=LINK_PAUSE_SECONDS)
                return None
        sent_to = self._gateway.fingerprint(request.credential)
        if (reason := _must_not_be_sent(job, sent_to)) is not None:
            return self._refuse(transaction, job, Problem("api_error", OUTCOME_UNKNOWN, reason), worker)
        creates = request.kind == Kind.CUSTOMER_CREATE
        key = request.idempotency_key if creates else None
        sending = Sending(request.frozen(), sent_to, key, may_create=creates)
        held = lifecycle.claim(transaction, job_id, worker=worker, sending=sending)
        return (held, request) if held is not None else None

    def _succeed_without_call(
        self, transaction: Transaction, job: Mapping[str, Any], success: Success, worker: str
    ) -> tuple[Claim, Recorded] | None:
        held = lifecycle.claim(transaction, job["id"], worker=worker, sending=None)
        if held is None:
            return None
        lifecycle.succeed(transaction, held, success, Entry(Verdict.SUCCEEDED))
        return held, Recorded(State.SUCCEEDED, outcome=success.outcome)

    def _refuse(
        self, transaction: Transaction, job: Mapping[str, Any], problem: Problem, worker: str
    ) -> tuple[Claim, Recorded] | None:
        """End a job that must not be sent: the attempt is in the ledger, Stripe never heard of it."""
        held = lifecycle.claim(transaction, job["id"], worker=worker, sending=None)
        if held is None:
            return None
        return held, _fail(transaction, held, _entry(Verdict.FAILED, problem), problem, transient=False)

    def _record(
        self, transaction: Transaction, held: Claim, answer: Answer, policy: RetryPolicy, duration_ms: float
    ) -> Recorded:
        match answer:
            case Answered():
                return _succeed(transaction, held, answer, self._gateway.is_live(held.job["credential"]), duration_ms)
            case RateLimited():
                entry = _entry(Verdict.RATE_LIMITED, answer.problem, answer, duration_ms)
                return self._try_again(transaction, held, entry, answer.problem, policy)
            case Transient():
                entry = _entry(Verdict.RETRY, answer.problem, answer, duration_ms)
                return self._try_again(transaction, held, entry, answer.problem, policy)
            case Frozen() | KeyReused():
                entry = _entry(Verdict.FAILED, answer.problem, answer, duration_ms)
                log.error("idempotency key is stuck", job_id=held.job["id"], request_id=answer.problem.request_id)
                return _fail(transaction, held, entry, answer.problem, transient=False)
            case _:
                entry = _entry(Verdict.FAILED, answer.problem, answer, duration_ms)
                return _fail(transaction, held, entry, answer.problem, transient=False)

    def _try_again(
        self, transaction: Transaction, held: Claim, entry: Entry, problem: Problem, policy: RetryPolicy
    ) -> Recorded:
        past = lifecycle.past(transaction, held, entry)
        job = held.job
        history = History(
            attempt=job["attempt"],
            max_attempts=job["max_attempts"],
            since_first_sent=past.since_first_sent if past.ambiguous else None,
            abandoned=past.abandoned,
            rate_limited=past.rate_limited,
            rate_limited_for=past.rate_limited_for,
        )
        limited = entry.verdict is Verdict.RATE_LIMITED
        plan = (plan_rate_limited if limited else plan_retry)(history, policy, self._draw())
        match plan:
            case TryAgain(delay_seconds):
                error = problem.envelope(credential=job["credential"], transient=True, final=False)
                still_held = lifecycle.retry_later(
                    transaction, held, entry, delay_seconds=delay_seconds, error=error, attempt_used=not limited
                )
                return Recorded(State.RETRYING, code=problem.code, delay_seconds=delay_seconds) if still_held else _LATE
            case GiveUp(reason):
                if limited:
                    problem = replace(problem, code=RATE_LIMITED_TOO_LONG, message=reason)
                elif past.abandoned >= 1 and entry.verdict is Verdict.ABANDONED:
                    problem = Problem("api_error", WORKER_DIED, reason)
                return _fail(transaction, held, entry, problem, transient=True, past=past)

    def abandon(self, transaction: Transaction, held: Claim, policy: RetryPolicy) -> Recorded:
        """End an attempt whose worker fell silent, and plan the next."""
        may_have_been_sent = held.job["first_sent_at"] is not None and not held.job["reconciling"]
        entry = Entry(Verdict.ABANDONED, ambiguous=may_have_been_sent, error_type="api_error", error_code=WORKER_DIED)
        problem = Problem("api_error", WORKER_DIED, "the worker fell silent during the attempt")
        return self._try_again(transaction, held, entry, problem, policy)

    def _until_recorded(self, held: Claim, record: Callable[[Transaction], T]) -> T:
        """Record through a database that is away for a while: the answer must not be lost with it."""
        deadline = time.monotonic() + RECORD_FOR_SECONDS
        while True:
            try:
                with writing(self._engine) as transaction:
                    return record(transaction)
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
                log.warning("answer not recorded yet", job_id=held.job["id"])
                time.sleep(RECORD_PAUSE_SECONDS)


_LATE = Recorded(State.RUNNING, code="lease_lost")  #: Somebody else has taken over; the ledger has the answer.


def _must_not_be_sent(job: Mapping[str, Any], sent_to: str) -> str | None:
    """Why the parameters of a create that may have been executed must not be sent again, if so."""
    if job["kind"] != Kind.CUSTOMER_CREATE or job["first_sent_at"] is None:
        return None
    if job["sent_to"] != sent_to:
        return "the key has changed since the first attempt, and with it perhaps the account"
    return None


def _succeed(
    transaction: Transaction, held: Claim, answer: Answered, key_is_live: bool, duration_ms: float
) -> Recorded:
    success = success_of(
        held.job["kind"], answer.body, headers=answer.headers, replayed=answer.replayed, key_is_live=key_is_live
    )
    entry = Entry(
        Verdict.SUCCEEDED,
        http_status=answer.http_status,
        request_id=answer.request_id,
        replayed=answer.replayed,
        duration_ms=duration_ms,
    )
    if not lifecycle.succeed(transaction, held, success, entry):
        return _LATE
    return Recorded(State.SUCCEEDED, outcome=success.outcome)


def _fail(
    transaction: Transaction,
    held: Claim,
    entry: Entry,
    problem: Problem,
    *,
    transient: bool,
    past: lifecycle.Past | None = None,
) -> Recorded:
    past = past or lifecycle.past(transaction, held, entry)
    if past.ambiguous and problem.code != OUTCOME_UNKNOWN:
        seen = f"{problem.message or problem.code or problem.type}; an earlier attempt may have created the customer"
        problem = replace(problem, code=OUTCOME_UNKNOWN, message=seen)
    error = problem.envelope(credential=held.job["credential"], transient=transient)
    still_held = lifecycle.fail(transaction, held, entry, error=error)
    return Recorded(State.FAILED, code=problem.code or problem.type) if still_held else _LATE


def _entry(
    verdict: Verdict, problem: Problem, answer: NotAnswered | None = None, duration_ms: float | None = None
) -> Entry:
    return replace(
        entry_of(verdict, problem),
        ambiguous=isinstance(answer, Frozen) or (isinstance(answer, Transient) and answer.ambiguous),
        rate_limited_reason=answer.reason if isinstance(answer, RateLimited) else None,
        replayed=answer is not None and answer.replayed,
        duration_ms=duration_ms,
    )


def _log_attempt(held: Claim, recorded: Recorded, duration_ms: float | None) -> None:
    job = held.job
    log.info(
        "attempt",
        job_id=job["id"],
        kind=job["kind"],
        credential=job["credential"],
        stripe_account=job["stripe_account"],
        attempt=held.number,
        state=recorded.state.value,
        outcome=recorded.outcome,
        code=recorded.code,
        duration_ms=duration_ms,
        retry_in_seconds=None if recorded.delay_seconds is None else round(recorded.delay_seconds, 3),
    )
