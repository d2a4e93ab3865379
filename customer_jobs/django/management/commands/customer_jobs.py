"""`manage.py customer_jobs migrate [--sql]`: our tables in the database of Django's settings."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS
from django.utils.connection import ConnectionDoesNotExist

from customer_jobs.django import DjangoJobs
from customer_jobs.errors import CustomerJobsError
from customer_jobs.migrate import migrate, migration_sql


class Command(BaseCommand):
    """Makes or updates the tables of customer-jobs."""

    help = "Make or update the tables of customer-jobs."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("action", choices=["migrate"], help="bring the database to this version's tables")
        parser.add_argument("--sql", action="store_true", help="print the script instead of running it")
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS, help="the name in DATABASES; 'default' if left out")

    def handle(self, *_: Any, sql: bool, database: str, **__: Any) -> None:
        try:
            engine = DjangoJobs(database).engine
        except ConnectionDoesNotExist as error:
            raise CommandError(str(error)) from error
        try:
            if sql:
                self.stdout.write(migration_sql(engine.url))
                return
            applied = migrate(engine)
        except CustomerJobsError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"applied {', '.join(applied)}" if applied else "the tables are up to date")
