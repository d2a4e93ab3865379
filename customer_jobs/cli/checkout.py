"""What only the checkout can run: where it is, the environment of its programs, and how each one is started."""

from __future__ import annotations

import http.client
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select

from customer_jobs import embedded
from customer_jobs.broker import PREFIX, QUEUE, require_understood
from customer_jobs.checks import Check
from customer_jobs.cli.programs import Part
from customer_jobs.database import open_engine, reading
from customer_jobs.embedded import LOOPBACK
from customer_jobs.environment import PREFIX as SETTINGS_PREFIX
from customer_jobs.errors import CustomerJobsError, Unavailable
from customer_jobs.schema import workers
from customer_jobs.stream import redis_url

SANDBOX_KEY = "sk_test_sandbox"  #: Any test key will do; this one says what it is.
SANDBOX_READY_SECONDS = 15.0
#: The stripe library alone takes a second on a busy machine.
WEBHOOKS_READY_SECONDS = 30.0
#: Celery, Flower and the drivers are loaded in two seconds on an idle machine; this leaves room for a busy one.
CELERY_READY_SECONDS = 60.0
#: A call that is under way may take the 30 s that Stripe is given, and must then be recorded.
WORKER_GRACE_SECONDS = 40.0


def root() -> Path:
    """The directory of the checkout that this package runs from.

    Raises:
        CustomerJobsError: it was installed from a wheel, or without what the worker needs.
    """
    directory = Path(__file__).resolve().parents[2]
    missing = [name for name in ("worker/app.py", "tasks", "migrations") if not (directory / name).exists()]
    if missing or importlib.util.find_spec("celery") is None:
        raise CustomerJobsError(
            "this command runs the worker, which is in the checkout of customer-jobs and not in the installed package; "
            "in the checkout: make dev, or make demo"
        )
    return directory


def environment(settings: Mapping[str, str], *, without: Callable[[str], bool] = lambda _: False) -> dict[str, str]:
    """Our environment with these settings, whichever way they were spelled in it, and without some others."""

    def replaced(variable: str) -> bool:
        name = variable.removeprefix(SETTINGS_PREFIX).removesuffix("_FILE")
        return name in settings or without(name)

    kept = {variable: value for variable, value in os.environ.items() if not replaced(variable)}
    return kept | dict(settings)


def for_the_sandbox(url: str, settings: Mapping[str, str]) -> dict[str, str]:
    """The environment of a worker whose Stripe is the sandbox: no other key, and no proxy on the way there."""
    bypass = ",".join(filter(None, (os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), LOOPBACK)))
    return environment(
        {**settings, "STRIPE_API_KEY": SANDBOX_KEY, "STRIPE_API_BASE": url, "NO_PROXY": bypass, "no_proxy": bypass},
        without=lambda name: name.startswith("STRIPE_API_KEY"),
    )


def redis(directory: Path, port: int, *, remove: tuple[Path, ...] = ()) -> Part:
    """Valkey or Redis; what it holds ends with it, since the job table is the truth."""
    return Part(
        "redis",
        begin=lambda: embedded.start_redis(directory, port=port, remove=remove)[0],
        is_ready=lambda: embedded.answers_ping(port),
        ready_seconds=embedded.REDIS_READY_SECONDS,
    )


@dataclass(frozen=True)
class Webhook:
    """Where the sandbox sends its events, and what it signs them with."""

    url: str
    secret: str


def sandbox(
    log: Path,
    port: int,
    *,
    rate_limit: float | None = None,
    webhook: Webhook | None = None,
    remove: tuple[Path, ...] = (),
) -> Part:
    """The local Stripe."""
    embedded.require_free(port)
    limit = () if rate_limit is None else ("--rate-limit", f"{rate_limit:g}")
    told = () if webhook is None else ("--webhook", webhook.url)
    command = [sys.executable, "-m", "customer_jobs.cli", "sandbox", "--port", str(port), *limit, *told, "--json"]
    env = environment({} if webhook is None else {"STRIPE_WEBHOOK_SECRET": webhook.secret})
    return Part(
        "sandbox",
        begin=lambda: embedded.start("sandbox", command, log=log, env=env, cwd=root(), remove=remove),
        is_ready=lambda: answers(port, "/_sandbox/health"),
        ready_seconds=SANDBOX_READY_SECONDS,
    )


def worker(log: Path, name: str, env: Mapping[str, str], *, remove: tuple[Path, ...] = ()) -> Part:
    """Celery's worker with its dispatcher; ready once it has signed on in the database."""
    # There is nobody to mingle and gossip with, and Celery waits a second for the answers.
    flags = [f"--hostname={name}", "--without-mingle", "--without-gossip"]
    command = [sys.executable, "-m", "celery", "-A", "worker.app", "worker", *flags]
    return Part(
        "worker",
        begin=lambda: embedded.start(
            "worker", command, log=log, env=env, cwd=root(), remove=remove, grace_seconds=WORKER_GRACE_SECONDS
        ),
        is_ready=lambda: has_signed_on(env["DATABASE_URL"], name),
        ready_seconds=CELERY_READY_SECONDS,
        grace_seconds=WORKER_GRACE_SECONDS,
    )


def webhooks(log: Path, port: int, env: Mapping[str, str]) -> Part:
    """The endpoint for Stripe's events."""
    embedded.require_free(port)
    command = [sys.executable, "-m", "customer_jobs.cli", "webhooks", "--port", str(port)]
    return Part(
        "webhooks",
        begin=lambda: embedded.start("webhooks", command, log=log, env=env, cwd=root()),
        is_ready=lambda: answers(port, "/health"),
        ready_seconds=WEBHOOKS_READY_SECONDS,
    )


def flower(log: Path, port: int, env: Mapping[str, str]) -> Part:
    """The operators' page; it has no password, hence only the loopback address."""
    embedded.require_free(port)
    flags = [f"--address={LOOPBACK}", f"--port={port}"]
    command = [sys.executable, "-m", "celery", "-A", "worker.app", "flower", *flags]
    return Part(
        "flower",
        begin=lambda: embedded.start("flower", command, log=log, env=env, cwd=root()),
        is_ready=lambda: answers(port, "/healthcheck"),
        ready_seconds=CELERY_READY_SECONDS,
    )


def has_signed_on(database_url: str, name: str) -> bool:
    """Whether a worker of this name has shown a sign of life."""
    engine = open_engine(database_url)
    try:
        with reading(engine) as transaction:
            return bool(transaction.rows(select(workers.c.name).where(workers.c.name == name)))
    except Unavailable:
        return False
    finally:
        engine.dispose()


def ping(worker: str, *, seconds: float) -> bool:
    """Whether a worker answers: what does so is the loop that takes messages off the queue. Raises OSError.

    Celery is all that is needed of the worker; loading the worker itself would take a second, at every look.
    """
    root()
    from celery import Celery
    from kombu.exceptions import OperationalError

    require_understood(redis_url())
    app = Celery(broker=redis_url(), set_as_current=False)
    timeouts = {"socket_timeout": seconds, "socket_connect_timeout": seconds}
    app.conf.update(control_exchange=QUEUE, broker_transport_options={"global_keyprefix": PREFIX, **timeouts})
    try:
        return bool(app.control.ping(destination=[worker], timeout=seconds))
    except OperationalError as error:
        raise ConnectionError(str(error)) from error


def examine() -> list[Check]:
    """Every check of `doctor`."""
    root()
    from worker.doctor import examine as look

    return look()


def answers(port: int, path: str) -> bool:
    """Whether a page on this machine is there."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=1)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
