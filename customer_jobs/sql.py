"""The column types and expressions that PostgreSQL and SQLite spell differently; no table and no query lives here."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    DateTime,
    Dialect,
    Float,
    String,
    Text,
    TypeDecorator,
    Uuid,
    cast,
    literal,
    type_coerce,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeEngine, UserDefinedType

MAX_DEPTH = 100  #: Levels of JSON; what is read at one depth of the stack must be writable at any other.


class UtcTime(TypeDecorator[datetime]):
    """An aware UTC datetime; `timestamptz` on PostgreSQL, text of fixed width on SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(_SqliteTime() if dialect.name == "sqlite" else DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | str | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a time needs a zone: {value!r}")
        utc = value.astimezone(UTC)
        # SQLite has no timestamp type: text of one fixed width, in UTC, compares as time does.
        return utc.replace(tzinfo=None).isoformat(" ", "microseconds") if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | str | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's signature
        if value is None:
            return None
        try:
            moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        except (TypeError, ValueError):
            return None  # Plain SQL wrote it; one odd row must not spoil the whole query.
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


class ForeignText(TypeDecorator[str]):
    """Text that others wrote, such as Stripe's messages: cut and cleaned so that no answer can fail to be recorded."""

    impl = Text
    cache_ok = True

    def __init__(self, length: int | None = None) -> None:
        super().__init__()
        self.length = length

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:  # noqa: ARG002 - SQLAlchemy's signature
        # Not the dialect's own type: psycopg's is VARCHAR for every text.
        return Text() if self.length is None else String(self.length)

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002 - SQLAlchemy's signature
        if value is None:
            return None
        return str(value).replace("\x00", "").encode("utf-8", "replace").decode()[: self.length]


class _SqliteTime(UserDefinedType[str]):
    """The name DATETIME and nothing else: the text passes as it is."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "DATETIME"


class JobId(TypeDecorator[str]):
    """A UUID, seen as its canonical text: `uuid` on PostgreSQL, 36 characters on SQLite."""

    impl = Uuid(as_uuid=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(String(36) if dialect.name == "sqlite" else Uuid(as_uuid=True))

    def process_bind_param(self, value: str | uuid.UUID | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        parsed = value if isinstance(value, uuid.UUID) else uuid.UUID(value)
        return str(parsed) if dialect.name == "sqlite" else parsed

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002 - SQLAlchemy's signature
        return None if value is None else str(value)


@dataclass(frozen=True)
class Unreadable:
    """Stands for a JSON column whose text cannot be parsed, so that one bad row never spoils a whole query."""

    problem: str


def is_storable(value: Any) -> bool:
    """Whether a `Json` column can hold a value: what others send may be nested too deep, or hold NaN."""
    try:
        _encode(value)
    except (ValueError, RecursionError):
        return False
    return True


class Json(UserDefinedType[Any]):
    """JSON kept as the text it was written as; unparsable text reads as `Unreadable` instead of raising.

    PostgreSQL's plain `json` keeps the order of keys and every character, as Stripe sent them.
    """

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "JSON"

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], str | None]:  # noqa: ARG002 - SQLAlchemy's signature
        # Escaped, so that a lone surrogate in somebody's answer cannot keep it from being stored.
        return lambda value: None if value is None else _encode(value)

    def column_expression(self, colexpr: ColumnElement[Any]) -> ColumnElement[Any]:
        # Every driver hands text over as text; left to itself psycopg would parse, and raise, on its own.
        return type_coerce(cast(colexpr, Text), self)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:  # noqa: ARG002 - SQLAlchemy's signature
        return _parse


def _parse(text: str | None) -> Any:
    if text is None:
        return None
    try:
        value = _decoder.decode(text)
    except (ValueError, RecursionError) as error:
        return Unreadable(f"not JSON: {error}")
    if is_too_deep(value, text):
        return Unreadable(f"nested deeper than {MAX_DEPTH} levels")
    return value


def is_too_deep(value: Any, text: str) -> bool:
    """Whether a value, written as this text, would read as `Unreadable`: its levels are too many."""
    return text.count("[") + text.count("{") > MAX_DEPTH and _is_deep(value)


def _finite(text: str) -> float:
    """A number that can be written down again: JSON allows 1e400, and Python would read it as infinity."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is out of range")
    return value


#: Made once: json's own functions make one of each for every value, where they are given options.
_encode = json.JSONEncoder(allow_nan=False).encode
_decoder = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = [each for members in inner for each in members]
    return bool(level)


class now(FunctionElement[datetime]):  # noqa: N801 - reads as the SQL function it stands for
    """The database's clock when the statement runs, not at the start of the transaction, plus some seconds."""

    type = UtcTime()
    inherit_cache = True

    def __init__(self, plus_seconds: float | ColumnElement[Any] = 0) -> None:
        seconds = literal(plus_seconds, Float) if isinstance(plus_seconds, int | float) else plus_seconds
        super().__init__(seconds)


@compiles(now, "postgresql")
def _now_postgresql(element: now, compiler: SQLCompiler, **kw: Any) -> str:
    (seconds,) = element.clauses
    # As a subquery it is read once for the statement, so that an index can be entered at that moment; a volatile
    # function would be called, and compared, row by row.
    return f"(SELECT clock_timestamp() + make_interval(secs => {compiler.process(seconds, **kw)}))"


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: SQLCompiler, **kw: Any) -> str:
    (seconds,) = element.clauses
    # SQLite counts milliseconds; the zeros keep the width of `UtcTime`.
    # A driver that marks parameters with % wants the other signs doubled.
    form = compiler.post_process_text("%Y-%m-%d %H:%M:%f")  # type: ignore[no-untyped-call]
    return f"(strftime('{form}', 'now', {compiler.process(seconds, **kw)} || ' seconds') || '000')"


class default_now(FunctionElement[datetime]):  # noqa: N801 - as above
    """The database's clock as a column default, free of parameters."""

    type = UtcTime()
    inherit_cache = True


@compiles(default_now, "postgresql")
def _default_now_postgresql(*_: Any, **__: Any) -> str:
    return "clock_timestamp()"


@compiles(default_now, "sqlite")
def _default_now_sqlite(*_: Any, **__: Any) -> str:
    return "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')"


class default_id(FunctionElement[str]):  # noqa: N801 - as above
    """A random UUID (version 4) as a column default."""

    type = JobId()
    inherit_cache = True


@compiles(default_id, "postgresql")
def _default_id_postgresql(*_: Any, **__: Any) -> str:
    return "gen_random_uuid()"


@compiles(default_id, "sqlite")
def _default_id_sqlite(*_: Any, **__: Any) -> str:
    return (
        "(lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-' || "
        "substr('89ab', 1 + (random() & 3), 1) || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6))))"
    )


def is_one_of(column: ColumnElement[Any], values: Iterable[str]) -> ColumnElement[bool]:
    """`column IN ('a', 'b')` with the values written into the statement.

    Both databases use a partial index only where they can see that its condition holds, which a parameter hides.
    """
    written = [literal(str(value), String, literal_execute=True) for value in values]
    # SQLite does not see that IN with one value is =.
    return column == written[0] if len(written) == 1 else column.in_(written)
