"""The Celery application: `celery -A worker.app worker` and `celery -A worker.app flower` need no further flags."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import structlog
from celery import Celery, Task, bootsteps, signals
from celery.exceptions import Ignore, Retry

from customer_jobs.database import open_engine
from customer_jobs.errors import InvalidSetting
from customer_jobs.vocabulary import Kind, State
from worker.dispatcher import Dispatcher
from worker.gateway import Gateway
from worker.logs import configure_logging
from worker.retry import RetryPolicy
from worker.runner import Call, Recorded, Runner
from worker.settings import Settings, settings

QUEUE = "customer-jobs"  #: Never the default queue of an app that shares the Redis.
THREADS = 16  #: A call to Stripe takes a few hundred milliseconds of waiting: 16 threads reach well over 25 a second.

log = structlog.get_logger(__name__)


class JobFailed(Exception):
    """Shows a failed job as FAILURE in Flower; holds the error's code and nothing of the customer's."""


def configuration() -> dict[str, Any]:
    """Celery's settings, made of ours when Celery first asks for them."""
    try:
        broker_url = settings().redis_url.get_secret_value()
    except InvalidSetting as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    return {
        "broker_url": broker_url,
        "task_default_queue": QUEUE,
        "task_create_missing_queues": False,
        "control_exchange": QUEUE,
        "event_exchange": f"{QUEUE}-events",
        # The job table is the only truth: no results, and nothing in a message but an id.
        "task_ignore_result": True,
        "task_serializer": "json",
        "accept_content": ["json"],
        "worker_pool": "threads",
        "worker_concurrency": THREADS,
        "worker_prefetch_multiplier": 1,
        # A message is acknowledged when it arrives; a crash is a lease that runs out.
        "task_acks_late": False,
        "worker_send_task_events": True,
        "worker_hijack_root_logger": False,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": {
            "global_keyprefix": f"{QUEUE}:",
            "socket_timeout": 5,
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
            "health_check_interval": 10,
        },
        "task_publish_retry_policy": {"max_retries": 1, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.1},
    }


app = Celery("customer-jobs", include=["tasks.customers"])
app.add_defaults(configuration)


_retries: dict[str, RetryPolicy] = {}  #: By kind, as the tasks declare them.


def task(kind: Kind, *, retry: RetryPolicy) -> Callable[[Call], Task]:
    """Make a call to Stripe the Celery task of a kind: its argument is a job's id, the runner does the rest."""
    _retries[kind] = retry

    def register(call: Call) -> Task:
        @app.task(bind=True, name=kind.value, throws=(JobFailed,), __doc__=call.__doc__)
        def make_attempt(self: Task, job_id: str) -> str:
            recorded = runner().attempt(job_id, call, retry, worker=self.request.hostname or "unknown")
            return _shown_in_celery(recorded)

        return make_attempt

    return register


def _shown_in_celery(recorded: Recorded | None) -> str:
    if recorded is None:
        raise Ignore
    match recorded.state:
        case State.RETRYING:
            # Raised without publishing: the dispatcher sends the job again when it is due.
            raise Retry(recorded.code, when=recorded.delay_seconds)
        case State.FAILED:
            raise JobFailed(recorded.code)
        case _:
            return recorded.outcome.value if recorded.outcome is not None else recorded.code or ""


def runner() -> Runner:
    """The runner of this process; a forked child gets one of its own, with connections of its own."""
    return _runner_of(os.getpid())


@cache
def _runner_of(pid: int) -> Runner:  # noqa: ARG001 - the process is the key
    return Runner(_engine(settings()), Gateway(settings()), when_recorded=_wake)


def _engine(of: Settings) -> Any:
    # A connection for each thread, and those of the dispatcher.
    return open_engine(of.database_url.get_secret_value(), schema=of.database_schema, pool_size=THREADS + 8)


def _wake() -> None:
    for dispatcher in _dispatchers:
        dispatcher.wake()


def publish(kind: str, job_id: str) -> None:
    """Hand a job to Celery: its id, and nothing else."""
    app.send_task(kind, args=(job_id,), task_id=job_id, queue=QUEUE, ignore_result=True)


_dispatchers: list[Dispatcher] = []  #: The one of this process, while it runs.


class DispatcherStep(bootsteps.StartStopStep):
    """Starts the dispatcher when the worker's threads are there, and stops it before they are waited for."""

    requires = ("celery.worker.components:Pool",)

    def start(self, parent: Any) -> None:
        engine = _engine(settings())
        dispatcher = Dispatcher(
            engine,
            settings(),
            publish,
            worker=parent.hostname,
            slots=parent.concurrency,
            abandon=lambda transaction, held: runner().abandon(transaction, held, _retries[held.job["kind"]]),
        )
        dispatcher.start()
        _dispatchers.append(dispatcher)

    def stop(self, parent: Any) -> None:  # noqa: ARG002 - Celery's signature
        for dispatcher in _dispatchers:
            dispatcher.stop()

    terminate = stop


app.steps["worker"].add(DispatcherStep)


@signals.setup_logging.connect
def _set_up_logging(**_: Any) -> None:
    configure_logging(settings().log_level)


@signals.worker_shutdown.connect
def _close(**_: Any) -> None:
    # After the last running job has ended.
    while _dispatchers:
        _dispatchers.pop().close()
