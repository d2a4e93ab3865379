"""What Stripe's answers of the last second say about its limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Select, exists, select

from customer_jobs.database import Transaction
from customer_jobs.lanes import LANE_COLUMNS, Endpoint, Lane
from customer_jobs.schema import attempts, jobs
from customer_jobs.sql import now
from customer_jobs.vocabulary import Verdict
from worker.dispatcher.due import LONG_AGO

COUNTED_SECONDS = 1.0  #: Stripe's answers of so long say whether a limit was met.


@dataclass(frozen=True)
class Limited:
    """What the last second's answers say of one of Stripe's limits that turned calls away."""

    key: Endpoint  #: What the limit applies to.
    reason: str  #: Stripe-Rate-Limited-Reason, or '' where it was not said.
    answers: int
    rate_limited: int

    @property
    def concerns_concurrency(self) -> bool:
        """Whether too many calls were under way, rather than too many begun."""
        return self.reason.endswith("-concurrency")


def limited_lately(transaction: Transaction, slowed_at: Mapping[Endpoint, datetime]) -> list[Limited]:
    """The limits that turned calls away within the last second; what left before a slowing no longer counts."""
    answers: Counter[Endpoint] = Counter()
    limited: Counter[tuple[Endpoint, str]] = Counter()
    for *columns, started_at, verdict, reason in (tuple(row.values()) for row in transaction.rows(_answers_query())):
        lane = Lane(*columns)
        counted = [key for key in (lane.endpoint, lane.account) if started_at > slowed_at.get(key, LONG_AGO)]
        answers.update(counted)
        if verdict == Verdict.RATE_LIMITED:
            key = lane.account if (reason or "").startswith("global-") else lane.endpoint
            limited.update([(key, reason or "")] if key in counted else [])
    return [Limited(key, reason, answers[key], count) for (key, reason), count in limited.items()]


@cache
def _answers_query() -> Select[Any]:
    lately = (attempts.c.finished_at > now(-COUNTED_SECONDS), attempts.c.http_status.is_not(None))
    turned_away = select(attempts.c.job_id).where(*lately, attempts.c.verdict == Verdict.RATE_LIMITED.value)
    # Nearly always nothing was turned away: then this is one look into an index.
    return (
        select(*LANE_COLUMNS, attempts.c.started_at, attempts.c.verdict, attempts.c.rate_limited_reason)
        .join(attempts, attempts.c.job_id == jobs.c.id)
        .where(*lately, exists(turned_away))
    )
