"""How long a job waits on its way to Stripe, and its event on the way to the stream, on a worker that is idle.

    .venv/bin/python -m benchmarks.latency [--quick] [--jobs N]

Everything is real and runs on this machine, each in a process of its own: PostgreSQL (TEST_POSTGRES_URL names a server
to make a database on; else one is started), a Redis-compatible server, one worker as `celery -A worker.app worker`
starts it, and the sandbox, which answers at once. Jobs are enqueued one after another, each when the one before has
been heard of.

    to Stripe       from just before the INSERT's COMMIT to the request's arrival at the sandbox
    to the stream   from the sandbox's answer to a client that waits in XREAD
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from typing import Any

import redis
from sqlalchemy import Engine

from benchmarks.parts import Stage, machine, postgres, stage
from customer_jobs import CustomerJobs
from customer_jobs.events import DEFAULT_STREAM

JOBS, QUICK_JOBS = 200, 40
WARM_UP_JOBS = 10  #: Connections are made and code is imported; users feel these once a day.
PACE_SECONDS = 0.1  #: Ten jobs a second, well under the limit of 25: nothing waits for a token.
PATIENCE_SECONDS = 30.0
#: Milliseconds; the medians that the project promises on an idle machine with two cores.
TARGETS = {"to Stripe": 20, "to the stream": 30}


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


def measure(on: Stage, count: int) -> dict[str, list[float]]:
    """Milliseconds of each job, by what was measured."""
    jobs, listener = CustomerJobs(on.engine), Listener(on.redis_url)
    for _ in range(WARM_UP_JOBS):
        listener.wait_for(enqueue(on.engine, jobs)[0])
    committed: dict[str, float] = {}
    heard: dict[str, float] = {}
    for _ in range(count):
        began = time.monotonic()
        job_id, committed[f"customer-jobs-{job_id}"] = enqueue(on.engine, jobs)
        heard[f"customer-jobs-{job_id}"] = listener.wait_for(job_id)
        time.sleep(max(0.0, began + PACE_SECONDS - time.monotonic()))
    requests = on.stripe.requests()
    timed = {request["idempotency_key"]: request for request in requests if request["idempotency_key"] in committed}
    assert len(timed) == count, "not every job made exactly one request"
    return {
        "to Stripe": [(request["arrived_at"] - committed[key]) * 1000 for key, request in timed.items()],
        "to the stream": [(heard[key] - request["finished_at"]) * 1000 for key, request in timed.items()],
    }


def table(measured: dict[str, list[float]], loads: Sequence[float]) -> str:
    """What was measured, for people."""
    lines = [
        f"{machine(loads)}; milliseconds",
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
    with postgres() as url, stage(url) as on:
        on.start_workers()
        measured = measure(on, count)
    sys.stdout.write(table(measured, [before, os.getloadavg()[0]]) + "\n")


if __name__ == "__main__":
    main()
