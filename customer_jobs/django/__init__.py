"""`jobs`: CustomerJobs on Django's current connection, so that `atomic()` and `TestCase` take a job back with the rest.

Add `"customer_jobs.django"` to INSTALLED_APPS; then `manage.py migrate` makes our tables too. `on_commit` would be the
wrong place to enqueue: a process that dies between the commit and the hook loses the job.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from customer_jobs.django.connection import DjangoTransaction, engine_of
from customer_jobs.errors import Unavailable
from customer_jobs.producer import CustomerJobs

__all__ = ["DjangoJobs", "jobs"]


class DjangoJobs(CustomerJobs):
    """CustomerJobs whose every call goes through one of Django's connections."""

    def __init__(self, using: str = "default", *, schema: str | None = None) -> None:
        self._using = using
        self._schema = schema

    @property
    def engine(self) -> Any:  # type: ignore[override]
        """SQLAlchemy's view of the same database, on connections of its own; for migrations."""
        return engine_of(self._using, self._schema)

    @contextmanager
    def _transaction(self, session: Any, *, only_reads: bool = False) -> Iterator[Any]:
        from django.db import InterfaceError, OperationalError, connections, transaction

        if session is not None:
            with super()._transaction(session, only_reads=only_reads) as given:
                yield given
            return
        in_transaction = connections[self._using].in_atomic_block
        try:
            # Within the app's atomic() this is a savepoint, elsewhere a transaction.
            with transaction.atomic(using=self._using):
                yield DjangoTransaction(self._using, self._schema)
        except (OperationalError, InterfaceError) as error:
            if in_transaction:
                raise  # What ends the app's own transaction is told to the app in Django's words.
            problem = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise Unavailable(f"the database {self._using!r} of Django cannot be used: {problem}") from error


jobs = DjangoJobs()
