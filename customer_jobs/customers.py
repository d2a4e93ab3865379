"""The local copy of Stripe's customers: newest wins, deleted is a flag."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import update

from customer_jobs.database import Transaction
from customer_jobs.schema import customers


def keep_copy(transaction: Transaction, job: Mapping[str, Any], customer: Mapping[str, Any], *, asked_at: Any) -> None:
    """Keep what Stripe answered to an attempt begun at `asked_at`, unless a newer answer is already here."""
    deleted = customer.get("deleted") is True
    values = {
        "credential": job["credential"],
        "stripe_account": job["stripe_account"] or "",
        "livemode": job["livemode"],
        "id": customer["id"],
        "email": customer.get("email"),
        "name": customer.get("name"),
        "metadata": customer.get("metadata"),
        "external_id": job["external_id"],
        "deleted": deleted,
        "data": dict(customer),
        "fetched_at": asked_at,
    }
    statement = transaction.insert(customers).values(**values)
    new = statement.excluded
    # A deleted customer's object is a stub; what was known of it is worth keeping beside the flag.
    kept = {"deleted", "fetched_at"} if deleted else {"email", "name", "metadata", "deleted", "data", "fetched_at"}
    if job["external_id"] is not None:
        kept.add("external_id")
    transaction.change(
        statement.on_conflict_do_update(
            index_elements=list(customers.primary_key.columns),
            set_={name: new[name] for name in kept},
            where=customers.c.fetched_at <= new.fetched_at,
        )
    )


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
