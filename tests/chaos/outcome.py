"""What is broken when a soak is over: of the invariants, the orders, the connections that were to be let go."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import func, select

from customer_jobs.database import reading
from customer_jobs.problems import OUTCOME_UNKNOWN
from customer_jobs.schema import events, jobs
from customer_jobs.vocabulary import FINAL_STATES, State
from tests.builders import rows
from tests.chaos import invariants
from tests.chaos.audience import Listener, done
from tests.chaos.crew import Crew
from tests.chaos.orders import Order, Producers
from tests.chaos.proofs import asking_postgres
from tests.chaos.site import Site

GONE_SECONDS = 20.0  #: PostgreSQL notices within that time that a client has left.


def outcome(
    here: Site, crew: Crew, listeners: Sequence[Listener], producers: Producers, wanted: Sequence[Order]
) -> Iterator[str]:
    """What is broken now that all is over."""
    world = invariants.look(here.engine, here.sandbox)
    for listener in listeners:
        yield from invariants.broken_at_the_end(world, listener.events)
        if listener.error is not None:
            yield f"{listener.consumer.group} ended with {listener.error!r}"
    for event_id, times in Counter(done(here)).items():
        if times != 1:
            yield f"event {event_id} was handled {times} times by a consumer that handles it once"
    for order in wanted:
        ids = producers.ids[order.number]
        if len(ids) != 1:
            yield f"order {order.number} became jobs {sorted(ids)}"
            continue
        job = world.jobs.get(*ids)
        if job is None:
            yield f"the job of order {order.number} is lost"
        elif job["state"] != (State.SUCCEEDED if order.refusal is None else State.FAILED):
            yield f"order {order.number} is {job['state']}: {job['error']}"
        elif order.refusal is not None and not _is_refused(order, job, world):
            yield f"order {order.number} is to be refused with {order.refusal}: {job['error']}"
        elif order.is_refused_create and job["customer_id"] is not None:
            yield f"order {order.number} was refused and made {job['customer_id']}"
    if wanted and len(world.jobs) != len(wanted):
        yield f"{len(wanted)} orders became {len(world.jobs)} jobs"
    yield from (f"ended without a cause: {end}" for end in crew.ends if end.cause is None)


def _is_refused(order: Order, job: Mapping[str, Any], world: invariants.World) -> bool:
    """Whether Stripe's refusal is what ended the job, or what an attempt without an answer left to be found out."""
    if job["error"]["http_status"] == order.refusal:
        return True
    in_doubt = any(attempt["ambiguous"] for attempt in world.attempts[job["id"]])
    return order.is_refused_create and in_doubt and job["error"]["code"] == OUTCOME_UNKNOWN


def still_connected(here: Site) -> list[str]:
    """Sessions that PostgreSQL has although everybody has ended."""
    if here.postgres_server is None:
        return []
    left: list[object] = []

    def nobody() -> bool:
        with asking_postgres(here) as connection:
            left[:] = connection.execute(
                "SELECT application_name, state, query FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            ).fetchall()
        return not left

    eventually(nobody, GONE_SECONDS)
    return [f"PostgreSQL has a session of nobody: {each}" for each in left]


def unfinished(here: Site) -> int:
    query = select(func.count()).select_from(jobs).where(jobs.c.state.not_in(FINAL_STATES))
    with reading(here.engine) as transaction:
        return int(transaction.value(query))


def heard_all(here: Site, *listeners: Listener) -> bool:
    """Whether every event of the outbox is published and has arrived everywhere."""
    found = rows(here.engine, events)
    ids = {row["id"] for row in found}
    return all(row["published_at"] for row in found) and all(ids <= listener.heard for listener in listeners)


def counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def eventually(condition: Callable[[], bool], within_seconds: float, *, every_seconds: float = 0.1) -> bool:
    """Whether it became true in time."""
    give_up_at = time.monotonic() + within_seconds
    while not condition():
        if time.monotonic() > give_up_at:
            return False
        time.sleep(every_seconds)
    return True
