"""Who sees every step of a life, remembers what was final, and says what should not have happened since."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from sqlalchemy import Engine

from customer_jobs.payload import METADATA_JOB_ID
from customer_jobs.problems import OUTCOME_UNKNOWN
from customer_jobs.sandbox import Sandbox
from customer_jobs.vocabulary import FINAL_STATES, State
from tests.builders import Row
from tests.chaos.invariants import DELETED, MADE, World, broken_at_the_end, broken_now, look

SAME = ("state", "outcome", "customer_id", "attempt")  #: What never changes of a final job.


class Witness:
    """Remembers one life; `seen` counts how its jobs ended."""

    def __init__(self, engine: Engine, sandbox: Sandbox, seen: Counter[str]) -> None:
        self.unsent: Counter[str | None] = Counter()  #: Creates that were entered and could not be sent, by job.
        self._engine = engine
        self._sandbox = sandbox
        self._seen = seen
        self._final: dict[str, Row] = {}  #: Rows of final jobs as they were when they became so.
        self._known: dict[str, Row] = {}  #: Every row, as it was seen last.

    def broken(self, about_to_send: Iterable[str | None]) -> list[str]:
        """What is broken now; the jobs `about_to_send` are entered in the ledger and Stripe has not heard of it."""
        seen = look(self._engine, self._sandbox)
        world = self._with_pruned(seen)
        broken = [*broken_now(world), *self._stays_there(seen)]
        for job_id, job in world.jobs.items():
            broken += self._stays_final(job_id, job)
            if job["attempt"] > job["max_attempts"]:
                broken.append(f"job {job_id} has used {job['attempt']} of {job['max_attempts']} attempts")
            if (job["lease_token"] is not None) != (job["state"] in {State.DISPATCHED, State.RUNNING}):
                broken.append(f"job {job_id} is {job['state']} with lease {job['lease_token']}")
        broken += _keeps_the_truth(world)
        broken += _counts_the_calls(world, self.unsent + Counter(about_to_send))
        return broken

    def broken_at_the_end(self, entries: Iterable[Mapping[str, str]]) -> list[str]:
        """What is broken once every job had its time; `entries` are those of the stream."""
        came = {entry["subject"] for entry in entries}
        missing = [f"the event of job {job_id} never came" for job_id in self._final if job_id not in came]
        return broken_at_the_end(self._with_pruned(look(self._engine, self._sandbox))) + missing

    def _with_pruned(self, world: World) -> World:
        """The world with what pruning deleted or emptied, as it was, under marks where the latter has its own."""
        emptied = {}
        for job_id, was in self._final.items():
            now_is = world.jobs.get(job_id)
            if now_is is None or now_is["body_digest"] is not None:
                changed = {name: now_is[name] for name in (*SAME, "external_id")} if now_is is not None else {}
                emptied[job_id] = was | changed | {"body_digest": DELETED if now_is is None else "emptied"}
        return replace(world, jobs={**world.jobs, **emptied})

    def _stays_there(self, world: World) -> Iterator[str]:
        """Nothing is deleted that is not final, or that keeps an external_id from being used twice."""
        for job_id, was in self._known.items():
            if job_id in world.jobs:
                continue
            if was["state"] not in FINAL_STATES:
                yield f"job {job_id}, which was {was['state']}, is gone"
            elif was["external_id"] is not None and was["outcome"] in MADE:
                yield f"job {job_id} is gone, and with it external_id {was['external_id']!r}"
        self._known.update(world.jobs)

    def _stays_final(self, job_id: str, job: Row) -> Iterator[str]:
        if (was := self._final.get(job_id)) is not None:
            if any(was[name] != job[name] for name in SAME):
                yield f"job {job_id} was {[was[name] for name in SAME]} and is {[job[name] for name in SAME]}"
        elif job["state"] in FINAL_STATES:
            self._final[job_id] = job
            self._seen[f"{job['state']} {job['outcome'] or (job['error'] or {}).get('code')}"] += 1


def _keeps_the_truth(world: World) -> Iterator[str]:
    """A customer that Stripe has made is never taken for certainly not made."""
    for customer in world.ours():
        job = world.jobs.get(customer["metadata"][METADATA_JOB_ID])
        if job is None or job["state"] == State.SUCCEEDED:
            continue
        if job["first_sent_at"] is None:
            yield f"job {job['id']} is {job['state']}, taken for never executed, and made {customer['id']}"
        if job["state"] == State.FAILED and (job["error"] or {}).get("code") != OUTCOME_UNKNOWN:
            yield f"job {job['id']} failed with {job['error']} and made {customer['id']}"


def _counts_the_calls(world: World, unsent: Mapping[str | None, int]) -> Iterator[str]:
    """The ledger has one row for each create that was sent, and for those whose worker had no time to."""
    sent = Counter(each.idempotency_key for each in world.requests if each.endpoint == "create")
    for job_id, job in world.jobs.items():
        key = f"customer-jobs-{job_id}"
        entered = sum(each["idempotency_key"] is not None for each in world.attempts.get(job_id, ()))
        if entered != sent[key] + unsent[job_id] and job["body_digest"] is None:
            yield f"job {job_id} was sent {sent[key]} times and {unsent[job_id]} not, the ledger has {entered}"
