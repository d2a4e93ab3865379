"""What can go wrong for a caller, one class for each thing that can be done about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from customer_jobs.job import Job


class CustomerJobsError(Exception):
    """The base of every error raised on purpose; its message says what to do."""


class InvalidJob(CustomerJobsError, ValueError):
    """Change the named field and call again; nothing was written."""

    def __init__(self, field: str, problem: str) -> None:
        self.field = field  #: The argument or body parameter at fault, as in `metadata[plan]`.
        self.problem = problem
        super().__init__(f"{field}: {problem}")


class InvalidDocument(InvalidJob):
    """Change the low-code component's document and run it again; nothing was enqueued."""

    def __init__(self, field: str, problem: str, *, number: int | None = None) -> None:
        super().__init__(field, problem)
        self.number = number  #: Which of several documents, counted from 1.
        place = "" if number is None else f"document {number}: "
        # Without a field it is about the document as a whole.
        self.args = (f"{place}{field}: {problem}" if field else f"{place}{problem}",)


class ConflictError(CustomerJobsError):
    """The external_id already belongs to a job with another body: read `job`, or choose another id."""

    def __init__(self, job: Job) -> None:
        self.job = job  #: The job that holds the external_id.
        super().__init__(
            f"external_id {job.external_id!r} already belongs to job {job.id} with another body; "
            "use that job's customer, or give this one an external_id of its own"
        )


class UnknownJob(CustomerJobsError, LookupError):
    """Look the id up again: no such job is in the table (it may have been pruned)."""

    def __init__(self, job_id: object) -> None:
        super().__init__(f"no job {job_id!s}; `customer-jobs list` shows the latest")


class NotRetryable(CustomerJobsError):
    """Only a failed job can be retried by hand; the message names the state it is in."""


class InvalidSetting(CustomerJobsError):
    """Set the named environment variable and start again."""


class Unavailable(CustomerJobsError):
    """The database or Redis cannot be reached: try again when it is back; nothing was written."""
