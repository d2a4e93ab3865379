"""One story, told by real parts in a temporary directory; what is said of it they have said themselves."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from customer_jobs import embedded
from customer_jobs.cli import checkout, show
from customer_jobs.cli.exits import Exit, without_secrets
from customer_jobs.cli.programs import Ended, Ending, Programs
from customer_jobs.cli.stream import Entry, Stream
from customer_jobs.embedded import LOOPBACK
from customer_jobs.environment import setting
from customer_jobs.errors import CustomerJobsError
from customer_jobs.events import DEFAULT_STREAM
from customer_jobs.job import Attempt, Job
from customer_jobs.migrate import migrate
from customer_jobs.producer import CustomerJobs
from customer_jobs.vocabulary import event_type

STEP_SECONDS = 30.0  #: A job of the story is over in a second or two; Stripe itself may be slower.
LOOK_SECONDS = 0.02  #: Between two looks at a job.
EVENT_BLOCK_MS = 100  #: Between two looks at whether somebody pressed Ctrl-C.

JENNY = {"email": "jenny.rosen@example.com", "name": "Jenny Rosen"}
NOBODY = "cus_does_not_exist"
LIMITED = {"email": "carla+sandbox.429x2@example.com"}  #: The sandbox reads from it what to answer first.


def run() -> Exit:
    """Tell the story; FINE if it came out as told."""
    checkout.root()
    key = setting("STRIPE_API_KEY")
    if key is not None and "_live_" in key[:8]:
        raise CustomerJobsError("STRIPE_API_KEY is a live key, and the demo makes customers up; give it a test key")
    directory = Path(tempfile.mkdtemp(prefix="customer-jobs-demo-"))
    try:
        with Ending() as ending:
            try:
                return _run(directory, ending, with_sandbox=key is None)
            except Ended:
                print("\nending early")
                return Exit.INTERRUPTED
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _run(directory: Path, ending: Ending, *, with_sandbox: bool) -> Exit:
    _print("")
    _print("customer-jobs demo", "bold")
    _print("Real parts on this machine, in a temporary directory; nothing stays behind.", "dim")
    _print("")
    with Programs(ending, lambda _: None) as programs:
        stage = _start(programs, directory, with_sandbox=with_sandbox)
        with stage.closing():
            story = Story(stage, ending)
            story.tell(with_sandbox=with_sandbox)
        began = time.monotonic()
    shutil.rmtree(directory)
    _print(f"Everything has been stopped ({show.span(time.monotonic() - began)}) and removed.", "dim")
    _print("")
    if story.surprises:
        for surprise in story.surprises:
            _print(f"not as told: {surprise}", "bold red")
        return Exit.JOB_FAILED
    _print("Next: make dev. It runs the same until Ctrl-C, and says what to try meanwhile.")
    return Exit.FINE


class Stage:
    """What the story is played on: the table, the stream, and where the sandbox keeps its log."""

    def __init__(self, database_url: str, redis_url: str, sandbox_port: int | None) -> None:
        self.jobs = CustomerJobs(database_url)
        self.stream = Stream(redis_url, setting("EVENT_STREAM") or DEFAULT_STREAM)
        self.sandbox_port = sandbox_port

    def requests(self) -> list[dict[str, Any]]:
        """What the sandbox saw."""
        connection = http.client.HTTPConnection(LOOPBACK, self.sandbox_port, timeout=5)
        try:
            connection.request("GET", "/_sandbox/requests")
            found: list[dict[str, Any]] = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return found

    @contextmanager
    def closing(self) -> Iterator[None]:
        try:
            yield
        finally:
            self.stream.close()
            self.jobs.engine.dispose()


def _start(programs: Programs, directory: Path, *, with_sandbox: bool) -> Stage:
    database_url = f"sqlite:///{directory / 'customer-jobs.sqlite3'}"
    remove = (directory,)
    sandbox_port = embedded.free_port() if with_sandbox else None
    if sandbox_port is not None:
        programs.begin(checkout.sandbox(directory / "sandbox.log", sandbox_port, remove=remove))
    redis_port = embedded.free_port()
    programs.begin(checkout.redis(directory, redis_port, remove=remove))
    redis_url = f"redis://{LOOPBACK}:{redis_port}/0"
    stage = Stage(database_url, redis_url, sandbox_port)

    began = time.monotonic()
    applied = migrate(stage.jobs.engine)
    _tick("database", f"SQLite, {len(applied)} migrations", time.monotonic() - began)
    settings = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
    env = checkout.environment(settings)
    if sandbox_port is not None:
        env = checkout.for_the_sandbox(f"http://{LOOPBACK}:{sandbox_port}", settings)
    name = f"demo@{socket.gethostname()}"
    programs.begin(checkout.worker(directory / "worker.log", name, env, remove=remove))
    _tick("redis", f"{LOOPBACK}:{redis_port}", programs.await_ready("redis"))
    if with_sandbox:
        _tick("sandbox", f"{LOOPBACK}:{sandbox_port}, stands in for Stripe", programs.await_ready("sandbox"))
    else:
        _tick("Stripe", setting("STRIPE_API_BASE") or "https://api.stripe.com, with your test key", None)
    _tick("worker", "Celery with the dispatcher", programs.await_ready("worker"))
    _print("")
    return stage


class Story:
    """The jobs one after the other, and what was otherwise than told."""

    def __init__(self, stage: Stage, ending: Ending) -> None:
        self._stage = stage
        self._ending = ending
        self._last_id = "0-0"
        self._number = 0
        self.surprises: list[str] = []

    def tell(self, *, with_sandbox: bool) -> None:
        jobs = self._stage.jobs
        jenny = self._job("Create Jenny Rosen", f"create_customer({JENNY})", lambda: jobs.create_customer(JENNY))
        self._expect(jenny, "succeeded", "created")

        if jenny.customer_id is not None:
            her_id = jenny.customer_id
            fetched = self._job("Fetch her", f"fetch_customer({her_id!r})", lambda: jobs.fetch_customer(her_id))
            self._expect(fetched, "succeeded", "found")

        missing = self._job(
            "Fetch a customer who does not exist", f"fetch_customer({NOBODY!r})", lambda: jobs.fetch_customer(NOBODY)
        )
        self._expect(missing, "failed", "resource_missing")

        if with_sandbox:
            limited = self._job(
                "Create a customer while Stripe's rate limit is met, twice",
                f"create_customer({LIMITED})",
                lambda: jobs.create_customer(LIMITED),
            )
            self._expect(limited, "succeeded", "created", answers=[429, 429, 200])
            self._print_requests()
        else:
            _print("Left out: the rate limit is met on demand in the sandbox only.")
            _print(f"In your test account there is now a customer, {jenny.customer_id}.")
            _print("")

    def _job(self, title: str, call: str, enqueue: Callable[[], Job]) -> Job:
        """The job once it is over and its event has arrived, everything printed as it happened."""
        self._number += 1
        _print(f"{self._number}  {title}", "bold")
        _line("", f"jobs.{call}", "dim")
        job = enqueue()
        seen = 0
        give_up_at = time.monotonic() + STEP_SECONDS
        while not job.final and time.monotonic() < give_up_at:
            time.sleep(LOOK_SECONDS)
            self._ending.check()
            job = self._stage.jobs.get(job.id) or job
            for attempt in job.attempts[seen:]:
                if attempt.finished_at is not None:
                    _print_attempt(attempt, job.attempts[seen - 1] if seen else None)
                    seen += 1
        _print_end(job)
        if job.final:
            self._print_event(job, give_up_at)
        _print("")
        return job

    def _print_event(self, job: Job, give_up_at: float) -> None:
        while time.monotonic() < give_up_at:
            self._ending.check()
            for entry in self._stage.stream.after(self._last_id, block_ms=EVENT_BLOCK_MS):
                self._last_id = entry.id
                if entry.event is not None and entry.event.get("subject") == job.id:
                    _print_arrival(entry, job)
                    if entry.type != event_type(job.kind, job.state):
                        self.surprises.append(f"the event of job {job.id} is {entry.type}")
                    return
        self.surprises.append(f"no event of job {job.id} arrived")

    def _expect(self, job: Job, state: str, result: str, *, answers: list[int] | None = None) -> None:
        came_of_it = (job.error or {}).get("code") if job.state == "failed" else job.outcome
        if (job.state, came_of_it) != (state, result):
            self.surprises.append(f"job {job.id} is {job.state} ({came_of_it}), not {state} ({result})")
        answered = [attempt.http_status for attempt in job.attempts]
        if answers is not None and answered != answers:
            self.surprises.append(f"Stripe answered job {job.id} with {answered}, not {answers}")

    def _print_requests(self) -> None:
        """The other side's view: how often it was asked, and under which idempotency keys."""
        requests = self._stage.requests()
        _print("What the sandbox saw, from its log", "bold")
        table = show.ledger("   REQUEST", "ANSWER", "KEY")
        for request in requests:
            answer = f"{request['status']} {request['rate_limited_reason'] or request['error_code'] or ''}"
            table.add_row(
                show.text(f"   {request['method']} {request['path']}"),
                show.text(answer),
                show.text(f"…{key[-8:]}" if (key := request["idempotency_key"]) else ""),
            )
        show.put(table)
        keys = {request["idempotency_key"] for request in requests if request["idempotency_key"]}
        made = [request for request in requests if request["method"] == "POST" and request["status"] == http.client.OK]
        _print("")
        _line("", f"{len(keys)} idempotency keys, {len(made)} customers: a repeated request makes no second one.")
        _print("")
        if len(keys) != 2 or len(made) != 2:
            self.surprises.append(f"the sandbox made {len(made)} customers under {len(keys)} keys, not 2 under 2")


def _print_attempt(attempt: Attempt, before: Attempt | None) -> None:
    reason = attempt.rate_limited_reason or attempt.error_code or attempt.error_type
    line = f"Stripe answers {attempt.http_status or 'nothing'}"
    line += f" ({reason})" if reason else ""
    line += "" if attempt.duration_ms is None else f" in {show.span(attempt.duration_ms / 1000)}"
    if before is not None and before.finished_at is not None:
        line += f", asked again after {show.span((attempt.started_at - before.finished_at).total_seconds())}"
    _line(f"attempt {attempt.number}", line)


def _print_end(job: Job) -> None:
    if job.finished_at is None:
        _line(job.state, f"still, after {STEP_SECONDS:g} s")
        return
    error = job.error or {}
    took = show.span((job.finished_at - job.created_at).total_seconds())
    result = error.get("code") if job.state == "failed" else f"{job.outcome} {job.customer_id}"
    _line(job.state, f"{result}, {took} after it was enqueued")
    if job.state == "failed":
        _line("error", str(error.get("message")))
        _line("remedy", str(error.get("remedy")))


def _print_arrival(entry: Entry, job: Job) -> None:
    # A stream's ids are the milliseconds at which Redis took the entries in.
    arrived_at = datetime.fromtimestamp(int(entry.id.partition("-")[0]) / 1000, UTC)
    later = "" if job.finished_at is None else show.span(max(0.0, (arrived_at - job.finished_at).total_seconds()))
    _line("event", f"{entry.type}, {later} later", "cyan")


def _line(label: str, text: str, style: str = "") -> None:
    """Print a line of the story; where it is too long it goes on under itself."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=13 if label else 1)
    table.add_column(overflow="fold")
    name = Text("   ").append_text(show.state(label)) if label else Text()
    table.add_row(name, Text(without_secrets(show.plain(text)), style=style))
    show.put(table)
    sys.stdout.flush()


def _tick(name: str, what: str, seconds: float | None) -> None:
    _print(f"   {name:<9} {what:<44} {'' if seconds is None else show.span(seconds)}")


def _print(text: str, style: str = "") -> None:
    show.put(Text(without_secrets(show.plain(text)), style=style))
    sys.stdout.flush()
