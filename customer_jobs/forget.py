"""Erases what the tables hold of a person; ids and digests stay, so that nothing is done a second time.

Stripe, the stream and backups are not touched: what is there is erased there.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Select,
    Text,
    and_,
    bindparam,
    cast,
    func,
    literal_column,
    null,
    or_,
    select,
    tuple_,
    update,
)

from customer_jobs.database import Transaction
from customer_jobs.errors import CustomerJobsError, InvalidJob
from customer_jobs.payload import payload_digest
from customer_jobs.schema import HOLDS_EXTERNAL_ID, attempts, customers, events, job_account, jobs
from customer_jobs.vocabulary import FINAL_STATES, Kind

NAMED_AT_MOST = 5  #: Jobs that a refusal names.
#: Values in one statement. PostgreSQL takes 65,535; whoever was fetched every minute for a month has as many jobs.
AT_ONCE = 1000
#: Older than any answer of Stripe's: an emptied copy is never young enough to answer a fetch.
LONG_AGO = datetime(1970, 1, 2, tzinfo=UTC)

#: What every program writes into JSON as it is. Others than Python escape + and ' and /, too, and may write jobs.
_NEVER_ESCAPED = re.compile(r"[a-z0-9@._-]+")

#: What ties jobs together, and what must be known to erase one: never the large answers.
_TIES = (jobs.c.id, jobs.c.customer_id, jobs.c.credential, jobs.c.stripe_account, jobs.c.external_id, jobs.c.retry_of)
_NEEDED = (
    *_TIES, jobs.c.kind, jobs.c.state, jobs.c.payload, jobs.c.error, jobs.c.body_digest, jobs.c.created_at,
)  # fmt: skip

Row = dict[str, Any]
_Value = TypeVar("_Value")


class NotForgettable(CustomerJobsError):
    """Wait for the jobs that the message names, or cancel them; nothing was erased."""


@dataclass(frozen=True)
class Found:
    """What the tables hold of a person."""

    jobs: list[Row]
    copies: list[Row]  #: Rows of `customers`.

    @property
    def job_ids(self) -> list[str]:
        return [row["id"] for row in self.jobs]

    @property
    def customer_ids(self) -> list[str]:
        """Whom to delete at Stripe."""
        ids = {row["customer_id"] for row in self.jobs} | {row["id"] for row in self.copies}
        return sorted(ids - {None})


def find(
    transaction: Transaction,
    *,
    customer_id: str | None = None,
    external_id: str | None = None,
    email: str | None = None,
    job_id: str | None = None,
) -> Found:
    """Every job and local copy about a person: those named, and whatever has their customer id or external_id.

    An e-mail address is looked for in every row, which takes seconds in a large table. Raises InvalidJob unless one
    thing is given, and not a blank one.
    """
    given = [value for value in (customer_id, external_id, email, job_id) if value is not None]
    if len(given) != 1:
        raise InvalidJob("forget", "give one of customer id, external_id, e-mail address and job id")
    if not given[0].strip():
        # Whoever has no address has a blank one, and a script's variable may be empty.
        raise InvalidJob("forget", f"{given[0]!r} names nobody")
    about: list[Row] = []
    copies: list[Row] = []
    if job_id is not None:
        about = transaction.rows(select(*_TIES).where(jobs.c.id == job_id))
    elif email is not None:
        about, copies = _with_email(transaction, email)
    elif customer_id is not None:
        copies = transaction.rows(select(*customers.c).where(customers.c.id == customer_id))
        about = transaction.rows(select(*_TIES).where(jobs.c.customer_id == customer_id))
    else:
        copies = transaction.rows(select(*customers.c).where(customers.c.external_id == external_id))
        about = transaction.rows(select(*_TIES).where(jobs.c.external_id == external_id))
    return _with_all_of_theirs(transaction, about, copies)


def forget(transaction: Transaction, found: Found) -> None:
    """Erase what was found. Raises NotForgettable while one of the jobs may still need it."""
    if unfinished := [row for row in found.jobs if row["state"] not in FINAL_STATES]:
        named = ", ".join(f"{row['id']} is {row['state']}" for row in unfinished[:NAMED_AT_MOST])
        more = f" and {len(unfinished) - NAMED_AT_MOST} more" if len(unfinished) > NAMED_AT_MOST else ""
        raise NotForgettable(
            f"job {named}{more}; wait for the end or `customer-jobs cancel {unfinished[0]['id']}`, then forget"
        )
    for some in _parts(found.jobs):
        by_columns = defaultdict(list)
        for row in some:
            values = _emptied_of(row)
            by_columns[tuple(values)].append({"of_id": row["id"], **values})
        for each in by_columns.values():
            # What they hold is given when it is executed, by the names of its columns.
            transaction.change(update(jobs).where(jobs.c.id == bindparam("of_id")), each)
        job_ids = [row["id"] for row in some]
        transaction.change(update(attempts).where(attempts.c.job_id.in_(job_ids)).values(error_message=null()))
        _empty_events(transaction, job_ids)
    for copy in found.copies:
        key = and_(*(column == copy[column.name] for column in customers.primary_key.columns))
        # The row itself stays: it is what keeps an external_id that a fetch linked from getting a second customer.
        values = {"email": null(), "name": null(), "metadata": null(), "fetched_at": LONG_AGO}
        stub = {"id": copy["id"], "object": "customer"}
        transaction.change(update(customers).where(key).values(**values, data=stub))


def emptied(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a final job's columns beside its payload hold once nothing personal is left in them."""
    error = row["error"] if isinstance(row["error"], dict) else None
    return {
        "params": None,
        "context": None,
        "result": None,
        # Messages and parameters may quote what was sent.
        "error": {**error, "message": None, "param": None} if error is not None else None,
    }


def _emptied_of(row: Row) -> dict[str, Any]:
    values = emptied(row)
    if row["kind"] != Kind.CUSTOMER_FETCH:  # That of a fetch is an id and names of fields.
        values["payload"] = {}
        if row["holds_external_id"] and row["body_digest"] is None:
            values["body_digest"] = payload_digest(row["payload"])
    return values


def _empty_events(transaction: Transaction, job_ids: Sequence[str]) -> None:
    """The context is the producer's own, and may hold anything; the rest are ids."""
    for event in transaction.rows(select(events.c.seq, events.c.data).where(events.c.subject.in_(job_ids))):
        if isinstance(event["data"], dict) and event["data"].get("context") is not None:
            emptied = {**event["data"], "context": None}
            transaction.change(update(events).where(events.c.seq == event["seq"]).values(data=emptied))


def _with_email(transaction: Transaction, email: str) -> tuple[list[Row], list[Row]]:
    wanted = email.strip().lower()
    # Found by its text first, then by what it is: the text of another field may hold the address as well, and JSON
    # may spell one letter in two ways.
    sure = max(_NEVER_ESCAPED.findall(wanted), key=len, default="")
    text = [func.lower(cast(column, Text)) for column in (jobs.c.payload, jobs.c.result)]
    may_hold = or_(*(each.contains(sure, autoescape=True) for each in text))
    about = [row for row in transaction.rows(select(*jobs.c).where(may_hold)) if wanted in _emails(row)]
    return about, transaction.rows(select(*customers.c).where(func.lower(customers.c.email) == wanted))


def _emails(row: Row) -> set[str]:
    result = row["result"] if isinstance(row["result"], Mapping) else {}
    body = row["payload"].get("body") if isinstance(row["payload"], Mapping) else None
    given = body.get("email") if isinstance(body, Mapping) else None
    return {str(each).strip().lower() for each in (given, result.get("customer_email")) if each is not None}


def _with_all_of_theirs(transaction: Transaction, about: Iterable[Row], copies: Iterable[Row]) -> Found:
    """All that hangs together by customer ids, by external_ids within their account, and by retries."""
    found = {row["id"]: row for row in about}
    held = {_key(row): row for row in copies}
    seen = -1
    while seen != len(found) + len(held):
        seen = len(found) + len(held)
        customer_ids = {row["customer_id"] for row in found.values()} - {None} | {row["id"] for row in held.values()}
        own_ids = {
            (row["credential"], row["stripe_account"] or "", row["external_id"])
            for row in (*found.values(), *held.values())
            if row["external_id"] is not None
        }
        retried = {row["retry_of"] for row in found.values()} - {None}
        for column, values in (
            (jobs.c.customer_id, customer_ids),
            (tuple_(jobs.c.credential, job_account, jobs.c.external_id), own_ids),
            (jobs.c.retry_of, set(found)),
            (jobs.c.id, retried),
        ):
            found |= {row["id"]: row for row in _rows(transaction, select(*_TIES), column, values)}
        for column, values in (
            (customers.c.id, customer_ids),
            (tuple_(customers.c.credential, customers.c.stripe_account, customers.c.external_id), own_ids),
        ):
            held |= {_key(row): row for row in _rows(transaction, select(*customers.c), column, values)}
    return Found(_locked(transaction, found), list(held.values()))


def _locked(transaction: Transaction, job_ids: Iterable[str]) -> list[Row]:
    holds: Any = literal_column(f"({HOLDS_EXTERNAL_ID})").label("holds_external_id")
    rows = _rows(transaction, select(*_NEEDED, holds).with_for_update(), jobs.c.id, job_ids)
    return sorted(rows, key=lambda row: (row["created_at"], row["id"]))


def _rows(
    transaction: Transaction, query: Select[Any], column: ColumnElement[Any], values: Iterable[Any]
) -> Iterator[Row]:
    for some in _parts(sorted(values)):
        yield from transaction.rows(query.where(column.in_(some)))


def _parts(every: Sequence[_Value]) -> Iterator[Sequence[_Value]]:
    for start in range(0, len(every), AT_ONCE):
        yield every[start : start + AT_ONCE]


def _key(copy: Row) -> tuple[Any, ...]:
    return tuple(copy[column.name] for column in customers.primary_key.columns)
