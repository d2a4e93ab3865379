"""The life of one attempt: claim the job (a transaction), call Stripe (none open), record what came back (another)."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import structlog
from sqlalchemy import Engine

from customer_jobs import lifecycle
from customer_jobs.database import Transaction, alone, reading, writing
from customer_jobs.errors import InvalidJob, Unavailable
from customer_jobs.lanes import Lane
from customer_jobs.lifecycle import Claim, Entry, Sending, Success, entry_of
from customer_jobs.payload import names_of
from customer_jobs.problems import INVALID_PAYLOAD, OUTCOME_UNKNOWN, UNKNOWN_CREDENTIAL, Problem
from customer_jobs.request import Request, request_of
from customer_jobs.vocabulary import Kind, State, Verdict
from worker.answers import Answer, Answered, KeyRefused, NotAnswered
from worker.credentials import has_to_wait
from worker.gateway import Gateway
from worker.leases import CLOCKS, LONGEST_SECONDS, Clock, LeaseKeeper, too_late_after
from worker.local_copy import LINK_PAUSE_SECONDS, NotYet, answer_from_copy, may_be_known
from worker.reconcile import Looked, charge, look, record_look, search_for
from worker.record import LATE, Recorded, Recorder, adopt_late, fail, succeed
from worker.retry import RetryPolicy

RECORD_FOR_SECONDS = 60  #: An answer is worth waiting for the database; after that the lease has run out anyway.
RECORD_PAUSE_SECONDS = 0.5  #: Between two tries to record.
ELSEWHERE_PAUSE_SECONDS = 1.0  #: Before a job is handed out again that met a worker without a key that it can use.

log = structlog.get_logger(__name__)

Call = Callable[[Gateway, Request], Answer]
#: Writes down what came back, given the milliseconds that it took; raises Unavailable, and may be repeated then.
Recording = Callable[[float], Recorded]
Attempt = Callable[[Gateway], Recording]  #: Speaks to Stripe; returns how to record what came back.


class Runner:
    """Makes attempts. One in each process, used by all its threads."""

    def __init__(
        self,
        engine: Engine,
        gateway: Gateway,
        *,
        when_recorded: Callable[[], None] = lambda: None,
        draw: Callable[[], float] = random.random,
        clocks: Sequence[Clock] = CLOCKS,
    ) -> None:
        self._engine = engine
        self._gateway = gateway
        self._leases = LeaseKeeper(engine)
        self._when_recorded = when_recorded
        self._draw = draw
        self._clocks = clocks
        self._refused: set[str] = set()  #: Fingerprints of keys of this process that Stripe has refused.
        self._lacking: set[str] = set()  #: Credentials that jobs came for and this process has no key of.

    def attempt(self, job_id: str, call: Call, policy: RetryPolicy, *, worker: str) -> Recorded | None:
        """Make one attempt at a dispatched job; None if there is nothing to do, as after a doubled message."""
        # Before the claim: whenever this process stops from now on, it knows when it goes on.
        too_late = too_late_after(LONGEST_SECONDS, self._clocks)
        claimed = self._claim(job_id, call, policy, worker)
        if claimed is None:
            log.debug("nothing to claim", job_id=job_id)
            return None
        held, what = claimed
        if isinstance(what, Recorded):
            duration_ms, recorded = None, what
        else:
            with self._leases.holding(held):
                began = time.perf_counter()
                record = what(self._gateway.unless(too_late))
                duration_ms = round((time.perf_counter() - began) * 1000, 3)
                recorded = self._until_recorded(held, record, duration_ms)
        self._when_recorded()
        _log_attempt(held, recorded, duration_ms)
        return recorded

    def abandon(self, transaction: Transaction, held: Claim, policy: RetryPolicy) -> Recorded:
        """End an attempt whose worker fell silent, and plan the next."""
        return Recorder(policy, self._draw).abandon(transaction, held)

    def _claim(
        self, job_id: str, call: Call, policy: RetryPolicy, worker: str
    ) -> tuple[Claim, Attempt | Recorded] | None:
        # Every change below holds only while the job is dispatched as it was when it was read.
        with reading(self._engine) as transaction:
            job = lifecycle.read(transaction, job_id)
        if job is None or job["state"] != State.DISPATCHED:
            return None
        try:
            request = request_of(job)
        except InvalidJob as error:
            message = f"{error.field}: {error.problem}"
            problem = Problem("invalid_request_error", INVALID_PAYLOAD, message, param=error.field)
            return self._refuse(job, problem, worker)
        if not self._gateway.knows(request.credential):
            if job["key_fingerprint"] is not None:
                self._leave_to_others(job)
                return None
            problem = Problem("authentication_error", UNKNOWN_CREDENTIAL, "no worker has had a key of this name")
            return self._refuse(job, problem, worker)
        key = self._gateway.fingerprint(request.credential)
        if has_to_wait(job, key, was_refused=key in self._refused):
            self._postpone(job, ELSEWHERE_PAUSE_SECONDS)
            return None
        # Another worker may have learnt whose key this is, where Stripe did not answer this one at its start.
        learnt = (job["account_id"],) if job["account_id"] and job["key_fingerprint"] == key else ()
        if _sent_elsewhere(job, (*self._gateway.identities(request.credential), *learnt)):
            message = "the key belongs to another account than the one that the create was sent to"
            return self._refuse(job, Problem("api_error", OUTCOME_UNKNOWN, message), worker)
        if _window_is_over(job, policy):
            with alone(self._engine) as transaction:
                lifecycle.start_reconciling(transaction, job)
            return None
        if may_be_known(job, request.params):
            with reading(self._engine) as transaction:
                is_live = self._gateway.is_live(request.credential)
                known = answer_from_copy(transaction, job, request.params, livemode=is_live)
            match known:
                case Success():
                    return self._succeed_without_call(job, known, worker)
                case NotYet():
                    self._postpone(job, LINK_PAUSE_SECONDS)
                    return None
        return self._prepare(job, request, call, policy, worker)

    def _prepare(
        self, job: Mapping[str, Any], request: Request, call: Call, policy: RetryPolicy, worker: str
    ) -> tuple[Claim, Attempt] | None:
        """Claim the job and say what its attempt is: the task's call, or a look for a customer that may exist."""
        may_create = request.kind == Kind.CUSTOMER_CREATE and not job["reconciling"]
        sending = Sending(
            params=request.frozen(),
            sent_to=self._gateway.identities(request.credential)[0],
            idempotency_key=request.idempotency_key if may_create else None,
            may_create=may_create,
            uses_attempt=not job["reconciling"],
        )
        # What is looked for is read together with the claim: a look that cannot even begin uses up no attempt.
        with (writing if job["reconciling"] else alone)(self._engine) as transaction:
            held = lifecycle.claim(transaction, job, worker=worker, sending=sending)
            if held is None:
                return None
            search = search_for(transaction, held, request.params) if job["reconciling"] else None
        held = replace(held, key_fingerprint=self._gateway.fingerprint(request.credential))
        if search is not None:

            def look_for_it(stripe: Gateway) -> Recording:
                looked, calls = look(stripe, search)
                self._notice(held, looked)
                self._charge(held, calls - 1)
                return lambda duration_ms: self._record_look(held, looked, duration_ms)

            return held, look_for_it

        recorder = Recorder(policy, self._draw)
        is_live = self._gateway.is_live(request.credential)

        def make_the_call(stripe: Gateway) -> Recording:
            answer = call(stripe, request)
            self._notice(held, answer)
            if isinstance(answer, Answered):
                return lambda duration_ms: self._succeed(held, answer, is_live, duration_ms)
            return lambda duration_ms: self._try_again_or_give_up(held, answer, recorder, duration_ms)

        return held, make_the_call

    def _succeed(self, held: Claim, answer: Answered, key_is_live: bool, duration_ms: float) -> Recorded:
        # What nearly every job comes to is one statement.
        with alone(self._engine) as transaction:
            recorded = succeed(transaction, held, answer, key_is_live=key_is_live, duration_ms=duration_ms)
        if recorded is LATE:
            with writing(self._engine) as transaction:
                adopt_late(transaction, held, answer.body["id"])
        return recorded

    def _try_again_or_give_up(
        self, held: Claim, answer: NotAnswered, recorder: Recorder, duration_ms: float
    ) -> Recorded:
        with writing(self._engine) as transaction:
            return recorder.record(transaction, held, answer, duration_ms=duration_ms)

    def _record_look(self, held: Claim, looked: Looked | NotAnswered, duration_ms: float) -> Recorded:
        with writing(self._engine) as transaction:
            return record_look(transaction, held, looked, duration_ms=duration_ms)

    def _charge(self, held: Claim, calls: int) -> None:
        job = held.job
        lane = Lane(job["credential"], job["stripe_account"] or "", reconciling=True, kind=job["kind"])
        for limit in (lane.endpoint, lane.account) if calls > 0 else ():
            # What is not charged, as the database is away, is only felt by Stripe.
            with suppress(Unavailable), alone(self._engine) as transaction:
                charge(transaction, limit, calls)

    def _leave_to_others(self, job: Mapping[str, Any]) -> None:
        """Put back a job of a credential that only other workers have a key of, such as those just started with it."""
        name = job["credential"]
        if name not in self._lacking:
            self._lacking.add(name)
            log.warning("no key here", credential=name, remedy="its jobs wait for a worker with a key of this name")
        self._postpone(job, ELSEWHERE_PAUSE_SECONDS)

    def _postpone(self, job: Mapping[str, Any], delay_seconds: float) -> None:
        with alone(self._engine) as transaction:
            lifecycle.postpone(transaction, job, delay_seconds=delay_seconds)

    def _succeed_without_call(
        self, job: Mapping[str, Any], success: Success, worker: str
    ) -> tuple[Claim, Recorded] | None:
        with writing(self._engine) as transaction:
            held = lifecycle.claim(transaction, job, worker=worker, sending=None)
            if held is None:
                return None
            lifecycle.succeed(transaction, held, success, Entry(Verdict.SUCCEEDED))
        return held, Recorded(State.SUCCEEDED, outcome=success.outcome)

    def _refuse(self, job: Mapping[str, Any], problem: Problem, worker: str) -> tuple[Claim, Recorded] | None:
        """End a job that must not be sent: the attempt is in the ledger, Stripe never heard of it."""
        with writing(self._engine) as transaction:
            held = lifecycle.claim(transaction, job, worker=worker, sending=None)
            if held is None:
                return None
            return held, fail(transaction, held, entry_of(Verdict.FAILED, problem), problem)

    def _notice(self, held: Claim, answer: object) -> None:
        if isinstance(answer, KeyRefused) and held.key_fingerprint is not None:
            self._refused.add(held.key_fingerprint)

    def _until_recorded(self, held: Claim, record: Recording, duration_ms: float) -> Recorded:
        """Record through a database that is away for a while: the answer must not be lost with it."""
        deadline = time.monotonic() + RECORD_FOR_SECONDS
        while True:
            try:
                return record(duration_ms)
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
                log.warning("answer not recorded yet", job_id=held.job["id"])
                time.sleep(RECORD_PAUSE_SECONDS)


def _sent_elsewhere(job: Mapping[str, Any], identities: tuple[str, ...]) -> bool:
    """Whether a create that may have been executed went to another account than today's key belongs to."""
    return job["first_sent_at"] is not None and job["sent_to"] not in identities


def _window_is_over(job: Mapping[str, Any], policy: RetryPolicy) -> bool:
    """Whether Stripe may have forgotten the idempotency key: sending the create again could make a second customer."""
    if policy.window is None or job["first_sent_at"] is None or job["reconciling"]:
        return False
    return bool(job["read_at"] - job["first_sent_at"] >= policy.window)


def _log_attempt(held: Claim, recorded: Recorded, duration_ms: float | None) -> None:
    job = held.job
    log.info(
        "attempt",
        job_id=job["id"],
        kind=job["kind"],
        **names_of(job),
        attempt=held.number,
        state=recorded.state.value,
        outcome=recorded.outcome,
        code=recorded.code,
        duration_ms=duration_ms,
        retry_in_seconds=None if recorded.delay_seconds is None else round(recorded.delay_seconds, 3),
    )
