"""The tables of `customer_jobs.schema` as typed classes, for the worker's side."""

from models.credential import Credential
from models.dispatch import Lane, Lease, Worker
from models.event import Event
from models.job import Attempt, Job

__all__ = ["Attempt", "Credential", "Event", "Job", "Lane", "Lease", "Worker"]
