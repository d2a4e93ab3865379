"""How long a job waits on its way to Stripe, and its event on the way to the stream, on a worker that is idle.

    .venv/bin/python -m benchmarks.latency [--quick] [--jobs N]

Everything is real and runs on this machine, each in a process of its own: PostgreSQL (DATABASE_URL, or one made for
the occasion), a Redis-compatible server, one worker as `celery -A worker.app worker` starts it, and the sandbox, which
answers at once. Jobs are enqueued one after another, each when the one before has been heard of.

    to Stripe       from just before the INSERT's COMMIT to the request's arrival at the sandbox
    to the stream   from the sandbox's answer to a client that waits in XREAD
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import redis
from sqlalchemy import Engine

from customer_jobs import CustomerJobs
from customer_jobs.database import open_engine
from customer_jobs.embedded import free_port, start, start_redis, wait_until
from customer_jobs.environment import setting
from customer_jobs.events import DEFAULT_STREAM
from customer_jobs.migrate import migrate
from tests import servers

JOBS, QUICK_JOBS = 200, 40
WARM_UP_JOBS = 10  #: Connections are made and code is imported; users feel these once a day.
PACE_SECONDS = 0.1  #: Ten jobs a second, well under the limit of 25: nothing waits for a token.
PATIENCE_SECONDS = 30.0
CHECKOUT = Path(__file__).parents[1]
#: Milliseconds; the medians that the project promises on an idle machine with two cores.
TARGETS = {"to Stripe": 20, "to the stream": 30}

Json = dict[str, Any]


class Listener:
    """Notes when each job's event arrives on the stream, as a consumer that waits for it sees it."""

    def __init__(self, redis_url: str) -> None:
        self._client = redis.Redis.from_url(redis_url, decode_responses=True, socket_timeout=10, protocol=2)
        self._arrived: dict[str, float] = {}
        self._changed = threading.Condition()
        threading.Thread(target=self._listen, name="listener", daemon=True).start()

    def wait_for(self, job_id: str) -> float:
        """When the event of a job arrived, in seconds since 1970."""
        with self._changed:
            if not self._changed.wait_for(lambda: job_id in self._arrived, PATIENCE_SECONDS):
                raise TimeoutError(f"no event about job {job_id} within {PATIENCE_SECONDS:g} s")
            return self._arrived[job_id]

    def _listen(self) -> None:
        last = "0"
        while True:
            try:
                streams: Any = self._client.xread({DEFAULT_STREAM: last}, block=5000)
            except redis.ConnectionError:
                return  # Everything has been stopped.
            now = time.time()
            for last, fields in streams[0][1] if streams else []:  # noqa: B007 - the last one's id is kept
                with self._changed:
                    self._arrived[fields["subject"]] = now
                    self._changed.notify_all()


def enqueue(engine: Engine, jobs: CustomerJobs) -> tuple[str, float]:
    """A new job's id, and when its transaction was about to be committed."""
    with engine.connect() as connection:
        job = jobs.create_customer({"email": f"{uuid.uuid4().hex}@example.com"}, session=connection)
        before = time.time()
        connection.commit()
    return job.id, before


def measure(engine: Engine, redis_url: str, sandbox_url: str, count: int) -> dict[str, list[float]]:
    """Milliseconds of each job, by what was measured."""
    jobs, listener = CustomerJobs(engine), Listener(redis_url)
    for _ in range(WARM_UP_JOBS):
        listener.wait_for(enqueue(engine, jobs)[0])
    committed: dict[str, float] = {}
    heard: dict[str, float] = {}
    for _ in range(count):
        began = time.monotonic()
        job_id, committed[f"customer-jobs-{job_id}"] = enqueue(engine, jobs)
        heard[f"customer-jobs-{job_id}"] = listener.wait_for(job_id)
        time.sleep(max(0.0, began + PACE_SECONDS - time.monotonic()))
    with urlopen(f"{sandbox_url}/_sandbox/requests", timeout=PATIENCE_SECONDS) as answer:
        requests: list[Json] = json.load(answer)
    timed = {request["idempotency_key"]: request for request in requests if request["idempotency_key"] in committed}
    assert len(timed) == count, "not every job made exactly one request"
    return {
        "to Stripe": [(request["arrived_at"] - committed[key]) * 1000 for key, request in timed.items()],
        "to the stream": [(heard[key] - request["finished_at"]) * 1000 for key, request in timed.items()],
    }


@contextmanager
def everything(directory: Path) -> Iterator[tuple[Engine, str, str]]:
    """The database, the URL of the Redis and that of the sandbox, with a worker that is ready."""
    with ExitStack() as running:
        database_url = setting("DATABASE_URL")
        if database_url is None:
            server = running.enter_context(servers.start_postgres(directory / "postgres"))
            database_url = servers.create_database(server.url, "benchmark")
        program, redis_url = start_redis(directory / "redis")
        running.enter_context(program)
        engine = open_engine(database_url)
        running.callback(engine.dispose)
        migrate(engine)
        port = free_port()
        sandbox_url = f"http://127.0.0.1:{port}"
        code = f"from customer_jobs.sandbox import serve; serve({port})"
        sandbox = running.enter_context(
            start("sandbox", [sys.executable, "-c", code], log=directory / "sandbox.log", cwd=CHECKOUT)
        )
        wait_until(lambda: _answers(sandbox_url), PATIENCE_SECONDS, "the sandbox answers", program=sandbox)
        settings = {
            "CUSTOMER_JOBS_DATABASE_URL": database_url,
            "CUSTOMER_JOBS_REDIS_URL": redis_url,
            "CUSTOMER_JOBS_STRIPE_API_KEY": "sk_test_sandbox",
            "CUSTOMER_JOBS_STRIPE_API_BASE": sandbox_url,
        }
        command = [sys.executable, "-m", "celery", "-A", "worker.app", "worker"]
        worker = running.enter_context(
            start("worker", command, log=directory / "worker.log", env={**os.environ, **settings}, cwd=CHECKOUT)
        )
        wait_until(lambda: " ready." in worker.log.read_text(), PATIENCE_SECONDS, "the worker is ready", program=worker)
        yield engine, redis_url, sandbox_url


def _answers(sandbox_url: str) -> bool:
    try:
        with urlopen(f"{sandbox_url}/_sandbox/health", timeout=1):
            return True
    except OSError:
        return False


def table(measured: dict[str, list[float]], loads: Sequence[float]) -> str:
    """What was measured, for people."""
    first, last = (f"{load:.1f}" for load in loads)
    machine = f"Python {platform.python_version()}, {os.cpu_count()} cores, load average {first} before, {last} after"
    lines = [
        f"{time.strftime('%Y-%m-%d')}, {machine}; milliseconds",
        "",
        f"{'':15}{'jobs':>6}{'median':>9}{'p95':>9}{'best':>9}{'worst':>9}   target for the median",
    ]
    for name, values in measured.items():
        p95 = statistics.quantiles(values, n=20)[-1]
        figures = (statistics.median(values), p95, min(values), max(values))
        lines.append(f"{name:15}{len(values):6}" + "".join(f"{each:9.1f}" for each in figures) + f"   {TARGETS[name]}")
    return "\n".join(lines)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_JOBS} jobs instead of {JOBS}")
    parser.add_argument("--jobs", type=int, help="another number of jobs")
    arguments = parser.parse_args()
    count = arguments.jobs or (QUICK_JOBS if arguments.quick else JOBS)
    before = os.getloadavg()[0]
    with (
        tempfile.TemporaryDirectory(prefix="customer-jobs-") as directory,
        everything(Path(directory)) as (engine, redis_url, sandbox_url),
    ):
        measured = measure(engine, redis_url, sandbox_url, count)
    sys.stdout.write(table(measured, [before, os.getloadavg()[0]]) + "\n")


if __name__ == "__main__":
    main()
