"""A durable, event-driven worker for Stripe customers: what an app imports."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from customer_jobs.consumer import EventConsumer
    from customer_jobs.errors import (
        ConflictError,
        CustomerJobsError,
        InvalidDocument,
        InvalidJob,
        InvalidSetting,
        NotRetryable,
        Unavailable,
        UnknownJob,
    )
    from customer_jobs.events import Event
    from customer_jobs.job import Attempt, Customer, Job
    from customer_jobs.producer import CustomerJobs
    from customer_jobs.republish import replay
    from customer_jobs.vocabulary import Kind, Outcome, Priority, State, Verdict

__version__ = "0.1.0"

__all__ = [
    "Attempt",
    "ConflictError",
    "Customer",
    "CustomerJobs",
    "CustomerJobsError",
    "Event",
    "EventConsumer",
    "InvalidDocument",
    "InvalidJob",
    "InvalidSetting",
    "Job",
    "Kind",
    "NotRetryable",
    "Outcome",
    "Priority",
    "State",
    "Unavailable",
    "UnknownJob",
    "Verdict",
    "__version__",
    "replay",
]

#: Where a name comes from when it is first asked for: SQLAlchemy takes half a second that `customer-jobs --help`, the
#: sandbox and the leashes need not spend.
_MODULES = {
    "consumer": ("EventConsumer",),
    "errors": (
        "ConflictError",
        "CustomerJobsError",
        "InvalidDocument",
        "InvalidJob",
        "InvalidSetting",
        "NotRetryable",
        "Unavailable",
        "UnknownJob",
    ),
    "events": ("Event",),
    "job": ("Attempt", "Customer", "Job"),
    "producer": ("CustomerJobs",),
    "republish": ("replay",),
    "vocabulary": ("Kind", "Outcome", "Priority", "State", "Verdict"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
