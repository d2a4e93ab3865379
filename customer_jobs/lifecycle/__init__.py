"""The changes of a job's state, each one guarded statement with what must be written beside it in the same transaction.

The caller owns the transaction. A change that comes too late (the lease was lost, the job is final) changes nothing and
says so. Who decides *which* change is due lives elsewhere: the runner for attempts, the dispatcher for leases.

`claims` takes a job for an attempt, `ends` says how the attempt leaves it, `ledger` keeps what came of it, `leases`
says who may work on it, `by_hand` is for people, apps and webhooks; `attempt` holds the values that pass between them.
"""

from customer_jobs.lifecycle.attempt import Claim, Entry, Row, Sending, Success, entry_of, refusal, success_of
from customer_jobs.lifecycle.by_hand import cancel, latest_retry, retry_by_hand, suggest, suggested
from customer_jobs.lifecycle.claims import LEASE_SECONDS, claim, read
from customer_jobs.lifecycle.ends import fail, fail_unclaimed, retry_later, succeed
from customer_jobs.lifecycle.leases import (
    cut_short,
    expired,
    extend,
    mark_dispatched,
    postpone,
    rescue_unclaimed,
    start_reconciling,
    take_back,
)
from customer_jobs.lifecycle.ledger import (
    Past,
    complete_attempt,
    looks_since_sent,
    may_be_executed,
    past,
    tries_since_sent,
)

__all__ = [
    "LEASE_SECONDS",
    "Claim",
    "Entry",
    "Past",
    "Row",
    "Sending",
    "Success",
    "cancel",
    "claim",
    "complete_attempt",
    "cut_short",
    "entry_of",
    "expired",
    "extend",
    "fail",
    "fail_unclaimed",
    "latest_retry",
    "looks_since_sent",
    "mark_dispatched",
    "may_be_executed",
    "past",
    "postpone",
    "read",
    "refusal",
    "rescue_unclaimed",
    "retry_by_hand",
    "retry_later",
    "start_reconciling",
    "succeed",
    "success_of",
    "suggest",
    "suggested",
    "take_back",
    "tries_since_sent",
]
