"""Stripe's limits as an operator sees them: what each lane may do, what waits in it and why; pausing and resuming."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, null, select, update

from customer_jobs.database import Transaction
from customer_jobs.errors import CustomerJobsError
from customer_jobs.lanes import LANE_COLUMNS, WHOLE_ACCOUNT, Endpoint, Lane, in_flight, lanes_with_work
from customer_jobs.schema import attempts, credentials, is_waiting, jobs, lanes, workers
from customer_jobs.sql import now

MOST_COUNTED = 10_000  #: Waiting jobs of a lane that are counted; an operator needs no more than "many".
USED_OVER_SECONDS = 60  #: How far back the use of an allowance is counted.
WORKER_SILENT_SECONDS = 10  #: A worker that was not seen for longer is not there.
RATE_UNTIL_SET = 25.0  #: Written with a pause of an endpoint that no job has used yet; the settings win later.


@dataclass(frozen=True)
class Limit:
    """One of Stripe's limits, as it stands."""

    credential: str
    stripe_account: str | None
    endpoint: str  #: customer.create, customer.fetch, customer.list, or * for the whole account.
    rate_per_second: float | None  #: At present; None before its first job.
    used: float | None  #: The share of it that the last minute used.
    rate_limited_last_minute: int  #: Calls that Stripe turned away.
    waiting: int  #: Jobs that are due; `MOST_COUNTED` stands for as many or more.
    in_flight: int
    paused_at: datetime | None
    held_by: str | None  #: Why what waits is not dispatched.


def limits(transaction: Transaction) -> list[Limit]:
    """Every limit that jobs have met or wait for."""
    rows = {_endpoint_of(row): row for row in transaction.rows(select(*lanes.c))}
    paused = {row["name"]: row for row in transaction.rows(_paused())}
    waiting = _by_endpoint({lane: _waiting(transaction, lane) for lane in lanes_with_work(transaction)})
    flying = _by_endpoint(in_flight(transaction))
    answers = _answers(transaction)
    alive = transaction.value(
        select(func.count()).select_from(workers).where(workers.c.seen_at > now(-WORKER_SILENT_SECONDS))
    )
    found = []
    for key in sorted({*rows, *waiting, *flying}):
        row = rows.get(key, {})
        calls, turned_away = answers.get(key, (0, 0))
        rate = row.get("rate")
        of_credential = paused.get(key.credential)
        found.append(
            Limit(
                credential=key.credential,
                stripe_account=key.stripe_account or None,
                endpoint=key.kind,
                rate_per_second=rate,
                used=calls / (rate * USED_OVER_SECONDS) if rate else None,
                rate_limited_last_minute=turned_away,
                waiting=waiting.get(key, 0),
                in_flight=flying.get(key, 0),
                paused_at=(of_credential or row).get("paused_at"),
                held_by=_held_by(of_credential, row, rows, key, alive),
            )
        )
    return found


def pause(transaction: Transaction, credential: str, *, endpoint: str | None = None, reason: str) -> None:
    """Let the jobs of a credential, or those of one of its endpoints, wait until `resume`."""
    if endpoint is None:
        known = update(credentials).where(credentials.c.name == credential)
        if not transaction.change(known.values(paused_at=now(), reason=reason)):
            raise CustomerJobsError(
                f"no worker has seen a key of credential {credential!r} yet; `customer-jobs limits` shows those it has"
            )
        return
    values = {"credential": credential, "stripe_account": "", "kind": endpoint, "rate": RATE_UNTIL_SET}
    new = transaction.insert(lanes).values(**values, paused_at=now(), reason=reason)
    changed = {"paused_at": new.excluded.paused_at, "reason": new.excluded.reason}
    transaction.change(new.on_conflict_do_update(index_elements=list(lanes.primary_key.columns), set_=changed))


def resume(transaction: Transaction, credential: str, *, endpoint: str | None = None) -> bool:
    """Let what was paused go on; whether anything was."""
    table = credentials if endpoint is None else lanes
    name = credentials.c.name if endpoint is None else lanes.c.credential
    statement = update(table).where(name == credential, table.c.paused_at.is_not(None))
    if endpoint is not None:
        statement = statement.where(lanes.c.kind == endpoint)
    return transaction.change(statement.values(paused_at=null(), reason=null())) > 0


def held_by(transaction: Transaction, credential: str) -> str | None:
    """Why the waiting jobs of a credential are held, if they are."""
    rows = transaction.rows(_paused().where(credentials.c.name == credential))
    return _pause_of(rows[0]) if rows else None


def _held_by(
    of_credential: Mapping[str, Any] | None,
    row: Mapping[str, Any],
    rows: Mapping[Endpoint, Mapping[str, Any]],
    key: Endpoint,
    alive: int,
) -> str | None:
    whole = rows.get(Endpoint(key.credential, "", WHOLE_ACCOUNT), {})
    for each in (of_credential, row, whole):
        if each and each.get("paused_at") is not None:
            return _pause_of(each)
    return None if alive else "no worker is alive"


def _pause_of(row: Mapping[str, Any]) -> str:
    return f"paused: {row['reason']}" if row["reason"] else "paused"


def _paused() -> Any:
    return select(*credentials.c).where(credentials.c.paused_at.is_not(None))


def _waiting(transaction: Transaction, lane: Lane) -> int:
    of_lane = (column == value for column, value in zip(LANE_COLUMNS, lane, strict=True))
    some = select(jobs.c.id).where(is_waiting(), *of_lane, jobs.c.due_at <= now()).limit(MOST_COUNTED).subquery()
    return int(transaction.value(select(func.count()).select_from(some)))


def _answers(transaction: Transaction) -> dict[Endpoint, tuple[int, int]]:
    """Calls of the last minute, and those of them that Stripe's limiter turned away."""
    query = (
        select(*LANE_COLUMNS, func.count(), func.count(attempts.c.rate_limited_reason))
        .join(attempts, attempts.c.job_id == jobs.c.id)
        .where(attempts.c.finished_at > now(-USED_OVER_SECONDS), attempts.c.http_status.is_not(None))
        .group_by(*LANE_COLUMNS)
    )
    found: dict[Endpoint, tuple[int, int]] = {}
    for *lane, calls, turned_away in (tuple(row.values()) for row in transaction.rows(query)):
        of_lane = Lane(*lane)
        for key in (of_lane.endpoint, of_lane.account):
            before = found.get(key, (0, 0))
            found[key] = (before[0] + calls, before[1] + turned_away)
    return found


def _by_endpoint(counts: Mapping[Lane, int]) -> dict[Endpoint, int]:
    summed: dict[Endpoint, int] = {}
    for lane, count in counts.items():
        summed[lane.endpoint] = summed.get(lane.endpoint, 0) + count
    return summed


def _endpoint_of(row: Mapping[str, Any]) -> Endpoint:
    return Endpoint(row["credential"], row["stripe_account"], row["kind"])
