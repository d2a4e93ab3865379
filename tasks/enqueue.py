"""The door for apps that have only the broker: a message becomes a job whose id is the message's task id."""

from __future__ import annotations

from typing import Any

from celery import Task

from customer_jobs.errors import ConflictError, InvalidJob, Unavailable
from customer_jobs.vocabulary import Kind
from worker.app import TaskFailed, app
from worker.process import producer
from worker.settings import settings

RETRY_SECONDS = 5  #: Until the database is asked again.


# Acknowledged when the row is there: until then the message is all there is.
@app.task(bind=True, name="customer.enqueue", throws=(TaskFailed,), acks_late=True, max_retries=None)
def enqueue(self: Task, kind: Any = None, payload: Any = None, external_id: Any = None, context: Any = None) -> str:
    """Insert a job; the same message again is the same job."""
    if kind == Kind.CUSTOMER_CREATE and not settings().allow_broker_payloads:
        raise TaskFailed(
            "creates by broker carry personal data through it: insert them into the table instead, "
            "or allow them with ALLOW_BROKER_PAYLOADS=true on the workers"
        )
    try:
        job = producer().enqueue(kind, payload, job_id=self.request.id, external_id=external_id, context=context)
    except InvalidJob as error:
        # The field, and not what was in it.
        raise TaskFailed(f"{error.field} is invalid; CustomerJobs.enqueue in Python says why") from None
    except ConflictError as error:
        raise TaskFailed(f"the external_id already belongs to job {error.job.id} with another body") from None
    except Unavailable as error:
        raise self.retry(countdown=RETRY_SECONDS, exc=TaskFailed("the database cannot be reached")) from error
    return job.id
