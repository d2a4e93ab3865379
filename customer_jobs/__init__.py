"""A durable, event-driven worker for Stripe customers: what an app imports."""

from customer_jobs.errors import (
    ConflictError,
    CustomerJobsError,
    InvalidJob,
    InvalidSetting,
    NotRetryable,
    Unavailable,
    UnknownJob,
)
from customer_jobs.job import Attempt, Customer, Job
from customer_jobs.producer import CustomerJobs
from customer_jobs.vocabulary import Kind, Outcome, Priority, State, Verdict

__version__ = "0.1.0"

__all__ = [
    "Attempt",
    "ConflictError",
    "Customer",
    "CustomerJobs",
    "CustomerJobsError",
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
]
