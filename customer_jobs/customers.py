"""The local copy of Stripe's customers: newest wins, deleted is a flag."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import FromClause, Insert, case, update

from customer_jobs.database import Transaction, inserting
from customer_jobs.schema import customers


def copy_of(job: Mapping[str, Any], customer: Mapping[str, Any], *, asked_at: datetime) -> dict[str, Any]:
    """The row for what Stripe answered to an attempt begun at `asked_at`; `job` is its row as it is by then."""
    return {
        "credential": job["credential"],
        "stripe_account": job["stripe_account"] or "",
        "livemode": job["livemode"],
        "id": customer["id"],
        "email": customer.get("email"),
        "name": customer.get("name"),
        "metadata": customer.get("metadata"),
        "external_id": job["external_id"],
        "deleted": customer.get("deleted") is True,
        "data": dict(customer),
        "fetched_at": asked_at,
    }


@cache
def keeping(dialect_name: str, *, is_stub: bool, links: bool, beside: FromClause | None = None) -> Insert:
    """The statement that keeps a copy unless a newer answer is already here; `beside` as for `inserting`."""
    new = inserting(dialect_name, customers, customers.c.keys(), beside=beside)
    # A deleted customer's object is a stub; what was known of it is worth keeping beside the flag.
    kept = {"deleted", "fetched_at"} if is_stub else {"email", "name", "metadata", "deleted", "data", "fetched_at"}
    is_newer = customers.c.fetched_at <= new.excluded.fetched_at
    values = {name: case((is_newer, new.excluded[name]), else_=customers.c[name]) for name in kept}
    if links:
        # It is in no answer, and without it a create under the same external_id would make a second customer.
        values["external_id"] = new.excluded.external_id
    changes: Insert = new.on_conflict_do_update(
        index_elements=list(customers.primary_key.columns), set_=values, where=None if links else is_newer
    )
    return changes


def link_copy(transaction: Transaction, job: Mapping[str, Any]) -> None:
    """Note the external_id of a job that was answered from the copy."""
    if job["external_id"] is not None:
        transaction.change(
            update(customers)
            .where(
                customers.c.credential == job["credential"],
                customers.c.stripe_account == (job["stripe_account"] or ""),
                customers.c.livemode == job["livemode"],
                customers.c.id == job["customer_id"],
            )
            .values(external_id=job["external_id"])
        )
