"""Our statements through Django's cursors, and Django's database as an SQLAlchemy engine; no job is known here."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import BindParameter, Engine, Executable, create_engine
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import psycopg as psycopg_dialect
from sqlalchemy.engine import URL, Dialect
from sqlalchemy.pool import NullPool
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import ValuesBase
from sqlalchemy.sql.visitors import cloned_traverse

from customer_jobs.database import Transaction, in_our_schema, insert_of, open_engine, schema_map
from customer_jobs.errors import InvalidSetting
from customer_jobs.patience import connect

_FLOAT8 = 701  # PostgreSQL's only number type in our tables that SQLAlchemy asks the driver about.

#: Django's cursors take `%(name)s` on both databases.
_DIALECTS: dict[str, Dialect] = {
    "postgresql": psycopg_dialect.PGDialect_psycopg(paramstyle="pyformat"),  # type: ignore[no-untyped-call]
    "sqlite": sqlite.dialect(paramstyle="pyformat"),
}
_DIALECTS["sqlite"].default_schema_name = "main"  # Otherwise asked of a connection of SQLAlchemy's own.


class DjangoTransaction(Transaction):
    """A Transaction that speaks through Django's connection, whatever transaction that is in."""

    def __init__(self, using: str, schema: str | None = None) -> None:
        from django.db import connections

        self._django = connections[using]
        self.dialect_name = _vendor(self._django)
        self._dialect = _DIALECTS[self.dialect_name]
        self._schema_map = schema_map(self.dialect_name, schema)

    def rows(self, statement: Executable, parameters: Any = None) -> list[dict[str, Any]]:
        compiled = self._compile(statement, parameters)
        types = [entry.type for entry in compiled._result_columns]  # noqa: SLF001 - what a result has to be read with
        names = [entry.keyname for entry in compiled._result_columns]  # noqa: SLF001
        readers = [each._cached_result_processor(self._dialect, _FLOAT8) for each in types]  # noqa: SLF001
        with self._cursor() as cursor:
            cursor.execute(*self._bound(compiled))
            found = cursor.fetchall()
        return [
            {
                name: value if read is None else read(value)
                for name, read, value in zip(names, readers, row, strict=True)
            }
            for row in found
        ]

    def change(self, statement: Executable, parameters: Any = None) -> int:
        compiled = self._compile(statement, parameters)
        with self._cursor() as cursor:
            cursor.execute(*self._bound(compiled))
            return int(cursor.rowcount)

    def savepoint(self) -> AbstractContextManager[object]:
        from django.db import transaction

        savepoint: AbstractContextManager[object] = transaction.atomic(using=self._django.alias)
        return savepoint

    def insert(self, table: Any) -> Any:
        return insert_of(self.dialect_name, table)

    def _cursor(self) -> Any:
        cursor = self._django.cursor()
        if self.dialect_name == "postgresql":
            from psycopg.types.datetime import TimestamptzLoader

            # With USE_TZ = False Django's own loader drops the zone, which is that of the connection.
            cursor.cursor.adapters.register_loader("timestamptz", TimestamptzLoader)
        return cursor

    def _compile(self, statement: Any, parameters: Any = None) -> SQLCompiler:
        if isinstance(parameters, list):
            # Django's executemany returns nothing: many rows are one statement here.
            statement = statement.values(parameters)
        elif parameters is not None:
            if isinstance(statement, ValuesBase):
                # As SQLAlchemy does when it executes: what has the name of a column is written into it.
                named = {name: value for name, value in parameters.items() if name in statement.table.columns}
                statement = statement.values(named) if named else statement
            statement = _with_values(statement, parameters)
        compiled: SQLCompiler = statement.compile(
            dialect=self._dialect,
            schema_translate_map=self._schema_map,
            render_schema_translate=True,
            compile_kwargs={"render_postcompile": True},
        )
        return compiled

    def _bound(self, compiled: SQLCompiler) -> tuple[str, dict[str, Any]]:
        writers = compiled._bind_processors  # noqa: SLF001 - what a parameter has to be written with
        values = compiled.construct_params(escape_names=False)
        bound = {name: writers[name](value) if name in writers else value for name, value in values.items()}  # type: ignore[operator]
        return str(compiled), bound


def _with_values(statement: Any, parameters: Mapping[str, Any]) -> Any:
    """The statement with its named parameters filled in; SQLAlchemy's own `params()` does so for a SELECT only."""

    def fill_in(parameter: BindParameter[Any]) -> None:
        if parameter.key in parameters:
            parameter.value, parameter.required = parameters[parameter.key], False

    return cloned_traverse(statement, {"maintain_key": True}, {"bindparam": fill_in})


def engine_of(using: str, schema: str | None = None) -> Engine:
    """An engine on the database of one of Django's connections, for what needs SQLAlchemy's own."""
    from django.db import connections

    django = connections[using]
    settings = django.settings_dict
    if _vendor(django) == "sqlite":
        name = str(settings["NAME"])
        if not name.startswith("file:"):
            return open_engine(URL.create("sqlite", database=name))
        # The database of a test lives in memory, shared by name between connections.
        return in_our_schema(
            create_engine("sqlite://", creator=lambda: sqlite3.connect(name, uri=True, timeout=10), poolclass=NullPool)
        )
    parameters = django.get_connection_params()
    url = URL.create("postgresql+psycopg")
    options = {name: value for name, value in parameters.items() if name not in {"cursor_factory", "context"}}
    return in_our_schema(create_engine(url, creator=lambda: connect(**options), poolclass=NullPool), schema)


def _vendor(django: Any) -> str:
    if django.vendor not in _DIALECTS:
        raise InvalidSetting(f"DATABASES names {django.vendor!r}; customer-jobs works on postgresql and sqlite")
    return str(django.vendor)
