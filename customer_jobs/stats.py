"""How things stand in the tables, in figures; no job is shown and nothing is changed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, func, select

from customer_jobs.database import reading
from customer_jobs.lanes import WHOLE_ACCOUNT, is_alive
from customer_jobs.limits import limits
from customer_jobs.schema import events, is_waiting, jobs, leases, workers
from customer_jobs.sql import now
from customer_jobs.vocabulary import Lease


@dataclass(frozen=True)
class WorkerSeen:
    """A worker that shows signs of life."""

    name: str
    slots: int
    version: str
    seen_seconds_ago: float


@dataclass(frozen=True)
class Held:
    """Jobs that are due and wait for something else than their turn."""

    credential: str
    stripe_account: str | None
    endpoint: str
    jobs: int  #: `limits.MOST_COUNTED` stands for as many or more.
    reason: str


@dataclass(frozen=True)
class Stats:
    """One look; on PostgreSQL its figures are milliseconds apart."""

    at: datetime
    jobs: dict[str, dict[str, int]]  #: Kind, then state.
    due: int  #: Waiting jobs whose time has come.
    oldest_due_seconds: float | None  #: How long the first of them has been waiting.
    held: tuple[Held, ...]  #: What of it waits for something else than its turn.
    outbox_lag: int  #: Events not published yet.
    outbox_lag_seconds: float | None  #: Age of the oldest of them.
    leader: str | None  #: The worker that dispatches and relays.
    workers: tuple[WorkerSeen, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            **asdict(self),
            "at": self.at.isoformat().replace("+00:00", "Z"),
            "held": [asdict(held) for held in self.held],
            "workers": [asdict(worker) for worker in self.workers],
        }


def stats(engine: Engine) -> Stats:
    """How things stand now. Raises Unavailable."""
    with reading(engine) as transaction:
        present: datetime = transaction.value(select(now()))
        counts = transaction.rows(
            select(jobs.c.kind, jobs.c.state, func.count().label("jobs")).group_by(jobs.c.kind, jobs.c.state)
        )
        (due,) = transaction.rows(
            select(func.count().label("jobs"), func.min(jobs.c.due_at).label("first")).where(
                is_waiting(), jobs.c.due_at <= now()
            )
        )
        (unpublished,) = transaction.rows(
            select(func.count().label("events"), func.min(events.c.created_at).label("first")).where(
                events.c.published_at.is_(None)
            )
        )
        held = tuple(
            Held(each.credential, each.stripe_account, each.endpoint, each.waiting, each.held_by)
            for each in (limits(transaction) if due["jobs"] else ())
            # The whole account sums up what is counted already.
            if each.waiting and each.held_by is not None and each.endpoint != WHOLE_ACCOUNT
        )
        lead = transaction.rows(select(leases.c.holder).where(leases.c.name == Lease.LEAD, leases.c.expires_at > now()))
        alive = transaction.rows(select(*workers.c).where(is_alive()).order_by(workers.c.name))

    def ago(moment: datetime | None) -> float | None:
        return None if moment is None else max(0.0, round((present - moment).total_seconds(), 3))

    by_kind: dict[str, dict[str, int]] = {}
    for row in sorted(counts, key=lambda row: (row["kind"], row["state"])):
        by_kind.setdefault(row["kind"], {})[row["state"]] = row["jobs"]
    return Stats(
        at=present,
        jobs=by_kind,
        due=due["jobs"],
        oldest_due_seconds=ago(due["first"]),
        held=held,
        outbox_lag=unpublished["events"],
        outbox_lag_seconds=ago(unpublished["first"]),
        # The holder is a worker, its process and a random part.
        leader=next((str(row["holder"]).partition("/")[0] for row in lead), None),
        workers=tuple(
            WorkerSeen(row["name"], row["slots"], row["version"], ago(row["seen_at"]) or 0.0) for row in alive
        ),
    )
