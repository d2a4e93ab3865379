"""What an answer does to its job: a success, or the match over all other answers, and the plan for another attempt."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import structlog

from customer_jobs import lifecycle
from customer_jobs.database import Transaction
from customer_jobs.lifecycle import Claim, Entry, entry_of, refusal, success_of
from customer_jobs.problems import OUTCOME_UNKNOWN, RATE_LIMITED_TOO_LONG, WORKER_DIED, Problem
from customer_jobs.vocabulary import Outcome, State, Verdict
from worker.answers import Answered, Frozen, KeyRefused, KeyReused, NotAnswered, RateLimited, Transient
from worker.credentials import pause
from worker.retry import MOST_ABANDONED, GiveUp, History, RetryPolicy, TryAgain, plan_rate_limited, plan_retry

MAX_REFUSAL_BYTES = 64 * 1024  #: Stripe's errors have one kilobyte; a larger one is not Stripe's.
FIRST_LOOK_SECONDS = 1.0  #: Before the first look for a customer that may exist; Stripe's list has no delay.

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Recorded:
    """What an attempt came to, for the log and for Celery: nothing of the customer's."""

    state: State
    outcome: Outcome | None = None
    code: str | None = None  #: Of the error, if there was one.
    delay_seconds: float | None = None  #: Until the next attempt.


LATE = Recorded(State.RUNNING, code="lease_lost")  #: Somebody else has taken over; the ledger has the answer.


@dataclass(frozen=True)
class Recorder:
    """Writes down what came of attempts under one retry policy."""

    policy: RetryPolicy
    draw: Callable[[], float]  #: Uniform in [0, 1), for the jitter.

    def record(self, transaction: Transaction, held: Claim, answer: NotAnswered, *, duration_ms: float) -> Recorded:
        """Record an answer that is no object."""
        problem = answer.problem
        match answer:
            case RateLimited():
                entry = entry_for(Verdict.RATE_LIMITED, answer, duration_ms)
                return self.try_again(transaction, held, entry, problem, answer)
            case Transient():
                entry = entry_for(Verdict.RETRY, answer, duration_ms)
                return self.try_again(transaction, held, entry, problem, answer)
            case KeyRefused():
                pause(transaction, held, problem)
            case KeyReused() | Frozen():
                log.error("idempotency key is stuck", job_id=held.job["id"], request_id=problem.request_id)
        return give_up(transaction, held, entry_for(Verdict.FAILED, answer, duration_ms), problem, answer)

    def try_again(
        self, transaction: Transaction, held: Claim, entry: Entry, problem: Problem, answer: NotAnswered | None = None
    ) -> Recorded:
        """Plan the next attempt after one that did not get through."""
        past = lifecycle.past(transaction, held, entry)
        history = History(
            attempt=held.job["attempt"],
            max_attempts=held.job["max_attempts"],
            since_first_sent=past.since_first_sent if past.ambiguous else None,
            abandoned=past.abandoned,
            rate_limited=past.rate_limited,
            rate_limited_for=past.rate_limited_for,
        )
        limited = entry.verdict is Verdict.RATE_LIMITED
        match (plan_rate_limited if limited else plan_retry)(history, self.policy, self.draw()):
            case TryAgain(delay_seconds):
                return wait(transaction, held, entry, problem, delay_seconds, attempt_used=not limited)
            case GiveUp(reason):
                if limited:
                    problem = replace(problem, code=RATE_LIMITED_TOO_LONG, message=reason)
                elif entry.verdict is Verdict.ABANDONED:
                    problem = replace(problem, code=WORKER_DIED, message=reason)
                return give_up(transaction, held, entry, problem, answer, transient=True)

    def abandon(self, transaction: Transaction, held: Claim) -> Recorded:
        """End an attempt whose worker fell silent, and plan the next."""
        problem = Problem("api_error", WORKER_DIED, "the worker fell silent during the attempt")
        entry = entry_of(Verdict.ABANDONED, problem)
        if not held.job["reconciling"]:
            entry = replace(entry, ambiguous=held.job["first_sent_at"] is not None)
            return self.try_again(transaction, held, entry, problem)
        if lifecycle.past(transaction, held, entry).abandoned >= MOST_ABANDONED:
            return fail(transaction, held, entry, replace(problem, code=OUTCOME_UNKNOWN), transient=True)
        return wait(transaction, held, entry, problem, FIRST_LOOK_SECONDS)


def wait(
    transaction: Transaction,
    held: Claim,
    entry: Entry,
    problem: Problem,
    delay_seconds: float,
    *,
    attempt_used: bool = True,
    reconciling: bool | None = None,
    prepared_anew: bool = False,
) -> Recorded:
    """Let the job wait for its next attempt."""
    error = problem.envelope(credential=held.job["credential"], transient=True, final=False)
    still_held = lifecycle.retry_later(
        transaction,
        held,
        entry,
        delay_seconds=delay_seconds,
        error=error,
        attempt_used=attempt_used,
        reconciling=reconciling,
        prepared_anew=prepared_anew,
    )
    return Recorded(State.RETRYING, code=problem.code, delay_seconds=delay_seconds) if still_held else LATE


def give_up(
    transaction: Transaction,
    held: Claim,
    entry: Entry,
    problem: Problem,
    answer: NotAnswered | None = None,
    *,
    transient: bool = False,
) -> Recorded:
    """Send nothing more: fail the job, or, where a create may have been executed, look for its customer."""
    if lifecycle.past(transaction, held, entry).ambiguous and not held.job["reconciling"]:
        return wait(transaction, held, entry, problem, FIRST_LOOK_SECONDS, reconciling=True)
    return fail(transaction, held, entry, problem, answer, transient=transient)


def fail(
    transaction: Transaction,
    held: Claim,
    entry: Entry,
    problem: Problem,
    answer: NotAnswered | None = None,
    *,
    transient: bool = False,
) -> Recorded:
    """End the job, with what Stripe answered last if it could be read."""
    error = problem.envelope(credential=held.job["credential"], transient=transient)
    result = refusal(answer.body, answer.headers) if answer is not None and _can_be_kept(answer.body) else None
    still_held = lifecycle.fail(transaction, held, entry, error=error, result=result)
    return Recorded(State.FAILED, code=problem.code or problem.type) if still_held else LATE


def _can_be_kept(body: Any) -> bool:
    """Whether there is a body, and one that the row can hold: whoever answers instead of Stripe may send anything."""
    try:
        return isinstance(body, dict) and len(json.dumps(body, allow_nan=False)) <= MAX_REFUSAL_BYTES
    except (ValueError, RecursionError):
        return False


def succeed(
    transaction: Transaction, held: Claim, answer: Answered, *, key_is_live: bool, duration_ms: float
) -> Recorded:
    """End the job with Stripe's answer; LATE if somebody else has taken over, see `adopt_late`."""
    success = success_of(
        held.job["kind"], answer.body, headers=answer.headers, replayed=answer.replayed, key_is_live=key_is_live
    )
    if not lifecycle.succeed(transaction, held, success, entry_of_success(answer, duration_ms)):
        return LATE
    return Recorded(State.SUCCEEDED, outcome=success.outcome)


def adopt_late(transaction: Transaction, held: Claim, customer_id: str) -> None:
    """Let the truth about a job that ended as `outcome_unknown` still arrive: a new job looks at this customer."""
    job = lifecycle.latest_retry(transaction, held.job["id"])
    if job is None:
        return
    if job["state"] != State.FAILED:
        # A person has retried it meanwhile, and that job may be looking.
        if job["id"] != held.job["id"] and lifecycle.suggest(transaction, job["id"], customer_id):
            log.warning("late answer", job_id=held.job["id"], customer_id=customer_id, retried_as=job["id"])
        return
    if (job["error"] or {}).get("code") != OUTCOME_UNKNOWN:
        return
    successor = lifecycle.retry_by_hand(transaction, job, candidate_customer_id=customer_id)
    if successor is not None:
        log.warning("late answer", job_id=job["id"], customer_id=customer_id, retried_as=successor["id"])


def entry_of_success(answer: Answered, duration_ms: float) -> Entry:
    """The ledger's words for an answer with an object."""
    return Entry(
        Verdict.SUCCEEDED,
        http_status=answer.http_status,
        request_id=answer.request_id,
        replayed=answer.replayed,
        duration_ms=duration_ms,
    )


def entry_for(verdict: Verdict, answer: NotAnswered, duration_ms: float) -> Entry:
    """The ledger's words for any other answer."""
    return replace(
        entry_of(verdict, answer.problem),
        ambiguous=isinstance(answer, Frozen) or (isinstance(answer, Transient) and answer.ambiguous),
        rate_limited_reason=answer.reason if isinstance(answer, RateLimited) else None,
        replayed=answer.replayed,
        duration_ms=duration_ms,
    )
