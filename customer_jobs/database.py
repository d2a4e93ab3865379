"""Engines and transactions on PostgreSQL and SQLite, and how a statement finds our schema; no query lives here."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from sqlalchemy import (
    BindParameter,
    Column,
    ColumnElement,
    Connection,
    CursorResult,
    Engine,
    Executable,
    FromClause,
    Table,
    bindparam,
    cast,
    create_engine,
    event,
    make_url,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    InvalidatePoolError,
    MultipleResultsFound,
    NoSuchModuleError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry

from customer_jobs.environment import setting
from customer_jobs.errors import InvalidSetting, Unavailable
from customer_jobs.patience import connect_patiently, for_a_ping
from customer_jobs.schema import SCHEMA

CONNECT_TIMEOUT_SECONDS = 3  #: An unreachable database is reported well within five seconds.
SQLITE_BUSY_TIMEOUT_SECONDS = 10  #: Writers take turns; ten seconds of waiting means that one of them hangs.

SQLITE_PAUSE_SECONDS = 0.01  #: Between two tries to switch a new file to WAL.

#: No transaction of ours waits for anything but the database: one that does nothing for so long belongs to a process
#: that was stopped, and ends, with its locks, before that process can go on.
IDLE_TIMEOUT_SECONDS = 8

#: What is meant by names without a driver, and by those of an app whose own engine is asynchronous.
_DRIVERS = {
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+asyncpg": "postgresql+psycopg",
    "postgresql+psycopg_async": "postgresql+psycopg",
    "sqlite+aiosqlite": "sqlite",
}

TRUSTED_SECONDS = 1.0  #: A pooled connection that was in use so lately is not asked whether it still answers.

READ_ONLY = "25006"  #: Source: https://www.postgresql.org/docs/current/errcodes-appendix.html

AUTOCOMMIT = {"isolation_level": "AUTOCOMMIT"}  #: Every statement is a transaction by itself.

#: libpq's, for every connection of ours. A server that vanished is noticed within about 15 s: by an idle connection
#: instead of after two hours, by one that has just sent something instead of after a quarter of an hour.
#: Source: man7.org/linux/man-pages/man7/tcp.7.html
CONNECT_OPTIONS = {
    "connect_timeout": CONNECT_TIMEOUT_SECONDS,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}


def database_url(environ: Mapping[str, str] = os.environ) -> URL:
    """The database named by DATABASE_URL, or an InvalidSetting that says how to set it."""
    value = setting("DATABASE_URL", environ)
    if value is None:
        raise InvalidSetting(
            "DATABASE_URL is not set; for example: export DATABASE_URL=postgresql://user:password@localhost/app"
        )
    return parse_url(value)


def parse_url(value: str | URL) -> URL:
    """SQLAlchemy's URL of a database we support, whichever spelling came in; raises InvalidSetting."""
    try:
        url = make_url(value)
    except (ArgumentError, ValueError):  # ValueError: the port is no number, as with a @ or : in the password.
        # The text may hold a password: it is not repeated.
        raise InvalidSetting(
            "DATABASE_URL is not a database URL; it looks like postgresql://user:password@host/name or sqlite:///file"
        ) from None
    backend = url.get_backend_name()
    if backend not in {"postgres", "postgresql", "sqlite"}:
        raise InvalidSetting(f"DATABASE_URL names {backend!r}; customer-jobs works on postgresql and sqlite")
    url = url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))
    try:
        url.get_dialect()
    except NoSuchModuleError:
        raise InvalidSetting(f"DATABASE_URL names a driver that SQLAlchemy does not know: {url.drivername!r}") from None
    return url


def open_engine(url: str | URL, *, schema: str | None = None, pool_size: int = 5) -> Engine:
    """An engine set up for short transactions; it connects when first used.

    `schema` is the PostgreSQL schema of our tables; left out, DATABASE_SCHEMA or `customer_jobs`.
    """
    url = parse_url(url)
    if url.get_backend_name() == "sqlite":
        engine = create_engine(
            url, hide_parameters=True, connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS, "isolation_level": None}
        )
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_immediately)
    else:
        try:
            engine = create_engine(
                url,
                hide_parameters=True,  # An error must not carry a customer's data into a log.
                pool_size=pool_size,
                max_overflow=pool_size,
                # The connection used last knows our statements already: it has prepared them.
                pool_use_lifo=True,
                pool_timeout=CONNECT_TIMEOUT_SECONDS,
                connect_args=CONNECT_OPTIONS,
            )
        except ImportError as error:
            raise InvalidSetting(
                "DATABASE_URL names postgresql, whose driver is missing: pip install 'customer-jobs[postgres]'"
            ) from error
        if engine.dialect.driver == "psycopg":
            connect_patiently(engine)
            event.listen(engine, "connect", _read_odd_times)
        event.listen(engine, "connect", _prepare_postgresql)
        event.listen(engine, "handle_error", _leave_a_standby)
        _ping_unless_used_lately(engine)
    return in_our_schema(engine, schema)


def in_our_schema(engine: Engine, schema: str | None = None) -> Engine:
    """The same engine and pool, seen so that our tables are found in the right schema."""
    options = _options(engine.dialect.name, schema)
    return engine.execution_options(**options, options_of_ours=options)


def _options(dialect_name: str, schema: str | None) -> dict[str, Any]:
    places = schema_map(dialect_name, schema)
    return {"schema_translate_map": places} if places else {}


def schema_map(dialect_name: str, schema: str | None = None) -> dict[str, str | None]:
    """Where a statement on our tables finds them, if not where they are declared."""
    name = None if dialect_name == "sqlite" else schema or schema_name()
    return {} if name == SCHEMA else {SCHEMA: name}


class Transaction:
    """A connection within a transaction that somebody else ends, seen so that our tables are found.

    On PostgreSQL those of `reading` and `alone` are within none: there each statement is a transaction by itself.

    The connection itself, which may be the app's own, keeps its options.
    """

    def __init__(self, connection: Connection, schema: str | None = None) -> None:
        self.dialect_name = connection.dialect.name
        self._connection = connection
        # Every job passes several transactions: an engine of ours knows what the environment would be asked for.
        known = None if schema is not None else connection.get_execution_options().get("options_of_ours")
        self._options = (_options(self.dialect_name, schema) if known is None else known) or None

    def rows(self, statement: Executable, parameters: Any = None) -> list[dict[str, Any]]:
        """What a statement returns, each row by the names of its columns."""
        result = self._execute(statement, parameters)
        names = tuple(result.keys())
        return [dict(zip(names, row, strict=True)) for row in result]

    def row(self, statement: Executable, parameters: Any = None) -> dict[str, Any] | None:
        """The only row, or None."""
        rows = self.rows(statement, parameters)
        if len(rows) > 1:
            raise MultipleResultsFound
        return rows[0] if rows else None

    def value(self, statement: Executable, parameters: Any = None) -> Any:
        """The first value of the first row."""
        return next(iter(self.rows(statement, parameters)[0].values()))

    def change(self, statement: Executable, parameters: Any = None) -> int:
        """Execute a statement that returns nothing; how many rows it changed."""
        return self._execute(statement, parameters).rowcount

    def savepoint(self) -> AbstractContextManager[object]:
        """A part of the transaction that is undone as a whole when an error leaves it."""
        if self.dialect_name == "sqlite" and not self._connection.connection.driver_connection.in_transaction:  # type: ignore[union-attr]
            # On an app's plain engine the driver begins before a change but not before a savepoint, whose end would
            # then be a commit.
            self._connection.exec_driver_sql("BEGIN")
        return self._connection.begin_nested()

    def insert(self, table: Table) -> Any:
        """The dialect's INSERT, which knows ON CONFLICT."""
        return insert_of(self.dialect_name, table)

    def _execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        return self._connection.execute(statement, parameters, execution_options=self._options)


def insert_of(dialect_name: str, table: Table) -> Any:
    """A dialect's INSERT, which knows ON CONFLICT."""
    return sqlite.insert(table) if dialect_name == "sqlite" else postgresql.insert(table)


def given(column: Column[Any]) -> BindParameter[Any]:
    """The value of a column that is given when a statement is executed, by the names of the table and the column."""
    return bindparam(f"{column.table.name}_{column.name}", type_=column.type)


def named(table: Table, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of some of a table's columns under the names that `given` has for them."""
    return {f"{table.name}_{name}": value for name, value in values.items()}


def inserting(
    dialect_name: str,
    table: Table,
    names: Iterable[str],
    *,
    computed: Mapping[str, ColumnElement[Any]] | None = None,
    beside: FromClause | None = None,
) -> Any:
    """The dialect's INSERT of a row of `given` values and computed ones.

    With `beside`, a change in the same statement, it inserts a row if that has changed one.
    """
    columns = [table.c[name] for name in names]
    if beside is None:
        values = {column.name: given(column) for column in columns} | dict(computed or {})
        return insert_of(dialect_name, table).values(values)
    typed = {column.name: cast(given(column), column.type) for column in columns} | dict(computed or {})
    row = select(*(value.label(name) for name, value in typed.items())).select_from(beside)
    return insert_of(dialect_name, table).from_select(list(typed), row)


@contextmanager
def writing(engine: Engine, schema: str | None = None) -> Iterator[Transaction]:
    """A transaction of its own, committed at the end; an unreachable database is Unavailable."""
    with translating_outages(), engine.begin() as connection:
        yield Transaction(connection, schema)


@contextmanager
def reading(engine: Engine, schema: str | None = None) -> Iterator[Transaction]:
    """For statements that only read; an unreachable database is Unavailable."""
    # Each sees what is committed when it begins: on PostgreSQL BEGIN and ROLLBACK would be two round trips for nothing.
    options: dict[str, Any] = {"only_reads": True} if engine.dialect.name == "sqlite" else AUTOCOMMIT
    with translating_outages(), engine.connect() as connection:
        yield Transaction(connection.execution_options(**options), schema)


@contextmanager
def alone(engine: Engine) -> Iterator[Transaction]:
    """A transaction for a single statement: PostgreSQL is spared the round trips of BEGIN and COMMIT."""
    if engine.dialect.name == "sqlite":
        with writing(engine) as transaction:
            yield transaction
    else:
        with translating_outages(), engine.connect() as connection:
            yield Transaction(connection.execution_options(**AUTOCOMMIT))


def schema_name(environ: Mapping[str, str] = os.environ) -> str:
    """The PostgreSQL schema of our tables."""
    return setting("DATABASE_SCHEMA", environ) or SCHEMA


def _prepare_sqlite(connection: Any, _: ConnectionPoolEntry) -> None:
    # SQLite keeps any bytes as text; a row with broken ones must not spoil the whole query.
    connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    cursor = connection.cursor()
    _switch_to_wal(cursor)
    cursor.execute("PRAGMA synchronous = NORMAL")  # Safe against a killed process; WAL keeps it consistent.
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _prepare_postgresql(connection: Any, _: ConnectionPoolEntry) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET idle_in_transaction_session_timeout = '{IDLE_TIMEOUT_SECONDS}s'")
    connection.commit()


def _leave_a_standby(context: ExceptionContext) -> None:
    # As when a name led to the standby for a moment: it answers every ping, and would never be left.
    error = context.original_exception
    if READ_ONLY in (getattr(error, "sqlstate", None), getattr(error, "pgcode", None)):  # psycopg 3, psycopg2.
        context.is_disconnect = True


def _read_odd_times(connection: Any, _: ConnectionPoolEntry) -> None:
    """PostgreSQL knows infinity and the year 20,000; a row that has them must not spoil the whole query."""
    from psycopg import DataError
    from psycopg.adapt import Loader

    loads = connection.adapters.get_loader(connection.adapters.types["timestamptz"].oid, 0)

    class OddTime(Loader):
        def __init__(self, oid: int, context: Any = None) -> None:
            super().__init__(oid, context)
            self._load = loads(oid, context).load

        def load(self, data: Any) -> Any:
            try:
                return self._load(data)
            except DataError:
                return None

    connection.adapters.register_loader("timestamptz", OddTime)


def _ping_unless_used_lately(engine: Engine) -> None:
    """SQLAlchemy's own pool_pre_ping asks every time, which a job that passes several transactions feels."""

    def note_use(_: Any, entry: ConnectionPoolEntry) -> None:
        entry.info["used_at"] = time.monotonic()

    def ping(connection: Any, entry: ConnectionPoolEntry, _: Any) -> None:
        used_at = entry.info.get("used_at")
        if used_at is None or time.monotonic() - used_at < TRUSTED_SECONDS:
            return
        try:
            with for_a_ping(connection):
                engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            # What broke this connection, as a restart does, broke the others.
            raise InvalidatePoolError from error

    event.listen(engine, "checkin", note_use)
    event.listen(engine, "checkout", ping)


def _switch_to_wal(cursor: Any) -> None:
    """Let readers and the writer not wait for each other."""
    give_up_at = time.monotonic() + SQLITE_BUSY_TIMEOUT_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            # SQLite does not wait by itself when several processes do this to a new file at once.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_at:
                raise
            time.sleep(SQLITE_PAUSE_SECONDS)
        else:
            return


def _begin_immediately(connection: Connection) -> None:
    # A transaction that reads first and writes later would fail with "database is locked" instead of waiting its turn;
    # one that says it only reads never waits at all.
    only_reads = connection.get_execution_options().get("only_reads", False)
    connection.exec_driver_sql("BEGIN" if only_reads else "BEGIN IMMEDIATE")


def is_unavailable(error: DBAPIError) -> bool:
    """Whether the database could not be reached or dropped us, rather than refused a statement."""
    return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)


@contextmanager
def translating_outages() -> Iterator[None]:
    """Turn a driver's "cannot reach the database" into Unavailable, in one line and without the URL."""
    try:
        yield
    except PoolTimeout as error:
        raise Unavailable("the database of DATABASE_URL cannot be used: no connection of the pool came free") from error
    except DBAPIError as error:
        if not is_unavailable(error):
            raise
        first_line = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error.orig).__name__
        raise Unavailable(f"the database of DATABASE_URL cannot be used: {first_line}") from error
