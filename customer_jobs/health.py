"""Whether jobs are consumed: asked of tables and Redis, from what was done lately, not from processes that live."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import redis
from sqlalchemy import Engine, func, select

from customer_jobs.broker import PREFIX, QUEUE
from customer_jobs.checks import Check, at_once, fail, ok, out_of_reach, refused_by_redis
from customer_jobs.database import Transaction, reading
from customer_jobs.errors import Unavailable
from customer_jobs.lanes import LANE_COLUMNS, Endpoint, Lane, is_alive, lanes_with_work
from customer_jobs.limits import Limit, limits
from customer_jobs.schema import events, is_in_flight, is_waiting, jobs, leases, workers
from customer_jobs.sql import now
from customer_jobs.stream import Client, translating_outages
from customer_jobs.vocabulary import LOOK_COUNTS_SECONDS, WORKER_SILENT_SECONDS, Lease, Priority, State

DEADLINE_SECONDS = 4.0  #: Whatever hangs, the answer is there within five seconds.
#: A due job waits so long for a thread or for its turn at Stripe's limit; longer must have a reason that can be seen.
LATE_SECONDS = 30.0
#: A message that threads are free for is taken in milliseconds; on a busy machine it may take this long.
TAKEN_SECONDS = 2.0
LOOK_EVERY_SECONDS = 0.1
RESCUED_SECONDS = 10.0  #: A lease that ran out is noticed within a second, by a new leader within twelve.
PROBE = f"{PREFIX}health"  #: Written to find out whether Redis takes anything.
PROBE_LASTS_SECONDS = 60

#: The queue as the workers read it, and as apps fill it that do not know our prefix.
QUEUES = (PREFIX + QUEUE, QUEUE)


@dataclass(frozen=True)
class Seen:
    """What the tables say, as one look finds it."""

    leader: str | None
    looked_seconds_ago: float | None  #: When the leader looked for due jobs last; None: not lately.
    workers: int
    threads: int
    running: int
    overdue: int  #: Leases that ran out and that nobody has rescued.
    oldest_due: dict[Endpoint, float]  #: Seconds that the first due job of each lane waits.
    limits: dict[Endpoint, Limit]
    unpublished_seconds: float | None  #: Age of the oldest event that the stream does not have.


def health(engine: Engine, client: Client) -> list[Check]:
    """Every check of the whole system; within five seconds, whatever hangs."""
    found = at_once({"seen": lambda: _seen(engine), "queue": lambda: _stuck_queues(client)}, seconds=DEADLINE_SECONDS)
    seen, stuck = found["seen"], found["queue"]
    if isinstance(seen, Unavailable | TimeoutError) and not _lacks_tables(seen):
        return [out_of_reach("database", seen), *_of_redis(stuck, None)]
    if isinstance(seen, Exception):
        raise seen
    return [ok("database", f"{engine.dialect.name} answers"), *_of_tables(seen), *_of_redis(stuck, seen)]


def health_of_worker(engine: Engine, name: str, ping: Callable[[], bool]) -> list[Check]:
    """Whether one worker does its part: what starting it anew could mend, and nothing else.

    An outage of the database or of Redis is nothing that the worker could be blamed for.
    """
    found = at_once({"life": lambda: _seen_ago(engine, name), "ping": ping}, seconds=DEADLINE_SECONDS)
    seen_ago, answered = found["life"], found["ping"]
    remedy = "start it anew; `customer-jobs stats` names the workers that live"
    if isinstance(seen_ago, Unavailable | TimeoutError) and not _lacks_tables(seen_ago):
        life = ok("life", f"cannot be seen: {seen_ago}")
    elif isinstance(seen_ago, Exception):
        raise seen_ago
    elif seen_ago is None or seen_ago > WORKER_SILENT_SECONDS:
        said = "was never seen" if seen_ago is None else f"was seen {seen_ago:.0f} s ago"
        life = fail("life", f"worker {name!r} {said}", remedy)
    else:
        life = ok("life", f"seen {seen_ago:.0f} s ago")
    if isinstance(answered, redis.RedisError | OSError):  # A TimeoutError of ours is one, too.
        messages = ok("messages", f"cannot be asked: {type(answered).__name__}")
    elif isinstance(answered, Exception):
        raise answered
    elif not answered:
        messages = fail("messages", f"worker {name!r} does not take its messages", remedy)
    else:
        messages = ok("messages", "takes its messages")
    return [life, messages]


def _seen(engine: Engine) -> Seen:
    with reading(engine) as transaction:
        present = transaction.value(select(now()))
        held = {row["name"]: row for row in transaction.rows(select(*leases.c))}
        lead, looks = held.get(Lease.LEAD), held.get(Lease.LOOKS)
        alive = (func.count().label("workers"), func.coalesce(func.sum(workers.c.slots), 0).label("threads"))
        (living,) = transaction.rows(select(*alive).where(is_alive()))
        running = select(func.count()).where(is_in_flight(), jobs.c.state == State.RUNNING)
        overdue = select(func.count()).where(is_in_flight(), jobs.c.lease_expires_at < now(-RESCUED_SECONDS))
        unpublished = select(events.c.created_at).where(events.c.published_at.is_(None)).order_by(events.c.seq).limit(1)
        oldest = transaction.row(unpublished)
        return Seen(
            leader=str(lead["holder"]).partition("/")[0] if lead and lead["expires_at"] > present else None,
            looked_seconds_ago=_looked_ago(looks, present),
            workers=living["workers"],
            threads=living["threads"],
            running=transaction.value(running),
            overdue=transaction.value(overdue),
            oldest_due=_oldest_due(transaction, present),
            limits={
                Endpoint(each.credential, each.stripe_account or "", each.endpoint): each
                for each in limits(transaction)
            },
            unpublished_seconds=None if oldest is None else _seconds(present - oldest["created_at"]),
        )


def _looked_ago(looks: dict[str, Any] | None, present: Any) -> float | None:
    if looks is None or looks["expires_at"] <= present:
        return None
    return LOOK_COUNTS_SECONDS - _seconds(looks["expires_at"] - present)


def _oldest_due(transaction: Transaction, present: Any) -> dict[Endpoint, float]:
    """How long the first due job of each lane waits: one look into the index for each of its priorities."""
    found: dict[Endpoint, float] = {}
    for lane in lanes_with_work(transaction):
        firsts = [transaction.value(_first_due(lane, priority)) for priority in Priority]
        waits = [_seconds(present - first) for first in firsts if first is not None and first <= present]
        if waits:
            found[lane.endpoint] = max(waits)
    return found


def _first_due(lane: Lane, priority: Priority) -> Any:
    of_lane = (column == value for column, value in zip(LANE_COLUMNS, lane, strict=True))
    return select(func.min(jobs.c.due_at)).where(is_waiting(), *of_lane, jobs.c.priority == priority.value)


def _lacks_tables(error: Exception) -> bool:
    """SQLite says of a table that is not there what it says when it cannot be used."""
    return "no such " in str(error)


def _seen_ago(engine: Engine, name: str) -> float | None:
    with reading(engine) as transaction:
        row = transaction.row(select(workers.c.seen_at, now().label("present")).where(workers.c.name == name))
    return None if row is None else _seconds(row["present"] - row["seen_at"])


def _of_tables(seen: Seen) -> list[Check]:
    return [_leader(seen), _dispatch(seen), _workers(seen), _due(seen), _leases(seen), _events(seen)]


def _leader(seen: Seen) -> Check:
    if seen.leader is None:
        return fail(
            "leader",
            "nobody leads: nothing is dispatched",
            "start a worker: `celery -A worker.app worker`; one that runs and does not lead says why in its log",
        )
    return ok("leader", f"{seen.leader} leads")


def _dispatch(seen: Seen) -> Check:
    if seen.looked_seconds_ago is None:
        return fail(
            "dispatch",
            f"nobody has looked for due jobs for {LOOK_COUNTS_SECONDS} s",
            f"start {seen.leader} anew" if seen.leader else "start a worker: `celery -A worker.app worker`",
        )
    return ok("dispatch", f"looked for due jobs {max(seen.looked_seconds_ago, 0):.0f} s ago")


def _workers(seen: Seen) -> Check:
    if not seen.threads:
        return fail("workers", "no worker shows signs of life", "start a worker: `celery -A worker.app worker`")
    return ok("workers", f"{seen.workers} alive, {max(seen.threads - seen.running, 0)} of {seen.threads} threads free")


def _due(seen: Seen) -> Check:
    if not seen.oldest_due:
        return ok("due", "no job waits for its turn")
    reasons = {key: _why_it_waits(seen, key, seconds) for key, seconds in seen.oldest_due.items()}
    for key, reason in reasons.items():
        if reason is None:
            return fail(
                "due",
                f"{_lane(key)}: a job is due for {seen.oldest_due[key]:.0f} s, and none has been started lately",
                "see the worker's log for `failed, goes on`, and start the workers anew",
            )
    key = max(seen.oldest_due, key=lambda each: seen.oldest_due[each])
    return ok("due", f"{_lane(key)}: the first for {seen.oldest_due[key]:.0f} s, {reasons[key]}")


def _why_it_waits(seen: Seen, key: Endpoint, seconds: float) -> str | None:
    """What a due job may be waiting for; None: nothing explains it."""
    limit = seen.limits.get(key)
    # A limit of one call in a minute lets a job wait for two.
    patience = max(LATE_SECONDS, 3 / limit.rate_per_second if limit and limit.rate_per_second else 0)
    if limit is not None and limit.held_by is not None:
        return limit.held_by
    if seconds <= patience:
        return "its turn comes"
    if limit is not None and (limit.used or limit.in_flight):
        return "its lane moves"
    return None if seen.running < seen.threads else "every thread is busy"


def _leases(seen: Seen) -> Check:
    if seen.overdue:
        return fail(
            "leases",
            f"{seen.overdue} jobs of silent workers are not rescued",
            f"start {seen.leader} anew" if seen.leader else "start a worker: `celery -A worker.app worker`",
        )
    return ok("leases", f"{seen.running} running, none abandoned")


def _events(seen: Seen) -> Check:
    if seen.unpublished_seconds is not None and seen.unpublished_seconds > LATE_SECONDS:
        return fail(
            "events",
            f"the first unpublished event waits for {seen.unpublished_seconds:.0f} s",
            "see that the workers' REDIS_URL can be written to: their logs say `failed, goes on`, loop relay",
        )
    return ok("events", "all published" if seen.unpublished_seconds is None else "being published")


def _stuck_queues(client: Client) -> list[str]:
    """The queues whose first message nobody took. Raises Unavailable, and ResponseError where Redis refuses."""
    try:
        client.set(PROBE, "1", ex=PROBE_LASTS_SECONDS)
        # Celery puts in on the left and takes out on the right.
        first = {queue: client.lindex(queue, -1) for queue in QUEUES}
        stuck = [queue for queue, message in first.items() if message is not None]
        give_up_at = time.monotonic() + TAKEN_SECONDS
        while stuck and time.monotonic() < give_up_at:
            time.sleep(LOOK_EVERY_SECONDS)
            stuck = [queue for queue in stuck if client.lindex(queue, -1) == first[queue]]
    except redis.ResponseError:
        raise
    except (redis.RedisError, OSError):
        with translating_outages():
            raise
    return stuck


def _of_redis(stuck: Any, seen: Seen | None) -> list[Check]:
    if isinstance(stuck, redis.ResponseError):
        return [refused_by_redis("redis", stuck)]
    if isinstance(stuck, Unavailable | TimeoutError):
        return [out_of_reach("redis", stuck)]
    if isinstance(stuck, Exception):
        raise stuck
    answers = ok("redis", "answers and can be written to")
    if not stuck:
        return [answers, ok("queue", "no message waits for a worker")]
    if seen is None:
        return [answers, ok("queue", "messages wait; whether a thread is free cannot be seen")]
    if not seen.threads:
        remedy = "start a worker: `celery -A worker.app worker`"
        return [answers, fail("queue", f"no worker is alive to take the messages of {stuck[0]!r}", remedy)]
    if seen.running >= seen.threads:
        return [answers, ok("queue", "messages wait for a thread")]
    remedy = "start the workers anew; are theirs and this REDIS_URL the same?"
    return [answers, fail("queue", f"threads are free and nobody takes the messages of {stuck[0]!r}", remedy)]


def _lane(key: Endpoint) -> str:
    return " ".join(filter(None, (key.kind, "of", key.credential, key.stripe_account)))


def _seconds(span: timedelta) -> float:
    return max(0.0, span.total_seconds())
