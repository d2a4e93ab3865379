"""How long it takes until jobs run again after something died or went away, and a plain Celery worker beside it.

    .venv/bin/python -m benchmarks.recovery [--rounds N] [--only NAME]

Everything is real and runs on this machine, each in a process of its own: PostgreSQL, a Redis-compatible server, and
workers as `celery -A worker.app worker` starts them; Stripe's stand-in says when a call arrives. All are measured at
once, each on servers of its own: what is measured is nearly all waiting.

    killed worker      SIGKILL in mid-call, of the worker that leads, to the second call of the last of its jobs
    leader             the same SIGKILL to another worker that leads
    Redis back         PING is answered after a minute's outage, to the calls of jobs enqueued before and after that
    PostgreSQL back    PostgreSQL lets us in after half a minute's outage, to the call of a job enqueued then
    half-open broker   a worker's connections to Redis fall silent for good, to the call of a job enqueued right then
    plain Celery       the first again: acks_late and Celery's defaults, with the heir running; given up after 120 s
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from celery import Celery

from customer_jobs import CustomerJobs
from customer_jobs.embedded import start, wait_until
from customer_jobs.schema import attempts
from tests.acceptance.stack import CHECKOUT, environment
from tests.builders import rows
from tests.chaos.crew import Crew
from tests.chaos.outcome import unfinished
from tests.chaos.proofs import Leader, leader, next_leader, require
from tests.chaos.site import Site, site
from tests.promises import BACK_SECONDS, HALF_OPEN_SECONDS, REPLACED_SECONDS, TAKEN_OVER_SECONDS

ROUNDS = 3
JOBS = 8  #: In mid-air when a worker is killed.
PATIENCE_SECONDS = 120.0
REDIS_AWAY_SECONDS = 60.0  #: Celery's own pauses between two tries have grown to ten seconds by then.
POSTGRES_AWAY_SECONDS = 30.0


@dataclass(frozen=True)
class Measure:
    """Something to measure: seconds in each round."""

    name: str
    promised_seconds: float | None
    run: Callable[[Path, int], list[float]]


def killed_worker(directory: Path, rounds: int) -> list[float]:
    found = []
    with site(directory, "postgresql") as here, Crew(directory, here.settings) as crew:
        crew.start("one", "two")
        for _ in range(rounds):
            here.sandbox.hold()
            keys = [enqueue(here) for _ in range(JOBS)]
            wait_for_calls(here, keys, 1)
            doomed = leader(here, crew)
            while not (its_own := of_worker(here, doomed.name, keys)):
                # The other took them all; its threads will not do for ever.
                keys.append(enqueue(here))
                wait_for_calls(here, keys[-1:], 1)
            began = time.monotonic()
            kill(crew, doomed)
            found.append(wait_for_calls(here, its_own, 2) - began)
            here.sandbox.release()
            crew.wait_until_ready(doomed.name)
            wait_until(lambda: not unfinished(here), PATIENCE_SECONDS, "every job has ended")
    return found


def leader_replaced(directory: Path, rounds: int) -> list[float]:
    found = []
    with site(directory, "postgresql") as here, Crew(directory, here.settings) as crew:
        crew.start("one", "two")
        for _ in range(rounds):
            doomed = leader(here, crew)
            began = time.monotonic()
            kill(crew, doomed)
            next_leader(here, doomed)
            found.append(time.monotonic() - began)
            for name in crew.names:
                crew.wait_until_ready(name)
    return found


def redis_back(directory: Path, rounds: int, away_seconds: float = REDIS_AWAY_SECONDS) -> list[float]:
    found = []
    with site(directory, "postgresql") as here, Crew(directory, here.settings) as crew:
        crew.start("one", "two")
        for _ in range(rounds):
            here.redis_server.stop_immediately()
            time.sleep(away_seconds / 2)
            keys = [enqueue(here)]
            time.sleep(away_seconds / 2)
            here.redis_server.start_again()
            began = time.monotonic()
            keys.append(enqueue(here))
            found.append(wait_for_calls(here, keys, 1) - began)
    return found


def postgres_back(directory: Path, rounds: int, away_seconds: float = POSTGRES_AWAY_SECONDS) -> list[float]:
    found = []
    with site(directory, "postgresql") as here, Crew(directory, here.settings) as crew:
        assert here.postgres_server is not None
        crew.start("one", "two")
        for _ in range(rounds):
            here.postgres_server.stop_immediately()
            time.sleep(away_seconds)
            here.postgres_server.start_again()
            began = time.monotonic()
            here.engine.dispose()
            found.append(wait_for_calls(here, [enqueue(here)], 1) - began)
    return found


def half_open_broker(directory: Path, rounds: int) -> list[float]:
    found = []
    with site(directory, "postgresql") as here, Crew(directory, here.settings) as crew:
        crew.start("one")
        for _ in range(rounds):
            wait_for_calls(here, [enqueue(here)], 1)
            began = time.monotonic()
            here.to_redis.lose()
            found.append(wait_for_calls(here, [enqueue(here)], 1) - began)
    return found


def plain_celery(directory: Path, _: int) -> list[float]:
    with site(directory, "sqlite") as here:
        settings = {
            "REDIS_URL": here.redis_server.url,
            "STRIPE_API_KEY": "sk_test_shop",
            "STRIPE_API_BASE": here.sandbox.url,
        }
        command = [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "benchmarks.plain_celery",
            "worker",
            "--loglevel=INFO",
            f"--concurrency={JOBS}",
        ]
        workers = []
        here.sandbox.hold()
        for name in ("doomed", "heir"):
            log = directory / f"{name}.log"
            program = start(name, [*command, "-n", f"{name}@plain"], log=log, env=environment(settings), cwd=CHECKOUT)
            workers.append(program)
            wait_until(lambda log=log: " ready." in log.read_text(), PATIENCE_SECONDS, f"{name} is ready")  # type: ignore[misc]
            if name == "doomed":
                with Celery(broker=here.redis_server.url) as app:
                    for number in range(JOBS):
                        app.send_task("create", args=(number,))
                keys = [f"plain-{number}" for number in range(JOBS)]
                wait_for_calls(here, keys, 1)
        began = time.monotonic()
        workers[0].kill()
        try:
            return [wait_for_calls(here, keys, 2) - began]
        except TimeoutError:
            return []
        finally:
            workers[1].kill()


def enqueue(here: Site) -> str:
    """A new create; its idempotency key."""
    return f"customer-jobs-{CustomerJobs(here.engine).create_customer({'email': f'{uuid.uuid4().hex}@example.com'}).id}"


def of_worker(here: Site, worker: str, keys: list[str]) -> list[str]:
    """Those of these idempotency keys whose jobs the worker of that name has begun."""
    begun = {f"customer-jobs-{each['job_id']}" for each in rows(here.engine, attempts, worker=f"{worker}@test")}
    return [key for key in keys if key in begun]


def kill(crew: Crew, doomed: Leader) -> None:
    """SIGKILL of the process that leads, and of no other that has its name by now."""
    end = crew.kill(doomed.name)
    require(end.pid == doomed.pid, f"{doomed.name}, process {end.pid}, did not lead")


def wait_for_calls(here: Site, keys: list[str], count: int) -> float:
    """When the last of these keys, one at least, had been seen so often, by the monotonic clock."""
    arrived = []
    until = time.monotonic() + PATIENCE_SECONDS
    for key in keys:
        left = max(0.0, until - time.monotonic())
        here.sandbox.wait_until_request(lambda request, key=key: request.idempotency_key == key, left, count)  # type: ignore[misc]
        seen = [request.arrived_monotonic for request in here.sandbox.requests if request.idempotency_key == key]
        arrived.append(seen[count - 1])
    return max(arrived)


MEASURES = [
    Measure("killed worker", TAKEN_OVER_SECONDS, killed_worker),
    Measure("leader", REPLACED_SECONDS, leader_replaced),
    Measure("Redis back", BACK_SECONDS, redis_back),
    Measure("PostgreSQL back", BACK_SECONDS, postgres_back),
    Measure("half-open broker", HALF_OPEN_SECONDS, half_open_broker),
    Measure("plain Celery", None, plain_celery),
]


def line(measure: Measure, found: list[float]) -> str:
    """A line of the table."""
    promised = "" if measure.promised_seconds is None else f"<= {measure.promised_seconds:g}"
    figures = ", ".join(f"{seconds:.1f}" for seconds in found) or f"> {PATIENCE_SECONDS:g}"
    return f"{measure.name:18}{promised:>8}   {figures}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", choices=[each.name for each in MEASURES], help="measure one of them")
    arguments = parser.parse_args()
    chosen = [each for each in MEASURES if arguments.only in (None, each.name)]
    load = os.getloadavg()[0]
    with (
        tempfile.TemporaryDirectory(prefix="customer-jobs-") as directory,
        ThreadPoolExecutor(len(chosen)) as threads,
    ):
        under_way = [
            threads.submit(each.run, Path(directory) / each.name.replace(" ", "-"), arguments.rounds) for each in chosen
        ]
        results = [each.result() for each in under_way]
    loads = f"load average {load:.1f} before, {os.getloadavg()[0]:.1f} after"
    sys.stdout.write(
        f"{time.strftime('%Y-%m-%d')}, Python {platform.python_version()}, {os.cpu_count()} cores, {loads}; seconds\n\n"
        f"{'':18}promised   in each round\n"
    )
    for measure, found in zip(chosen, results, strict=True):
        sys.stdout.write(line(measure, found) + "\n")
    kept = all(
        max(found) <= measure.promised_seconds
        for measure, found in zip(chosen, results, strict=True)
        if measure.promised_seconds is not None
    )
    raise SystemExit(0 if kept else 1)


if __name__ == "__main__":
    main()
