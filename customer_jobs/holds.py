"""Why jobs that are due are not dispatched: said here once, for everything that shows jobs; nothing is changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select

from customer_jobs.database import Transaction
from customer_jobs.lanes import LANE_COLUMNS, WHOLE_ACCOUNT, Endpoint, Lane, account_of, is_alive
from customer_jobs.schema import credentials, is_in_flight, is_waiting, jobs, lanes, leases, workers
from customer_jobs.sql import now
from customer_jobs.vocabulary import KEY_REFUSED, Lease, State

#: Where jobs wait for a limit the dispatcher takes each token within so long after it has come: more than come in that
#: time are left over only where jobs wait for something else. A full bucket holds twice as many.
TAKEN_WITHIN_SECONDS = 0.04

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Hold:
    """What jobs wait for, in words."""

    reason: str
    remedy: str | None = None  #: What a person does about it; None: time will tell.
    since: datetime | None = None


@dataclass(frozen=True)
class Holds:
    """All that may hold jobs back, as one look finds it."""

    credentials: Mapping[str, Row]
    endpoints: Mapping[Endpoint, Row]
    threads: int
    running: int
    is_led: bool
    present: datetime

    def of(self, endpoint: Endpoint) -> Hold | None:
        """Why what is due there waits; None: it is about to leave."""
        return (
            self.pause_of(endpoint)
            or self._nobody()
            or self._limit_of(endpoint)
            or self._busy()
            or self._limit_of(endpoint, taken_within_seconds=TAKEN_WITHIN_SECONDS)
        )

    def pause_of(self, key: Endpoint) -> Hold | None:
        """The pause that holds back what is due there."""
        resume = f"customer-jobs limits resume {key.credential}"
        of_credential = self.credentials.get(key.credential)
        if of_credential is not None and of_credential["paused_at"] is not None:
            refused = (of_credential["reason"] or "").startswith(KEY_REFUSED)
            remedy = f"start the workers with a valid key, or {resume}" if refused else resume
            return _paused("credential", of_credential, remedy)
        # What is paused for the key's own account is paused for connected ones, too.
        for what, place, remedy in (
            ("endpoint", Endpoint(key.credential, "", key.kind), f"{resume} --endpoint {key.kind}"),
            ("endpoint", key, f"{resume} --endpoint {key.kind}"),
            ("account", account_of(key.credential), resume),
        ):
            row = self.endpoints.get(place)
            if row is not None and row["paused_at"] is not None:
                return _paused(what, row, remedy)
        return None

    def _nobody(self) -> Hold | None:
        if not self.threads:
            return Hold("no worker is alive", "start one: celery -A worker.app worker")
        if not self.is_led:
            remedy = "a worker takes the lead within 12 s; beside workers that fork: python -m worker.dispatcher"
            return Hold("no dispatcher leads", remedy)
        return None

    def _limit_of(self, key: Endpoint, *, taken_within_seconds: float = 0.0) -> Hold | None:
        for place in (key, account_of(key.credential)):
            row = self.endpoints.get(place)
            if row is None:
                continue
            since_refilled = max((self.present - row["refilled_at"]).total_seconds(), 0.0)
            if row["tokens"] + row["rate"] * (since_refilled - taken_within_seconds) < 1:
                whose = "the whole account" if place.kind == WHOLE_ACCOUNT else place.kind
                return Hold(f"limit reached: {row['rate']:.3g}/s of {whose}")
        return None

    def _busy(self) -> Hold | None:
        return Hold("every thread is busy") if self.running >= self.threads else None


def holds(transaction: Transaction) -> Holds:
    """What holds jobs back now."""
    threads = select(func.coalesce(func.sum(workers.c.slots), 0)).where(is_alive())
    running = select(func.count()).select_from(jobs).where(is_in_flight(), jobs.c.state == State.RUNNING)
    leading = select(func.count()).where(leases.c.name == Lease.LEAD, leases.c.expires_at > now())
    return Holds(
        credentials={row["name"]: row for row in transaction.rows(select(*credentials.c))},
        endpoints={endpoint_of(row): row for row in transaction.rows(select(*lanes.c))},
        threads=transaction.value(threads),
        running=transaction.value(running),
        is_led=transaction.value(leading) > 0,
        present=transaction.value(select(now())),
    )


def held_jobs(transaction: Transaction, job_ids: Iterable[str]) -> dict[str, Hold]:
    """Of these jobs those that are due and not dispatched, each with the reason."""
    wanted = list(job_ids)
    due = transaction.rows(
        select(jobs.c.id, *LANE_COLUMNS).where(jobs.c.id.in_(wanted), is_waiting(), jobs.c.due_at <= now())
    )
    if not due:
        return {}
    found = holds(transaction)
    held = {job_id: found.of(Lane(*lane).endpoint) for job_id, *lane in (tuple(row.values()) for row in due)}
    return {job_id: hold for job_id, hold in held.items() if hold is not None}


def endpoint_of(row: Row) -> Endpoint:
    """The key of a row in `lanes`."""
    return Endpoint(row["credential"], row["stripe_account"], row["kind"])


def _paused(what: str, row: Row, remedy: str) -> Hold:
    return Hold(f"{what} paused: {row['reason']}" if row["reason"] else f"{what} paused", remedy, row["paused_at"])
