"""The Django app: makes our tables when `manage.py migrate` makes the app's own, in test databases too."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.db.models.signals import post_migrate

from customer_jobs.django import jobs
from customer_jobs.migrate import migrate


class CustomerJobsConfig(AppConfig):
    """Registered by `"customer_jobs.django"` in INSTALLED_APPS."""

    name = "customer_jobs.django"
    label = "customer_jobs"
    verbose_name = "Customer jobs"

    def ready(self) -> None:
        post_migrate.connect(_make_tables, sender=self)


def _make_tables(using: str, **_: Any) -> None:
    if using == "default":
        migrate(jobs.engine)
