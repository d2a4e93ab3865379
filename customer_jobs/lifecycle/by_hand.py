"""What a person, an app or a webhook changes about a job: taken back, tried again, told where to look."""

from __future__ import annotations

from sqlalchemy import null, select, update

from customer_jobs.database import Transaction
from customer_jobs.lifecycle.attempt import Row
from customer_jobs.lifecycle.claims import read
from customer_jobs.lifecycle.ends import change_job, emit_completion
from customer_jobs.schema import credentials, is_waiting, jobs
from customer_jobs.sql import Unreadable, now
from customer_jobs.vocabulary import KEY_REFUSED, Kind, State


def cancel(transaction: Transaction, job_id: str) -> bool:
    """Take a waiting job back; False once Stripe may have heard of it, or when it is not waiting."""
    row = change_job(
        transaction,
        jobs.c.id == job_id,
        jobs.c.state.in_([State.QUEUED, State.RETRYING]),
        jobs.c.first_sent_at.is_(None),
        state=State.CANCELLED,
        finished_at=now(),
    )
    if row is not None:
        emit_completion(transaction, row)
    return row is not None


def retry_by_hand(transaction: Transaction, failed: Row, *, candidate_customer_id: str | None = None) -> Row | None:
    """The new job that takes a failed one's place, or None: it has one already, or its external_id went elsewhere.

    Where Stripe may have executed the old job, the new one begins by looking for the customer.
    """
    taken_over = (
        "kind", "payload", "external_id", "credential", "stripe_account", "priority", "max_attempts",
        "first_sent_at", "sent_to", "traceparent",
    )  # fmt: skip
    unknown = failed["first_sent_at"] is not None
    values = {name: failed[name] for name in taken_over} | {
        "context": None if isinstance(failed["context"], Unreadable) else failed["context"],
        "retry_of": failed["id"],
        "reconciling": unknown,
        # Frozen parameters hold the old job's id; what was certainly not executed is prepared anew. Of a job that was
        # emptied meanwhile there are none, and to look at a customer none are needed.
        "params": (failed["params"] or "{}") if unknown else None,
        "candidate_customer_id": candidate_customer_id or failed["candidate_customer_id"],
        "customer_id": failed["customer_id"] if failed["kind"] == Kind.CUSTOMER_FETCH else None,
    }
    if (failed["error"] or {}).get("http_status") in {401, 403}:
        # Whoever tries again says that the key, for which the others wait, may do it now.
        refused = credentials.c.reason.startswith(KEY_REFUSED)
        of_job = update(credentials).where(credentials.c.name == failed["credential"], refused)
        transaction.change(of_job.values(paused_at=null(), reason=null()))
    transaction.change(update(jobs).where(jobs.c.id == failed["id"]).values(external_id=None))
    statement = transaction.insert(jobs).values(**values).on_conflict_do_nothing()
    made = transaction.row(statement.returning(*jobs.c))
    if made is None:
        transaction.change(update(jobs).where(jobs.c.id == failed["id"]).values(external_id=failed["external_id"]))
    return made


def latest_retry(transaction: Transaction, job_id: str) -> Row | None:
    """The row of a job, or of the last one that was made to retry it by hand."""
    row = read(transaction, job_id)
    while row is not None and (of := transaction.row(select(jobs.c.id).where(jobs.c.retry_of == row["id"]))):
        row = read(transaction, of["id"])
    return row


def suggest(transaction: Transaction, job_id: str, customer_id: str) -> int:
    """Let a job that looks for its customer begin with this one, at once."""
    # A retry by hand of a job that may have been executed is one, too, before its first attempt.
    waiting = (is_waiting(), jobs.c.first_sent_at.is_not(None))
    values = {"candidate_customer_id": customer_id, "due_at": now(), "reconciling": True}
    return transaction.change(update(jobs).where(jobs.c.id == job_id, *waiting).values(**values))


def suggested(transaction: Transaction, job_id: str) -> str | None:
    """The customer to begin with, as it is now; nobody suggests another before the end of the transaction."""
    row = transaction.row(select(jobs.c.candidate_customer_id).where(jobs.c.id == job_id).with_for_update())
    return row["candidate_customer_id"] if row is not None else None
