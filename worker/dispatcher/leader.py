"""Which dispatcher leads: one row, held for ten seconds at a time."""

from __future__ import annotations

from sqlalchemy import BindParameter, ColumnElement, exists, or_, select, update

from customer_jobs.database import Transaction
from customer_jobs.schema import leases
from customer_jobs.sql import now

LEASE = "dispatcher"  #: The row's name.
LEASE_SECONDS = 10  #: A leader that was killed is replaced within this and one look of the others.
RENEW_EVERY_SECONDS = 3  #: Two renewals may fail.
LOOK_EVERY_SECONDS = 1  #: How often the others try to take it.


def take_lead(transaction: Transaction, holder: str) -> bool:
    """Take or renew the lead; whether `holder` leads now."""
    statement = transaction.insert(leases).values(name=LEASE, holder=holder, expires_at=now(LEASE_SECONDS))
    free = or_(leases.c.holder == holder, leases.c.expires_at < now())
    statement = statement.on_conflict_do_update(
        index_elements=[leases.c.name],
        set_={"holder": holder, "expires_at": statement.excluded.expires_at},
        where=free,
    ).returning(leases.c.holder)
    return transaction.row(statement) is not None


def give_up_lead(transaction: Transaction, holder: str) -> None:
    """Let another lead at once."""
    transaction.change(
        update(leases).where(leases.c.name == LEASE, leases.c.holder == holder).values(expires_at=now(-1))
    )


def leads(holder: str | BindParameter[str]) -> ColumnElement[bool]:
    """Whether `holder` leads at this moment, as a condition of a statement."""
    # Without a lock on the row: a leader that is stopped in a transaction must not keep another from taking over.
    return exists().where(leases.c.name == LEASE, leases.c.holder == holder, leases.c.expires_at > now())


def still_leads(transaction: Transaction, holder: str) -> bool:
    """Whether `holder` leads: one that was stopped and goes on finds out before it writes."""
    return bool(transaction.value(select(leads(holder))))
