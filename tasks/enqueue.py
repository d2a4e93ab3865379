"""The door for apps that have only the broker: a message becomes a job whose id is the message's task id."""

from __future__ import annotations

import time
from typing import Any

import structlog
from celery import Task
from celery.exceptions import Reject

from customer_jobs.errors import ConflictError, InvalidJob, Unavailable
from customer_jobs.vocabulary import Kind
from worker.app import TaskFailed, app
from worker.logs import frames
from worker.process import producer
from worker.settings import settings

PAUSE_SECONDS = 2.0  #: Before a message goes back to the queue while the database is away.
ARGUMENTS = ("kind", "payload", "external_id", "context")

log = structlog.get_logger(__name__)


# Acknowledged when the row is there: until then the message is all there is.
@app.task(bind=True, name="customer.enqueue", throws=(TaskFailed,), acks_late=True, Request="worker.messages:Message")
def enqueue(self: Task, *args: Any, **kwargs: Any) -> str:
    """Insert a job; the same message again is the same job."""
    if args or not kwargs.keys() <= set(ARGUMENTS):
        raise TaskFailed(f"customer.enqueue takes {', '.join(ARGUMENTS)} as kwargs and nothing else")
    kind, payload = kwargs.pop("kind", None), kwargs.pop("payload", None)
    if kind == Kind.CUSTOMER_CREATE and not settings().allow_broker_payloads:
        raise TaskFailed(
            "creates by broker carry personal data through it: insert them into the table instead, "
            "or allow them with ALLOW_BROKER_PAYLOADS=true on the workers"
        )
    try:
        return producer().enqueue(kind, payload, job_id=self.request.id, **kwargs).id
    except InvalidJob as error:
        # The field, and not what was in it.
        field = "the task's id, which must be a UUID," if error.field == "job_id" else error.field
        raise TaskFailed(f"{field} is invalid; CustomerJobs.enqueue in Python says why") from None
    except ConflictError as error:
        what = "the external_id" if kwargs.get("external_id") else "the task's id"
        raise TaskFailed(f"{what} already belongs to job {error.job.id} with another body") from None
    except Unavailable:
        # Back to the queue: a retry would be published anew, and lost if Redis were away as well.
        log.warning("not enqueued yet: the database cannot be reached", job_id=self.request.id)
        time.sleep(PAUSE_SECONDS)
        raise Reject("the database cannot be reached", requeue=True) from None
    except Exception as error:  # noqa: BLE001 - its message may quote the row
        log.error("not enqueued", job_id=self.request.id, error=type(error).__name__, frames=frames(error))  # noqa: TRY400 - as above
        raise TaskFailed(f"{type(error).__name__}: the worker's log says where") from None
