"""Intake: takes an event in, once, and enqueues the fetch of its customer in the same transaction.

An event is only news that something changed: what is kept is what Stripe answers when asked afterwards. So events may
come twice, late or in any order.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select, update
from sqlalchemy.orm import Session

from customer_jobs.database import Transaction
from customer_jobs.errors import InvalidJob
from customer_jobs.payload import check_credential, check_priority
from customer_jobs.producer import CustomerJobs
from customer_jobs.schema import credentials, jobs, webhook_events
from customer_jobs.webhooks.event import Event, read_event
from customer_jobs.webhooks.own_creates import settle
from customer_jobs.webhooks.rules import RULES, Rule, customer_of
from customer_jobs.webhooks.secrets import key_is_live

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Receipt:
    """What became of an event."""

    event_id: str
    job_id: str | None  #: The fetch that it caused, or the create of ours that it helps; None: neither.
    duplicate: bool  #: It had been taken in before; `job_id` is that of the first time.


class Intake:
    """Takes in events that were verified already, those of one credential."""

    def __init__(
        self, jobs: CustomerJobs, credential: str = "default", rules: Sequence[Rule] = RULES, *, priority: str | int
    ) -> None:
        self._jobs = jobs
        self._credential = check_credential(credential)
        self._rules = tuple(rules)
        self._priority = check_priority(priority)

    def accept(self, event: Any, *, session: Session | Connection | None = None) -> Receipt:
        """The receipt of an event, stored with its job in one transaction. Raises InvalidEvent."""
        read = read_event(event)
        with self._jobs._transaction(session) as transaction:  # noqa: SLF001 - the other way into the same table
            receipt = self._take_in(transaction, read, alone=session is None)
        log.info(
            "event event_id=%s type=%s credential=%s stripe_account=%s job_id=%s duplicate=%s",
            read.id, read.type, self._credential, read.stripe_account, receipt.job_id, receipt.duplicate,
        )  # fmt: skip
        return receipt

    def _take_in(self, transaction: Transaction, event: Event, *, alone: bool) -> Receipt:
        row = {"id": event.id, "type": event.type, "created": event.created}
        # A second delivery at the same moment waits here until the first is committed.
        statement = transaction.insert(webhook_events).values(**row).on_conflict_do_nothing()
        if not transaction.rows(statement.returning(webhook_events.c.id)):
            return self._again(transaction, event, alone=alone)
        job_id = self._job_for(transaction, event, alone=alone)
        if job_id is not None:
            of_event = webhook_events.c.id == event.id
            transaction.change(update(webhook_events).where(of_event).values(job_id=job_id))
        return Receipt(event.id, job_id, duplicate=False)

    def _again(self, transaction: Transaction, event: Event, *, alone: bool) -> Receipt:
        """What became of an event that is known."""
        query = (
            select(webhook_events.c.job_id, jobs.c.credential)
            .outerjoin_from(webhook_events, jobs, jobs.c.id == webhook_events.c.job_id)
            .where(webhook_events.c.id == event.id)
        )
        first = transaction.row(query)
        if first is not None and first["credential"] not in {None, self._credential}:
            # One account may stand behind two credentials, each with an endpoint and a copy of its own.
            return Receipt(event.id, self._job_for(transaction, event, alone=alone), duplicate=True)
        return Receipt(event.id, first["job_id"] if first is not None else None, duplicate=True)

    def _job_for(self, transaction: Transaction, event: Event, *, alone: bool) -> str | None:
        customer_id = customer_of(event, self._rules)
        if customer_id is None or self._is_of_the_other_mode(transaction, event):
            return None
        if (ours := settle(transaction, event, customer_id, self._credential)) is not None:
            return ours.job_id
        if alone:
            self._queue_up(transaction, event, customer_id)
        try:
            job = self._jobs.fetch_customer(
                customer_id,
                credential=self._credential,
                stripe_account=event.stripe_account,
                priority=self._priority,
                session=transaction,
            )
        except InvalidJob as error:
            # Ids that were chosen by hand long ago; refusing the event would only bring it back.
            log.warning("no fetch event_id=%s type=%s problem=%s", event.id, event.type, error.field)
            return None
        return job.id

    def _is_of_the_other_mode(self, transaction: Transaction, event: Event) -> bool:
        """Whether the credential's key could not even see the customer.

        That is nobody's mistake: Stripe sends test events of connected accounts to live endpoints, too.
        Source: https://docs.stripe.com/connect/webhooks
        """
        known = transaction.row(select(credentials.c.livemode).where(credentials.c.name == self._credential))
        livemode = key_is_live(self._credential) if known is None else known["livemode"]
        if None in (livemode, event.livemode) or livemode == event.livemode:
            return False
        log.warning(
            "event of the other mode event_id=%s type=%s livemode=%s credential=%s",
            event.id, event.type, event.livemode, self._credential,
        )  # fmt: skip
        return True

    def _queue_up(self, transaction: Transaction, event: Event, customer_id: str) -> None:
        """Let events about one customer take turns until the commit, so that they find one another's fetch.

        Only in a transaction of our own: the app's may last long, and hold locks in another order.
        """
        if transaction.dialect_name == "postgresql":
            words = f"customer-jobs {self._credential} {event.stripe_account} {customer_id}"
            number = int.from_bytes(hashlib.sha256(words.encode("utf-8", "replace")).digest()[:8], signed=True)
            transaction.rows(select(func.pg_advisory_xact_lock(number)))
