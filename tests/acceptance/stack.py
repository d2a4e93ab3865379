"""Everything that runs in production, in small: a database, a Redis, a stand-in for Stripe and real Celery workers."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import redis
from celery import Celery
from sqlalchemy import Engine, select, text

from customer_jobs import CustomerJobs, Job
from customer_jobs.broker import PREFIX, QUEUE
from customer_jobs.database import open_engine, reading
from customer_jobs.embedded import Program, free_port, start, wait_until
from customer_jobs.events import DEFAULT_STREAM
from customer_jobs.sandbox import Request, Sandbox
from customer_jobs.schema import events, leases, workers
from customer_jobs.sql import now
from customer_jobs.vocabulary import Lease

CHECKOUT = Path(__file__).parents[2]
APP = "worker.app"
CELERY = [sys.executable, "-m", "celery", "-A", APP]
STRIPE_API_KEY = "sk_test_sandbox"
#: A worker is up within two seconds on an idle machine, and a job is done in a fraction of one.
READY_SECONDS = 30.0
SOON_SECONDS = 20.0

Json = dict[str, Any]


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Only what a program needs to run, and the settings given."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ} | {**settings}


def unique(name: str) -> str:
    """The name with an ending that no other test has: tests share a database."""
    return f"{name}-{uuid.uuid4().hex[:12]}"


def email() -> str:
    return f"{unique('jenny')}@example.com"


def send_message(redis_url: str, kind: str, *arguments: object, task_id: str | None = None) -> None:
    """Publish a message as somebody else's program would."""
    app = Celery(broker=redis_url, set_as_current=False)
    app.conf.broker_transport_options = {"global_keyprefix": PREFIX}
    with app.connection_for_write() as connection:
        app.send_task(kind, args=arguments, task_id=task_id, queue=QUEUE, connection=connection, ignore_result=True)


def wait_for_line(program: Program, words: str) -> None:
    """Return once the program has logged these words."""
    wait_until(lambda: words in program.log.read_text(), READY_SECONDS, f"{words!r} is logged", program=program)


class Consumer:
    """Reads the event stream from its start as an app would, through restarts of Redis, and keeps what it read."""

    def __init__(self, redis_url: str) -> None:
        self._client = redis.Redis.from_url(redis_url, decode_responses=True, socket_timeout=5, retry=None, protocol=2)
        self._changed = threading.Condition()
        self._entries: list[Json] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="consumer")
        self._thread.start()

    def entries_about(self, job_id: str) -> list[Json]:
        """What the stream has had about a job so far: each entry's fields, the event parsed."""
        with self._changed:
            return [entry for entry in self._entries if entry["subject"] == job_id]

    def event_about(self, job_id: str) -> Json:
        """The first event about a job, once it is there."""
        return self.entry_about(job_id)["event"]  # type: ignore[no-any-return]

    def entry_about(self, job_id: str) -> Json:
        with self._changed:
            if not self._changed.wait_for(lambda: self.entries_about(job_id), SOON_SECONDS):
                raise TimeoutError(f"no event about job {job_id}")
        return self.entries_about(job_id)[0]

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        last = "0"
        while not self._stopped.is_set():
            try:
                streams: Any = self._client.xread({DEFAULT_STREAM: last}, count=1000, block=200)
            except redis.RedisError:
                last = "0"  # Redis may come back without its data: then the stream begins anew.
                self._stopped.wait(0.05)
                continue
            for entry_id, fields in streams[0][1] if streams else []:
                last = entry_id
                with self._changed:
                    self._entries.append({**fields, "event": json.loads(fields["event"])})
                    self._changed.notify_all()


class Stack:
    """One of each, and as many workers as a test starts; leaving its `with` block stops the workers."""

    def __init__(
        self, directory: Path, database_url: str, redis_url: str, stripe_url: str, sandbox: Sandbox | None = None
    ) -> None:
        self.directory = directory
        self.database_url = database_url
        self.redis_url = redis_url
        self._stripe_url = stripe_url
        self._sandbox = sandbox
        self.engine: Engine = open_engine(database_url)
        self.jobs = CustomerJobs(self.engine)
        self.consumer = Consumer(redis_url)
        self._workers: list[Program] = []

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.kill()
        self.consumer.stop()
        self.engine.dispose()

    @property
    def sandbox(self) -> Sandbox:
        assert self._sandbox is not None
        return self._sandbox

    @property
    def settings(self) -> dict[str, str]:
        return {
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "STRIPE_API_KEY": STRIPE_API_KEY,
            "STRIPE_API_BASE": self._stripe_url,
        }

    def start_worker(
        self, name: str = "one", *, app: str = APP, options: Sequence[str] = (), **settings: str
    ) -> Program:
        """A worker that consumes messages, under a name of its own."""
        worker = self.launch_worker(name, app=app, options=options, **settings)
        wait_for_line(worker, f"{name}@test ready")
        return worker

    def launch_worker(
        self, name: str = "one", *, app: str = APP, options: Sequence[str] = (), **settings: str
    ) -> Program:
        """A worker as it begins to start."""
        worker = start(
            f"worker {name}",
            [*CELERY[:-1], app, "worker", "-n", f"{name}@test", *options],
            log=self.directory / f"{name}.log",
            env=environment(self.settings | settings),
            cwd=CHECKOUT,
        )
        self._workers.append(worker)
        return worker

    def start_dispatcher(self, name: str = "dispatcher") -> Program:
        """A dispatcher in a process of its own, which leads."""
        dispatcher = start(
            name,
            [sys.executable, "-m", "worker.dispatcher"],
            log=self.directory / f"{name}.log",
            env=environment(self.settings),
            cwd=CHECKOUT,
        )
        self._workers.append(dispatcher)
        wait_for_line(dispatcher, "leads")
        return dispatcher

    def wait_for_end(self, job: Job, timeout_seconds: float = SOON_SECONDS) -> Job:
        """The job, which must be final by then."""
        ended = self.jobs.wait(job.id, timeout_seconds)
        assert ended.final, f"{ended.kind} is {ended.state} after {timeout_seconds} s"
        return ended

    def requests_of(self, job: Job) -> list[Request]:
        """What Stripe's stand-in saw of a job."""
        return [request for request in self.sandbox.requests if is_of(request, job)]

    def creates(self) -> list[str]:
        """The idempotency key of every create that Stripe's stand-in saw."""
        return [request.idempotency_key or "" for request in self.sandbox.requests if request.endpoint == "create"]

    def wait_for_request(self, job: Job, count: int = 1) -> Request:
        """The count-th request of a job, once it has arrived."""
        return self.sandbox.wait_until_request(lambda request: is_of(request, job), SOON_SECONDS, count)

    def customers_of(self, job: Job) -> list[Json]:
        """The customers that Stripe's stand-in made for a job."""
        return [each for each in self.sandbox.customers() if each["metadata"].get("customer_jobs_id") == job.id]

    def row(self, statement: str, **parameters: object) -> Any:
        """The only row of a look into the tables, which the statement names as `{jobs}` and the like."""
        schema = "" if self.engine.dialect.name == "sqlite" else "customer_jobs."
        tables = {table: schema + table for table in ("jobs", "attempts", "events", "customers", "leases", "workers")}
        with self.engine.begin() as connection:
            return connection.execute(text(statement.format(**tables)), parameters).one()

    def events_of(self, job: Job) -> list[Json]:
        """The rows of the outbox about a job."""
        with reading(self.engine) as transaction:
            return transaction.rows(select(*events.c).where(events.c.subject == job.id))

    def leader(self) -> str | None:
        """Who leads at present, if anybody does."""
        with reading(self.engine) as transaction:
            holder = select(leases.c.holder).where(leases.c.name == Lease.LEAD, leases.c.expires_at > now())
            return next((row["holder"] for row in transaction.rows(holder)), None)

    def signed_on(self) -> set[str]:
        """The workers that jobs are dispatched for."""
        with reading(self.engine) as transaction:
            return {row["name"] for row in transaction.rows(select(workers.c.name))}


@dataclass(frozen=True)
class Flower:
    """Flower, as a browser sees it."""

    program: Program
    port: int

    def page(self, path: str) -> str:
        with urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
            return str(answer.read().decode())

    def tasks(self) -> dict[str, Json]:
        """What it has heard of, by id."""
        shown: dict[str, Json] = json.loads(self.page("/api/tasks"))
        return shown

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.page("/healthcheck") == "OK"
        return False


@contextlib.contextmanager
def flower(
    directory: Path,
    settings: Mapping[str, str],
    *,
    name: str = "flower",
    celery: Sequence[str] = CELERY,
    cwd: Path = CHECKOUT,
) -> Iterator[Flower]:
    """The Flower of a Celery application, once it answers; it begins to listen a moment later."""
    port = free_port()
    program = start(
        name,
        [*celery, "flower", "--address=127.0.0.1", f"--port={port}"],
        log=directory / f"{name}.log",
        env=environment({**settings, "FLOWER_UNAUTHENTICATED_API": "true"}),
        cwd=cwd,
    )
    with program:
        shown = Flower(program, port)
        wait_until(shown.answers, READY_SECONDS, f"{name} answers", program=program)
        yield shown


@contextlib.contextmanager
def running(directory: Path, database_url: str, redis_url: str) -> Iterator[Stack]:
    """A stack with the sandbox and no worker yet."""
    with Sandbox() as sandbox, Stack(directory, database_url, redis_url, sandbox.url, sandbox) as stack:
        yield stack


def is_of(request: Request, job: Job) -> bool:
    """Whether the request was made for the job: a create by its key, a fetch by its path."""
    if job.kind == "customer.create":
        return request.idempotency_key == f"customer-jobs-{job.id}"
    return request.method == "GET" and request.path == f"/v1/customers/{job.customer_id}"
