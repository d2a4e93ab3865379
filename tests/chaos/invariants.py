"""What must hold of our tables, of the stream and of Stripe, whatever harm was done; no harm is done here.

Each invariant looks at a `World` and says in words what is broken, so that an empty list is the good news.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine

from customer_jobs.payload import METADATA_EXTERNAL_ID, METADATA_JOB_ID
from customer_jobs.problems import OUTCOME_UNKNOWN
from customer_jobs.sandbox import Request, Sandbox
from customer_jobs.schema import attempts, events, jobs
from customer_jobs.vocabulary import FINAL_STATES, Kind, Outcome, State, Verdict, event_type
from tests.builders import Row, rows

Json = dict[str, Any]
Invariant = Callable[["World"], Iterator[str]]

DELETED = "deleted"  #: The body digest, for a witness, of a job that pruning has deleted.
#: How a create ends that made a customer of its own.
MADE = {Outcome.CREATED, Outcome.REPLAYED, Outcome.ADOPTED}


@dataclass(frozen=True)
class World:
    """Everything that can be looked at, from one moment."""

    jobs: Mapping[str, Row]  #: By id.
    attempts: Mapping[str, Sequence[Row]]  #: By job, in order.
    events: Mapping[str, Sequence[Row]]  #: The outbox, by job.
    customers: Sequence[Json]  #: Stripe's live ones, oldest first.
    requests: Sequence[Request]  #: What Stripe saw, in order.

    def ours(self) -> list[Json]:
        """The customers that carry a job's id."""
        return [customer for customer in self.customers if METADATA_JOB_ID in customer["metadata"]]

    def creates(self) -> list[Row]:
        return [job for job in self.jobs.values() if job["kind"] == Kind.CUSTOMER_CREATE]


def look(engine: Engine, sandbox: Sandbox) -> World:
    """The world as it is; where others write meanwhile, tables may be a moment apart."""
    return world_of(engine, sandbox.customers(), sandbox.requests)


def world_of(engine: Engine, customers: Sequence[Json], requests: Sequence[Request]) -> World:
    """The same, with what a sandbox in another process says of itself."""
    return World(
        jobs={row["id"]: row for row in rows(engine, jobs)},
        attempts=_by("job_id", rows(engine, attempts)),
        events=_by("subject", rows(engine, events)),
        customers=customers,
        requests=requests,
    )


def broken_now(world: World) -> list[str]:
    """What is broken of that which holds at every moment."""
    return [each for invariant in ALWAYS for each in invariant(world)]


def broken_at_the_end(world: World, stream: Iterable[Mapping[str, Any]] | None = None) -> list[str]:
    """What is broken of that which holds once every job had its time; `stream`: all the CloudEvents that arrived."""
    broken = [each for invariant in (*ALWAYS, *AT_THE_END) for each in invariant(world)]
    return broken if stream is None else broken + list(arrives(world, stream))


def completes_once(world: World) -> Iterator[str]:
    """Exactly one completion event per final job, none before, and it says what the job says."""
    for job_id, job in world.jobs.items():
        found, final = world.events.get(job_id, ()), job["state"] in FINAL_STATES
        # Pruning removes old events, and what is left of a job that keeps its external_id.
        if len(found) != int(final) and job["body_digest"] is None:
            yield f"job {job_id} is {job['state']} with {len(found)} completion events"
        for event in found:
            if final and event["type"] != event_type(job["kind"], State(job["state"])):
                yield f"job {job_id} is {job['state']}, its event is {event['type']}"
            for name in ("state", "outcome", "customer_id", "external_id", "attempt"):
                # A retry by hand takes the external_id over after the event.
                if event["data"][name] != job[name] and not (name == "external_id" and job[name] is None):
                    yield f"job {job_id} has {name} {job[name]!r}, its event {event['data'][name]!r}"


def skips_no_attempt(world: World) -> Iterator[str]:
    """Attempts are numbered from 1 without gaps, and a job has used no more than it made."""
    for job_id, job in world.jobs.items():
        numbers = [attempt["number"] for attempt in world.attempts.get(job_id, ())]
        if numbers != list(range(1, len(numbers) + 1)):
            yield f"job {job_id} has attempts {numbers}"
        if job["attempt"] > len(numbers) and job["body_digest"] is None:
            yield f"job {job_id} has used {job['attempt']} attempts and made {len(numbers)}"


def keeps_the_ledger(world: World) -> Iterator[str]:
    """An attempt has a verdict exactly when it is over, and only the last may be under way."""
    for job_id, job in world.jobs.items():
        made, key = world.attempts.get(job_id, ()), f"customer-jobs-{job_id}"
        verdicts = [attempt["verdict"] for attempt in made]
        for attempt in made:
            which = f"attempt {attempt['number']} of job {job_id}"
            if (attempt["verdict"] is None) != (attempt["finished_at"] is None):
                yield f"{which} has verdict {attempt['verdict']} and finished_at {attempt['finished_at']}"
            if attempt["verdict"] is None and (attempt is not made[-1] or job["state"] != State.RUNNING):
                yield f"{which} has no verdict, the job is {job['state']}"
            if attempt["idempotency_key"] not in {None, key}:
                yield f"{which} has key {attempt['idempotency_key']!r}"
        if job["state"] == State.RUNNING and verdicts[-1:] != [None]:
            yield f"job {job_id} is running, its last attempt is not"
        if job["state"] == State.SUCCEEDED and Verdict.SUCCEEDED not in verdicts and job["body_digest"] is None:
            yield f"job {job_id} has succeeded, none of its attempts has"


def sends_under_one_key(world: World) -> Iterator[str]:
    """Every create is sent under its job's key alone and with the same parameters, and is in the ledger before."""
    sent: dict[str, list[Request]] = defaultdict(list)
    for request in world.requests:
        if request.endpoint == "create":
            sent[request.params.get("metadata", {}).get(METADATA_JOB_ID, "?")].append(request)
    for job_id, sends in sent.items():
        keys = {request.idempotency_key for request in sends}
        if keys != {f"customer-jobs-{job_id}"}:
            yield f"job {job_id} was sent under {sorted(map(str, keys))}"
        if any(request.params != sends[0].params for request in sends):
            yield f"job {job_id} was sent with different parameters"
        if job_id not in world.jobs:
            yield f"job {job_id} was sent and is not in the table"
            continue
        entered = sum(each["idempotency_key"] is not None for each in world.attempts.get(job_id, ()))
        if len(sends) > entered and world.jobs[job_id]["body_digest"] is None:
            yield f"job {job_id} was sent {len(sends)} times, the ledger has {entered}"


def makes_no_second_customer(world: World) -> Iterator[str]:
    """No two customers of one job or one external_id, and none of an e-mail beyond the creates that have it."""
    ours = world.ours()
    for job_id, count in Counter(each["metadata"][METADATA_JOB_ID] for each in ours).items():
        if count > 1:
            yield f"job {job_id} has {count} customers"
    of_ids = Counter(each["metadata"].get(METADATA_EXTERNAL_ID) for each in ours)
    wanted_ids = Counter(_scopes(world))
    for external_id, count in of_ids.items():
        if external_id is not None and count > max(wanted_ids[external_id], 1):
            yield f"external_id {external_id!r} has {count} customers"
    wanted = Counter(_email_of(job) for job in world.creates() if job["retry_of"] is None)
    for email, count in Counter(each["email"] for each in ours).items():
        if email is not None and count > wanted[email] > 0:
            yield f"{count} customers have the e-mail of {wanted[email]} creates"


def ends(world: World) -> Iterator[str]:
    """Every job is final."""
    for job_id, job in world.jobs.items():
        if job["state"] not in FINAL_STATES:
            yield f"job {job_id} is {job['state']}, attempt {job['attempt']}, error {job['error']}"


def makes_what_succeeded(world: World) -> Iterator[str]:
    """The customers at Stripe are those of the creates that succeeded: none is missing, none is nobody's."""
    made = {job["customer_id"]: job["id"] for job in world.creates() if job["outcome"] in MADE}
    there = {customer["id"]: customer["metadata"][METADATA_JOB_ID] for customer in world.ours()}
    if len(made) != sum(job["outcome"] in MADE for job in world.creates()):
        yield "two creates succeeded with one customer"
    for customer_id in made.keys() - there.keys():
        yield f"job {made[customer_id]} has succeeded with {customer_id}, which Stripe does not have"
    for customer_id in there.keys() - made.keys():
        if (job := world.jobs.get(there[customer_id])) is not None and _was_deleted_unknown(job):
            continue  # Stripe's word came later than RETENTION_DAYS after the job had ended without it.
        yield f"Stripe has {customer_id} of job {there[customer_id]}, which did not succeed with it"


def _was_deleted_unknown(job: Row) -> bool:
    return job["body_digest"] == DELETED and (job["error"] or {}).get("code") == OUTCOME_UNKNOWN


def publishes_all(world: World) -> Iterator[str]:
    """The outbox is empty."""
    for job_id, found in world.events.items():
        if any(event["published_at"] is None for event in found):
            yield f"the event of job {job_id} is not published"


def arrives(world: World, stream: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Every event of the outbox is among the CloudEvents that arrived, and no job's came under two ids."""
    arrived: dict[str, set[str]] = defaultdict(set)
    for event in stream:
        arrived[event["subject"]].add(event["id"])
    for job_id, found in world.events.items():
        ids = {event["id"] for event in found}
        if arrived[job_id] != ids:
            yield f"the event of job {job_id} is {sorted(ids)}, what arrived is {sorted(arrived[job_id])}"


#: Hold between any two statements.
ALWAYS: tuple[Invariant, ...] = (
    completes_once,
    skips_no_attempt,
    keeps_the_ledger,
    sends_under_one_key,
    makes_no_second_customer,
)
#: Hold once every job had its time.
AT_THE_END: tuple[Invariant, ...] = (ends, makes_what_succeeded, publishes_all)


def _by(name: str, found: Iterable[Row]) -> dict[str, list[Row]]:
    grouped: dict[str, list[Row]] = defaultdict(list)
    for row in found:
        grouped[row[name]].append(row)
    return dict(grouped)


def _scopes(world: World) -> list[str]:
    """The external_ids, once for each account that has them."""
    scopes = {(job["credential"], job["stripe_account"], job["external_id"]) for job in world.creates()}
    return [external_id for *_, external_id in scopes if external_id is not None]


def _email_of(job: Row) -> str | None:
    body = job["payload"].get("body") if isinstance(job["payload"], dict) else None
    email = body.get("email") if isinstance(body, dict) else None
    return email if isinstance(email, str) else None
