"""Which dispatcher leads: one row, held for ten seconds at a time; and a sign that it does look for due jobs."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import BindParameter, ColumnElement, Executable, Select, bindparam, exists, or_, select, update

from customer_jobs.database import Transaction, insert_of
from customer_jobs.lanes import LONGEST_LEASE_SECONDS
from customer_jobs.schema import leases
from customer_jobs.sql import now
from customer_jobs.vocabulary import LOOK_COUNTS_SECONDS, Lease

LEASE_SECONDS = 10  #: A leader that was killed is replaced within this and one look of the others.
RENEW_EVERY_SECONDS = 3  #: Two renewals may fail.
LOOK_EVERY_SECONDS = 1  #: How often the others try to take it.


def take_lead(transaction: Transaction, holder: str) -> bool:
    """Take or renew the lead; whether `holder` leads now."""
    return transaction.row(_taking(transaction.dialect_name), {"holder": holder}) is not None


@cache
def _taking(dialect_name: str) -> Executable:
    statement = insert_of(dialect_name, leases).values(name=Lease.LEAD, expires_at=now(LEASE_SECONDS))
    new = statement.excluded
    taking: Executable = statement.on_conflict_do_update(
        index_elements=[leases.c.name],
        set_={"holder": new.holder, "expires_at": new.expires_at},
        where=or_(
            leases.c.holder == new.holder,
            leases.c.expires_at < now(),
            leases.c.expires_at > now(LONGEST_LEASE_SECONDS),
        ),
    ).returning(leases.c.holder)
    return taking


def show_looks(transaction: Transaction, holder: str, *, seconds_ago: float) -> None:
    """Let `customer-jobs health` know when the leader looked for due jobs last: a thread of it that hangs is found out.

    Written beside the renewal of the lead; one write for each look would, on SQLite, wake up the next.
    """
    expires_at = now(LOOK_COUNTS_SECONDS - seconds_ago)
    statement = transaction.insert(leases).values(name=Lease.LOOKS, holder=holder, expires_at=expires_at)
    excluded = {name: statement.excluded[name] for name in ("holder", "expires_at")}
    transaction.change(statement.on_conflict_do_update(index_elements=[leases.c.name], set_=excluded))


def give_up_lead(transaction: Transaction, holder: str) -> None:
    """Let another lead at once."""
    transaction.change(
        update(leases).where(leases.c.name == Lease.LEAD, leases.c.holder == holder).values(expires_at=now(-1))
    )


def leads(holder: str | BindParameter[str]) -> ColumnElement[bool]:
    """Whether `holder` leads at this moment, as a condition of a statement."""
    # Without a lock on the row: a leader that is stopped in a transaction must not keep another from taking over.
    return exists().where(leases.c.name == Lease.LEAD, leases.c.holder == holder, leases.c.expires_at > now())


def still_leads(transaction: Transaction, holder: str) -> bool:
    """Whether `holder` leads: one that was stopped and goes on finds out before it writes."""
    return bool(transaction.value(_leading(), {"of_holder": holder}))


@cache
def _leading() -> Select[Any]:
    return select(leads(bindparam("of_holder")))
