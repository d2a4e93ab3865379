"""Stripe's limits as an operator sees them: what each lane may do, what waits in it and why; pausing and resuming."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, null, select, update

from customer_jobs.database import Transaction
from customer_jobs.errors import InvalidJob
from customer_jobs.holds import holds
from customer_jobs.lanes import LANE_COLUMNS, Endpoint, Lane, account_of, by_endpoint, in_flight, lanes_with_work
from customer_jobs.schema import attempts, credentials, is_waiting, jobs, lanes
from customer_jobs.sql import now

MOST_COUNTED = 10_000  #: Waiting jobs of a lane that are counted; an operator needs no more than "many".
USED_OVER_SECONDS = 60  #: How far back the use of an allowance is counted.
RATE_UNTIL_SET = 25.0  #: Written with a pause of an endpoint that no job has used yet; the settings win later.


@dataclass(frozen=True)
class Limit:
    """One of Stripe's limits, as it stands."""

    credential: str
    stripe_account: str | None
    endpoint: str  #: customer.create, customer.fetch, customer.list, or * for the whole account.
    rate_per_second: float | None  #: When a job last left; None before the first.
    used: float | None  #: The share of it that the last minute used; 1 also where it was lowered meanwhile.
    rate_limited_last_minute: int  #: Calls that Stripe turned away.
    waiting: int  #: Jobs that are due; `MOST_COUNTED` stands for as many or more.
    in_flight: int
    paused_at: datetime | None
    held_by: str | None  #: Why what waits is not dispatched.
    remedy: str | None  #: What a person does about it.


def limits(transaction: Transaction) -> list[Limit]:
    """Every limit that jobs have met or wait for."""
    what_holds = holds(transaction)
    rows = what_holds.endpoints
    waiting = by_endpoint({lane: _waiting(transaction, lane) for lane in lanes_with_work(transaction)})
    flying = by_endpoint(in_flight(transaction))
    paused = {account_of(name) for name, row in what_holds.credentials.items() if row["paused_at"] is not None}
    answers = _answers(transaction)
    found = []
    for key in sorted({*rows, *waiting, *flying, *paused}):
        calls, turned_away = answers.get(key, (0, 0))
        row = rows.get(key)
        pause = what_holds.pause_of(key)
        due = min(waiting.get(key, 0), MOST_COUNTED)
        # A pause is worth knowing of before anything waits, the rest only then.
        hold = what_holds.of(key) if due else pause
        found.append(
            Limit(
                credential=key.credential,
                stripe_account=key.stripe_account or None,
                endpoint=key.kind,
                rate_per_second=None if row is None else row["rate"],
                used=None if row is None else min(calls / (row["rate"] * USED_OVER_SECONDS), 1.0),
                rate_limited_last_minute=turned_away,
                waiting=due,
                in_flight=flying.get(key, 0),
                paused_at=None if pause is None else pause.since,
                held_by=None if hold is None else hold.reason,
                remedy=None if hold is None else hold.remedy,
            )
        )
    return found


def pause(transaction: Transaction, credential: str, *, endpoint: str | None = None, reason: str) -> None:
    """Let the jobs of a credential, or those of one of its endpoints, wait until `resume`; connected accounts too.

    Raises InvalidJob for a credential that no worker has had a key of.
    """
    _require_known(transaction, credential)
    if endpoint is None:
        of_credential = update(credentials).where(credentials.c.name == credential)
        transaction.change(of_credential.values(paused_at=now(), reason=reason))
        return
    values = {"credential": credential, "stripe_account": "", "kind": endpoint, "rate": RATE_UNTIL_SET}
    new = transaction.insert(lanes).values(**values, paused_at=now(), reason=reason)
    changed = {"paused_at": new.excluded.paused_at, "reason": new.excluded.reason}
    transaction.change(new.on_conflict_do_update(index_elements=list(lanes.primary_key.columns), set_=changed))


def resume(transaction: Transaction, credential: str, *, endpoint: str | None = None) -> bool:
    """Let what was paused go on: all of a credential, or one of its endpoints; whether anything was.

    Raises InvalidJob for a credential that no worker has had a key of.
    """
    _require_known(transaction, credential)
    of_lanes = update(lanes).where(lanes.c.credential == credential, lanes.c.paused_at.is_not(None))
    if endpoint is not None:
        of_lanes = of_lanes.where(lanes.c.kind == endpoint)
    going_on = {"paused_at": null(), "reason": null()}
    changed = transaction.change(of_lanes.values(going_on))
    if endpoint is None:
        of_credential = update(credentials).where(
            credentials.c.name == credential, credentials.c.paused_at.is_not(None)
        )
        changed += transaction.change(of_credential.values(going_on))
    return changed > 0


def _require_known(transaction: Transaction, credential: str) -> None:
    known = [row["name"] for row in transaction.rows(select(credentials.c.name).order_by(credentials.c.name))]
    if credential not in known:
        names = f"known are {', '.join(known)}" if known else "none has been seen at all"
        raise InvalidJob("CREDENTIAL", f"no worker has had a key of the name {credential!r}; {names}")


def _waiting(transaction: Transaction, lane: Lane) -> int:
    of_lane = (column == value for column, value in zip(LANE_COLUMNS, lane, strict=True))
    some = select(jobs.c.id).where(is_waiting(), *of_lane, jobs.c.due_at <= now()).limit(MOST_COUNTED).subquery()
    return int(transaction.value(select(func.count()).select_from(some)))


def _answers(transaction: Transaction) -> dict[Endpoint, tuple[int, int]]:
    """Calls of the last minute, and those of them that Stripe's limiter turned away."""
    turned_away = func.count(attempts.c.rate_limited_reason)
    query = (
        select(*LANE_COLUMNS, func.count().label("calls"), turned_away.label("turned_away"))
        .join(attempts, attempts.c.job_id == jobs.c.id)
        .where(attempts.c.finished_at > now(-USED_OVER_SECONDS), attempts.c.http_status.is_not(None))
        .group_by(*LANE_COLUMNS)
    )
    found: dict[Endpoint, tuple[int, int]] = {}
    for *lane, calls, limited in (tuple(row.values()) for row in transaction.rows(query)):
        of_lane = Lane(*lane)
        for key in (of_lane.endpoint, of_lane.account):
            before = found.get(key, (0, 0))
            found[key] = (before[0] + calls, before[1] + limited)
    return found
