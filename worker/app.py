"""The Celery application: `celery -A worker.app worker` and `celery -A worker.app flower` need no further flags."""

from __future__ import annotations

import argparse
import sys
import uuid
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import structlog
from celery import Celery, Task, bootsteps, signals
from celery.exceptions import Ignore, Retry

from customer_jobs.broker import PREFIX, QUEUE
from customer_jobs.errors import CustomerJobsError, InvalidSetting
from customer_jobs.stream import redis_url
from customer_jobs.vocabulary import Kind, State
from worker import process
from worker.dispatcher import Dispatcher
from worker.logs import configure_logging, frames
from worker.record import Recorded
from worker.retry import RetryPolicy
from worker.runner import Call
from worker.settings import require_redis, settings

log = structlog.get_logger(__name__)

PUBLISHED_TOGETHER = 8  #: Messages in one round trip: the first does not wait long for the last to be made.
#: What to write instead of a message of one's own to customer.create or customer.fetch.
ENQUEUE_INSTEAD = (
    'this task takes a job\'s id and nothing else; to enqueue a job by broker: send_task("customer.enqueue", '
    'kwargs={"kind": ..., "payload": ...}, queue="customer-jobs")'
)


class TaskFailed(Exception):
    """Shows a job or a message that failed as FAILURE in Flower; holds codes and names, nothing of the customer's."""


def _exit(error: CustomerJobsError) -> NoReturn:
    sys.stderr.write(f"error: {error}\n")
    raise SystemExit(2) from None


def _broker_url() -> str:
    """REDIS_URL: all that Flower needs of our settings, so no key and no database password has to be where it runs."""
    try:
        return settings().redis_url.get_secret_value()
    except InvalidSetting as error:
        # A worker is told all that is wrong when it starts.
        try:
            require_redis(redis_url())
        except InvalidSetting:
            _exit(error)
        return redis_url()


def _pool(words: Sequence[str]) -> str:
    """Threads, unless the command line asks for processes.

    Celery 5.7 takes `--pool prefork` for its own default, which a configured pool overrides. Source: celery.bin.worker,
    `WorkersPool.convert`.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-P", "--pool")
    try:
        asked_for = parser.parse_known_args(words)[0].pool
    except argparse.ArgumentError:
        asked_for = None  # Celery itself says what is wrong.
    return "prefork" if asked_for == "prefork" else "threads"


def configuration() -> dict[str, Any]:
    """Celery's settings, made of ours when Celery first asks for them."""
    return {
        "broker_url": _broker_url(),
        "task_default_queue": QUEUE,
        "task_create_missing_queues": False,
        "control_exchange": QUEUE,
        "event_exchange": f"{QUEUE}-events",
        # The job table is the only truth: no results, and nothing in a message but an id.
        "task_ignore_result": True,
        "task_serializer": "json",
        "accept_content": ["json"],
        "worker_pool": _pool(sys.argv[1:]),
        "worker_concurrency": process.THREADS,
        # A message is taken when a thread is free for it. One held in reserve could not go to another worker, and
        # ends this one when Redis goes away: kombu 5.7 tries to put it back through a connection it has closed.
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        # A message is acknowledged when it arrives; a crash is a lease that runs out.
        "task_acks_late": False,
        "worker_send_task_events": True,
        "worker_hijack_root_logger": False,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "worker_consumer": "worker.broker:PromptConsumer",
        "broker_transport_options": {
            "global_keyprefix": PREFIX,
            "socket_timeout": 5,
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
            "health_check_interval": 10,
            # Of all messages only those of customer.enqueue stay unacknowledged, for seconds: one whose worker was
            # killed goes to another in a good minute, not in Celery's hour. Doubled, it is the same job.
            "visibility_timeout": 60,
            # Looked for every 10 s, where kombu would every 100 s; and whoever died while looking keeps nobody from it
            # for 5 minutes.
            "unacked_restore_throttle": 1,
            "unacked_mutex_expire": 30,
        },
        "task_publish_retry_policy": {"max_retries": 1, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.1},
    }


app = Celery("customer-jobs", include=["tasks.customers", "tasks.enqueue"])
app.add_defaults(configuration)

_retries: dict[str, RetryPolicy] = {}  #: By kind, as the tasks declare them.


def task(kind: Kind, *, retry: RetryPolicy) -> Callable[[Call], Task]:
    """Make a call to Stripe the Celery task of a kind: its argument is a job's id, the runner does the rest."""
    _retries[kind] = retry

    def register(call: Call) -> Task:
        @app.task(
            bind=True, name=kind.value, throws=(TaskFailed,), Request="worker.messages:Message", __doc__=call.__doc__
        )
        def make_attempt(self: Task, *args: Any, **kwargs: Any) -> str:
            job_id = _only_a_job_id(args, kwargs)
            try:
                recorded = process.runner().attempt(job_id, call, retry, worker=self.request.hostname or "unknown")
            except Exception as error:  # noqa: BLE001 - the lease runs out and the job is tried again
                log.error("broke off", job_id=job_id, error=type(error).__name__, frames=frames(error))  # noqa: TRY400 - its message may quote a row
                raise TaskFailed(f"{type(error).__name__}: the worker's log says where") from None
            return _shown_in_celery(recorded)

        return make_attempt

    return register


def retry_of(kind: str) -> RetryPolicy:
    """How jobs of a kind are tried again; one that plain SQL made up waits like any, and ends when it is due."""
    return _retries.get(kind, RetryPolicy())


def publish(jobs: Sequence[tuple[str, str]]) -> None:
    """Hand jobs to Celery, each by its kind and id, and nothing else; raises what the broker raises.

    A few go in one round trip. After an error some may have arrived, and some not.
    """
    with app.producer_or_acquire() as producer, producer.batch(max_size=PUBLISHED_TOGETHER):
        for kind, job_id in jobs:
            shown = {"argsrepr": f"('{job_id}',)", "kwargsrepr": "{}"}
            # The queue is a list that Redis makes when something is put into it: there is nothing to declare.
            options = {"queue": QUEUE, "declare": (), "ignore_result": True, "producer": producer}
            app.send_task(kind, args=(job_id,), task_id=job_id, **shown, **options)


def _only_a_job_id(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    try:
        (job_id,) = args
        if not kwargs:
            return str(uuid.UUID(job_id))
    except (ValueError, TypeError, AttributeError):
        pass
    # Without what the message held, which may be anybody's data.
    raise TaskFailed(ENQUEUE_INSTEAD)


def _shown_in_celery(recorded: Recorded | None) -> str:
    if recorded is None:
        raise Ignore
    match recorded.state:
        case State.RETRYING:
            # Raised without publishing: the dispatcher sends the job again when it is due.
            raise Retry(recorded.code, when=recorded.delay_seconds)
        case State.FAILED:
            raise TaskFailed(recorded.code)
        case _:
            return recorded.outcome.value if recorded.outcome is not None else recorded.code or ""


def dispatcher(name: str, *, slots: int, dispatches: bool) -> Dispatcher:
    """The dispatcher of this process, not yet started."""
    return Dispatcher(
        process.engine(),
        settings(),
        publish,
        worker=name,
        slots=slots,
        dispatches=dispatches,
        abandon=lambda tx, held: process.runner().abandon(tx, held, retry_of(held.job["kind"])),
    )


class DispatcherStep(bootsteps.StartStopStep):
    """Starts the dispatcher when the worker's threads are there, and stops it before they are waited for."""

    requires = ("celery.worker.components:Pool",)

    def start(self, parent: Any) -> None:
        # A process that forks must not run threads of ours: there `python -m worker.dispatcher` runs beside it.
        forks = parent.pool_cls.__module__ == "celery.concurrency.prefork"
        process.start(dispatcher(parent.hostname, slots=parent.concurrency, dispatches=not forks))
        if not forks:
            process.keep_together()

    def stop(self, parent: Any) -> None:  # noqa: ARG002 - Celery's signature
        process.stop()

    terminate = stop


app.steps["worker"].add(DispatcherStep)


@signals.setup_logging.connect
def _set_up_logging(**_: Any) -> None:
    try:
        configure_logging(settings().log_level)
    except InvalidSetting as error:
        _exit(error)


@signals.worker_init.connect
def _prepare(sender: Any, **_: Any) -> None:
    # What Celery's workers tell one another is all in the table: not asking saves a second at every start, and not
    # listening saves each worker the events of all others.
    sender.options |= {"without_mingle": True, "without_gossip": True}
    try:
        process.prepare()
    except CustomerJobsError as error:
        _exit(error)


@signals.worker_shutdown.connect
def _close(**_: Any) -> None:
    # The last running job has ended by now.
    process.close()
