"""Settling a create that may have been executed: look for the customer by our metadata, adopt it, never send again.

Looking up lists, which shows a customer at once; search lags behind by a minute and would miss it.
Source: https://docs.stripe.com/search#data-freshness
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import select, tuple_, update

from customer_jobs import lifecycle
from customer_jobs.database import Transaction
from customer_jobs.lanes import Endpoint
from customer_jobs.lifecycle import Claim, Entry, Success
from customer_jobs.payload import METADATA_JOB_ID
from customer_jobs.problems import OUTCOME_UNKNOWN, Problem
from customer_jobs.schema import attempts, jobs, lanes
from customer_jobs.vocabulary import Outcome, State, Verdict
from worker.answers import Answered, KeyRefused, NotAnswered, RateLimited, Rejected
from worker.credentials import pause
from worker.gateway import Gateway
from worker.record import LATE, Recorded, entry_for, entry_of_success, fail, wait
from worker.retry import CAP_SECONDS

LOOKS = 3  #: A request that timed out may still be under way at Stripe while we look.
LOOK_PAUSE_SECONDS = 60.0  #: Three looks over two minutes.
OFTEN = 5  #: Looks that Stripe does not answer before they become rarer: it may be away for hours.
WINDOW = timedelta(minutes=10)  #: Around an attempt, for clocks that disagree and requests that dawdle.
PAGE_SIZE = 100  #: Stripe's largest page. Source: https://docs.stripe.com/api/pagination
NOT_FOUND_YET = "customer_not_found_yet"
LONGEST_CHAIN = 20  #: Retries by hand of retries by hand, followed back.

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Search:
    """Which customer to look for, and where."""

    job_ids: frozenset[str]  #: Any of these in its metadata makes it ours.
    email: str | None
    windows: tuple[tuple[datetime, datetime], ...]  #: When it may have been created.
    candidate: str | None  #: An id that a webhook or a late answer named.
    credential: str
    stripe_account: str | None


@dataclass(frozen=True)
class Looked:
    """The customers found, oldest first, with the last answer that Stripe gave."""

    customers: tuple[Mapping[str, Any], ...]
    answer: Answered | None  #: None where there was nothing to ask.


def search_for(transaction: Transaction, held: Claim, params: Mapping[str, Any]) -> Search:
    """Where the customer of a job would be: by its e-mail, and around each attempt that may have made it."""
    ids = [held.job["id"]]
    forerunner = held.job["retry_of"]
    while forerunner is not None and len(ids) < LONGEST_CHAIN:
        ids.append(forerunner)
        row = transaction.row(select(jobs.c.retry_of).where(jobs.c.id == forerunner))
        forerunner = row["retry_of"] if row is not None else None
    sent = select(attempts.c.started_at).where(attempts.c.job_id.in_(ids), lifecycle.may_be_executed())
    times = [row["started_at"] for row in transaction.rows(sent)]
    if not times and held.job["first_sent_at"] is not None:
        times = [held.job["first_sent_at"]]
    email = params.get("email")
    return Search(
        job_ids=frozenset(ids),
        email=email if isinstance(email, str) and email else None,
        windows=_merged(times),
        candidate=held.job["candidate_customer_id"],
        credential=held.job["credential"],
        stripe_account=held.job["stripe_account"],
    )


def look(gateway: Gateway, search: Search) -> tuple[Looked | NotAnswered, int]:
    """Look for the customer, at the likeliest place first; and how many calls it took.

    What Stripe did not answer ends the look. A place that it refuses to show, such as a list by an e-mail it does not
    like, leaves the others.
    """
    refused: Rejected | None = None
    last: Answered | None = None
    calls = 0
    for pages in _places(gateway, search):
        found: dict[str, Mapping[str, Any]] = {}
        refused = None
        for answer in pages:
            calls += 1
            if isinstance(answer, Rejected):
                refused = answer
                break
            if not isinstance(answer, Answered):
                return answer, calls
            last = answer
            found |= {each["id"]: each for each in answer.body["data"] if _job_id_of(each) in search.job_ids}
        if found:
            oldest_first = sorted(found.values(), key=lambda each: (each.get("created") or 0, each["id"]))
            return Looked(tuple(oldest_first), last), calls
    return refused or Looked((), last), calls


def charge(transaction: Transaction, limit: Endpoint, calls: int) -> None:
    """Take calls that were made without having been handed out from what a limit allows from now on.

    A look leaves with one call and asks for as many pages as there are. One limit in each transaction: the dispatcher
    locks several, in an order of its own.
    """
    is_it = tuple_(lanes.c.credential, lanes.c.stripe_account, lanes.c.kind) == tuple_(*limit)
    transaction.change(update(lanes).where(is_it).values(tokens=lanes.c.tokens - calls))


def record_look(transaction: Transaction, held: Claim, looked: Looked | NotAnswered, *, duration_ms: float) -> Recorded:
    """Adopt the customer, look again later, or say that nobody knows."""
    if isinstance(looked, NotAnswered):
        if isinstance(looked, Rejected):
            return _unknown(transaction, held, entry_for(Verdict.FAILED, looked, duration_ms), looked.problem)
        if isinstance(looked, KeyRefused):
            pause(transaction, held, looked.problem)
        limited = isinstance(looked, RateLimited)
        entry = entry_for(Verdict.RATE_LIMITED if limited else Verdict.RETRY, looked, duration_ms)
        # Whoever cannot look knows no more than before; looking again costs nothing but time.
        tries = 0 if limited else lifecycle.tries_since_sent(transaction, held)
        rarer = 2.0 ** min(max(tries - OFTEN, 0), 10)
        pause_seconds = min(LOOK_PAUSE_SECONDS * rarer, CAP_SECONDS)
        return wait(transaction, held, replace(entry, ambiguous=False), looked.problem, pause_seconds)
    if looked.customers:
        return _adopt(transaction, held, looked, duration_ms)
    looks, was_sent = lifecycle.looks_since_sent(transaction, held, NOT_FOUND_YET)
    looks += 1
    entry = Entry(
        Verdict.RETRY,
        http_status=looked.answer.http_status if looked.answer else None,
        request_id=looked.answer.request_id if looked.answer else None,
        error_type="api_error",
        error_code=NOT_FOUND_YET,
        duration_ms=duration_ms,
    )
    problem = _problem_before(held.job["error"])
    candidate = lifecycle.suggested(transaction, held.job["id"])
    if looks < LOOKS or candidate != held.job["candidate_customer_id"]:  # It has been named since the look began.
        return wait(transaction, held, entry, problem, LOOK_PAUSE_SECONDS)
    if held.job["retry_of"] is not None and not was_sent and candidate is None:
        # A person asked for another try, and what the old job left open is settled as well as it can be. Where a late
        # answer or Stripe itself has named a customer there was one, whatever became of it: nobody asked for another.
        return wait(transaction, held, entry, problem, 0.0, reconciling=False, prepared_anew=True)
    words = f"{problem.message or 'no answer from Stripe'}; no customer of this job was found in {looks} looks"
    return _unknown(transaction, held, replace(entry, verdict=Verdict.FAILED), replace(problem, message=words))


def _unknown(transaction: Transaction, held: Claim, entry: Entry, problem: Problem) -> Recorded:
    return fail(transaction, held, entry, replace(problem, code=OUTCOME_UNKNOWN), transient=True)


def _problem_before(error: Any) -> Problem:
    """What led to the look, from the row."""
    known = error if isinstance(error, Mapping) else {}
    return Problem(
        "api_error",
        known.get("code"),
        known.get("message"),
        request_id=known.get("request_id"),
        http_status=known.get("http_status"),
    )


def _adopt(transaction: Transaction, held: Claim, looked: Looked, duration_ms: float) -> Recorded:
    if len(looked.customers) > 1:
        ids = [each["id"] for each in looked.customers]
        log.error("several customers of one job", job_id=held.job["id"], customer_ids=ids, adopted=ids[0])
    customer = looked.customers[0]
    assert looked.answer is not None  # noqa: S101 - it was found in one
    success = Success(Outcome.ADOPTED, customer, looked.answer.headers, livemode=customer.get("livemode") is True)
    if not lifecycle.succeed(transaction, held, success, entry_of_success(looked.answer, duration_ms)):
        return LATE
    return Recorded(State.SUCCEEDED, outcome=Outcome.ADOPTED)


def _places(gateway: Gateway, search: Search) -> Iterator[Iterable[Answered | NotAnswered]]:
    """The places to look at, each as pages of a list."""
    if search.candidate is not None:
        yield _candidate(gateway, search, search.candidate)
    if search.email is not None:
        yield _pages(gateway, search, {"email": search.email})
    for since, until in search.windows:
        yield _pages(gateway, search, {"created": {"gte": int(since.timestamp()), "lte": int(until.timestamp()) + 1}})


def _candidate(gateway: Gateway, search: Search, customer_id: str) -> list[Answered | NotAnswered]:
    answer = gateway.fetch_customer(customer_id, credential=search.credential, stripe_account=search.stripe_account)
    match answer:
        case Answered():
            return [replace(answer, body={"data": [answer.body]})]
        case Rejected():
            return []  # There is no such customer: look elsewhere.
        case _:
            return [answer]


def _pages(gateway: Gateway, search: Search, where: Mapping[str, Any]) -> Iterator[Answered | NotAnswered]:
    params = {**where, "limit": PAGE_SIZE}
    while True:
        answer = gateway.list_customers(params, credential=search.credential, stripe_account=search.stripe_account)
        yield answer
        if not isinstance(answer, Answered) or not answer.body.get("has_more") or not answer.body["data"]:
            return
        params = {**params, "starting_after": answer.body["data"][-1]["id"]}


def _merged(times: Sequence[datetime]) -> tuple[tuple[datetime, datetime], ...]:
    """The windows around these times, without overlaps."""
    merged: list[tuple[datetime, datetime]] = []
    for time in sorted(times):
        since, until = time - WINDOW, time + WINDOW
        if merged and since <= merged[-1][1]:
            merged[-1] = (merged[-1][0], until)
        else:
            merged.append((since, until))
    return tuple(merged)


def _job_id_of(customer: Any) -> str | None:
    metadata = customer.get("metadata") if isinstance(customer, Mapping) else None
    return metadata.get(METADATA_JOB_ID) if isinstance(metadata, Mapping) else None
