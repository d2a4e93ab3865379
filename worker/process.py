"""What one worker process holds: engine, runner, dispatcher; each made when first needed, after any fork."""

from __future__ import annotations

import os
import sys
import time
from functools import cache

import structlog
from sqlalchemy import Engine

from customer_jobs.database import open_engine, writing
from customer_jobs.errors import Unavailable
from customer_jobs.migrate import require_current
from customer_jobs.producer import CustomerJobs
from worker.core import OneCore
from worker.credentials import bind
from worker.dispatcher import Dispatcher
from worker.gateway import Gateway
from worker.runner import Runner
from worker.settings import settings

log = structlog.get_logger(__name__)

THREADS = 16  #: A call to Stripe takes a few hundred milliseconds of waiting: 16 threads reach well over 25 a second.
#: Threads that wait for one another's turn wait so long at most; Python's 5 ms, a few times over, is what a job feels.
SWITCH_SECONDS = 0.001
DATABASE_PAUSE_SECONDS = 2.0  #: Between two tries to reach the database while the worker starts.
DISPATCHER_CONNECTIONS = 8  #: One for each of its threads, and a few to spare.

_dispatchers: list[Dispatcher] = []  #: The one of this process, while it runs.
_cores: list[OneCore] = []  #: What keeps its threads together, likewise.
_accounts: dict[str, str] = {}  #: Whose key each credential is, as far as known; a forked child knows what was found.


def engine() -> Engine:
    """The engine of this process; a forked child gets one with connections of its own."""
    return _engine_of(os.getpid())


def gateway() -> Gateway:
    """The gateway of this process, with connections of its own."""
    return _gateway_of(os.getpid())


def runner() -> Runner:
    """The runner of this process."""
    return _runner_of(os.getpid())


def producer() -> CustomerJobs:
    """The table, as a producer sees it."""
    return CustomerJobs(engine(), schema=settings().database_schema)


def prepare() -> None:
    """Wait for the database, and see that it is the one this worker is made for.

    Raises CustomerJobsError for a database without our tables, or a key that its credential does not stand for.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    while True:
        try:
            require_current(engine(), schema=settings().database_schema)
            keys = gateway().keys()
            with writing(engine()) as transaction:
                _accounts.update(bind(transaction, keys))
            gateway().trust(_accounts)
        except Unavailable as error:
            log.warning("waiting for the database", error=str(error))
            time.sleep(DATABASE_PAUSE_SECONDS)
        else:
            return


def wake() -> None:
    """Let the dispatcher of this process look at once."""
    for dispatcher in _dispatchers:
        dispatcher.wake()


def start(dispatcher: Dispatcher) -> None:
    """Begin to dispatch in this process."""
    dispatcher.start()
    _dispatchers.append(dispatcher)


def keep_together() -> None:
    """Begin to keep the threads of this process on one core while it is busy."""
    core = OneCore()
    core.start()
    _cores.append(core)


def stop() -> None:
    """Dispatch no more; running jobs go on."""
    for dispatcher in _dispatchers:
        dispatcher.stop()


def close() -> None:
    """Publish what the last running job left, let another lead, and the kernel choose the cores again."""
    while _dispatchers:
        _dispatchers.pop().close()
    while _cores:
        _cores.pop().stop()


@cache
def _engine_of(pid: int) -> Engine:  # noqa: ARG001 - the process is the key
    url = settings().database_url.get_secret_value()
    return open_engine(url, schema=settings().database_schema, pool_size=THREADS + DISPATCHER_CONNECTIONS)


@cache
def _runner_of(pid: int) -> Runner:  # noqa: ARG001 - the process is the key
    return Runner(engine(), gateway(), when_recorded=wake)


@cache
def _gateway_of(pid: int) -> Gateway:  # noqa: ARG001 - the process is the key
    made = Gateway(settings())
    made.trust(_accounts)
    return made
