"""The buckets as rows of `lanes`: what may leave now, spent in the transaction that hands out the jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Select, Update, any_, bindparam, literal_column, select, tuple_, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import UserDefinedType

from customer_jobs.database import Transaction
from customer_jobs.lanes import Endpoint, Lane
from customer_jobs.schema import lanes
from customer_jobs.vocabulary import Kind
from worker.dispatcher.due import LONG_AGO
from worker.dispatcher.leader import leads
from worker.dispatcher.limits import Bucket
from worker.settings import ACCOUNT_LIMIT_PER_SECOND, Settings

CLOCK_STEP = timedelta(seconds=10)  #: A clock set back by more is believed, or nothing would leave until it is there.


class Allowance:
    """The buckets of some endpoints, read and locked for the length of a transaction.

    `places` is kept between looks: where PostgreSQL put each row when it was written last, its `ctid`. A row is written
    with every job that leaves; while a transaction stays open, even one that only reads, whoever looks for it by its
    key walks over all that it was since. Only a hint: a row that is not there any more is looked for by its key.
    `late_seconds` says how long the look before kept the next call of an endpoint waiting.
    """

    def __init__(
        self,
        settings: Settings,
        present: datetime,
        slowed_at: Mapping[Endpoint, datetime],
        places: dict[Endpoint, str | None],
        late_seconds: Mapping[Endpoint, float],
    ) -> None:
        self._settings = settings
        self._present = present
        self._slowed_at = slowed_at
        self._places = places
        self._late_seconds = late_seconds
        self.buckets: dict[Endpoint, Bucket] = {}
        self.paused: set[Endpoint] = set()
        self._changed: set[Endpoint] = set()
        self._refilled_at: dict[Endpoint, datetime] = {}

    def read(self, transaction: Transaction, wanted: Iterable[Endpoint]) -> None:
        """Read the buckets as they stand now, making the rows that are not there yet."""
        keys = [key for key in dict.fromkeys(wanted) if key not in self.buckets]
        if places := [place for key in keys if (place := self._places.get(key)) is not None]:
            self._read(transaction, keys, places)
        if moved := [key for key in keys if key not in self.buckets]:
            self._read(transaction, moved)
        if new := [key for key in keys if key not in self.buckets]:
            first = {key: Bucket.new(self._limit(key)) for key in new}
            begun = [{**key._asdict(), "tokens": each.tokens, "rate": each.rate} for key, each in first.items()]
            transaction.change(transaction.insert(lanes).on_conflict_do_nothing(), begun)
            # Another dispatcher may have been faster, and spent the token that it begins with.
            self._read(transaction, new)

    def _read(self, transaction: Transaction, keys: Sequence[Endpoint], places: Sequence[str] | None = None) -> None:
        given: dict[str, Any] = {"keys": [tuple(key) for key in keys]}
        if places is not None:
            given["places"] = list(places)
        for row in transaction.rows(_buckets_query(transaction.dialect_name, in_place=places is not None), given):
            key = Endpoint(row["credential"], row["stripe_account"], row["kind"])
            self._places[key] = row["place"]
            limit = self._limit(key)
            elapsed = (self._present - row["refilled_at"]).total_seconds()
            quiet = (self._present - self._slowed_at.get(key, LONG_AGO)).total_seconds()
            bucket = Bucket(row["tokens"], limit, min(row["rate"], limit))
            self.buckets[key] = bucket.refilled(elapsed, quiet, self._late_seconds.get(key, 0.0))
            self._refilled_at[key] = _later(self._present, row["refilled_at"])
            if row["paused_at"] is not None:
                self.paused.add(key)

    def is_paused(self, lane: Lane) -> bool:
        """Whether somebody has paused a lane, as far as was read."""
        return bool(self.paused and {lane.endpoint, lane.own, lane.account} & self.paused)

    def calls(self, lane: Lane) -> int:
        """How many calls may leave a lane now."""
        if self.is_paused(lane):
            return 0
        return min(self.buckets[lane.endpoint].calls, self.buckets[lane.account].calls)

    def seconds_until_next(self, lane: Lane) -> float:
        """How long until the next call may leave a lane."""
        return max(self.buckets[key].seconds_until() for key in (lane.endpoint, lane.account))

    def spend(self, lane: Lane) -> None:
        """Hand out one call."""
        for key in (lane.endpoint, lane.account):
            self.buckets[key] = self.buckets[key].spent(1)
            self._changed.add(key)

    def emptied(self) -> dict[Endpoint, float]:
        """The endpoints without a token, and how long until they have one."""
        until = {key: bucket.seconds_until() for key, bucket in self.buckets.items()}
        return {key: seconds for key, seconds in until.items() if seconds > 0}

    def slow(self, key: Endpoint, factor: float) -> None:
        """Give way to a limit that Stripe has shown."""
        self.buckets[key] = self.buckets[key].slowed(factor)
        self._changed.add(key)

    def is_slowed(self, key: Endpoint) -> bool:
        """Whether a rate is below what the settings allow."""
        return self.buckets[key].rate < self.buckets[key].limit

    def keep(self, transaction: Transaction, holder: str) -> bool:
        """Write down what time alone does not bring back, for the next look or the next leader.

        False if `holder` no longer leads: whoever does owns the tokens by now, and nothing may leave. A look that
        changed nothing writes nothing: on SQLite every write calls for another look.
        """
        statement = _keep_statement(transaction.dialect_name)
        for key in self._changed:
            bucket = self.buckets[key]
            of_row = {"of_credential": key.credential, "of_account": key.stripe_account, "of_kind": key.kind}
            given = {"tokens": bucket.tokens, "rate": bucket.rate, "refilled_at": self._refilled_at[key]}
            row = transaction.row(statement, of_row | given | {"of_holder": holder, "of_place": self._places[key]})
            if row is None:
                return False
            self._places[key] = row["place"]
        return True

    def _limit(self, key: Endpoint) -> float:
        match key.kind:
            case Kind.CUSTOMER_CREATE.value:
                return self._settings.rate_limit_create
            case "*":  # WHOLE_ACCOUNT; a bare name would match anything
                return self._account_limit(key.credential)
            case _:
                return self._settings.rate_limit_fetch

    def _account_limit(self, credential: str) -> float:
        if self._settings.rate_limit_account is not None:
            return self._settings.rate_limit_account
        known = credential in self._settings.stripe_api_keys
        live = known and self._settings.is_live(credential)
        return ACCOUNT_LIMIT_PER_SECOND[live]


def _later(present: datetime, refilled_at: datetime) -> datetime:
    """Up to when a bucket is filled: no time is counted twice where the clock stepped back, or another was faster."""
    return refilled_at if timedelta(0) < refilled_at - present < CLOCK_STEP else present


@cache
def _buckets_query(dialect_name: str, *, in_place: bool) -> Select[Any]:
    key = tuple_(lanes.c.credential, lanes.c.stripe_account, lanes.c.kind)
    query = select(*lanes.c, _place(dialect_name).label("place")).where(key.in_(bindparam("keys", expanding=True)))
    if in_place:
        query = query.where(_place(dialect_name) == any_(bindparam("places", type_=ARRAY(_Tid))))
    return query.with_for_update()


@cache
def _keep_statement(dialect_name: str) -> Update:
    conditions = [
        lanes.c.credential == bindparam("of_credential"),
        lanes.c.stripe_account == bindparam("of_account"),
        lanes.c.kind == bindparam("of_kind"),
        leads(bindparam("of_holder")),
    ]
    if dialect_name == "postgresql":
        # Read and locked in this transaction, it is still there.
        conditions.append(_place(dialect_name) == bindparam("of_place", type_=_Tid()))
    return (
        update(lanes)
        .where(*conditions)
        .values({name: bindparam(name) for name in ("tokens", "rate", "refilled_at")})
        .returning(_place(dialect_name).label("place"))
    )


class _Tid(UserDefinedType[str]):
    """The place of a row, as PostgreSQL numbers them."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "tid"


def _place(dialect_name: str) -> ColumnElement[str]:
    # SQLite keeps no earlier versions of a row.
    return literal_column("ctid" if dialect_name == "postgresql" else "NULL", _Tid())
