"""Creates that meet every way of losing an answer, each enqueued by two processes at once: one customer per create.

    .venv/bin/python -m benchmarks.exactly_once [--creates N] [--seed N] [--postgresql]

Stripe's stand-in answers 5 % each with a 500 after the deed, a reset after the deed, a body that is cut off, 429, 409
and a 500 that it repeats for ever. Two processes enqueue every create under the same external_id; sixteen threads with
two runners attempt them, and every message arrives twice. Time passes by ageing rows: looks and backoffs would take
minutes. A frozen 500 that hides no customer ends as `outcome_unknown`, and a person's `retry` settles it.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Engine

from customer_jobs import CustomerJobs
from customer_jobs.database import open_engine
from customer_jobs.migrate import migrate
from customer_jobs.problems import OUTCOME_UNKNOWN
from customer_jobs.sandbox import Sandbox
from customer_jobs.schema import attempts, jobs, lanes
from tests import servers
from tests.builders import Worker, add_worker, age, later, lead, rows

FAULTS = "500_after:0.05,reset_after:0.05,cut:0.05,rate_limit:0.05,key_in_use:0.05,frozen_500_after:0.05"
THREADS = 16
MOST_ROUNDS = 60  #: Of dispatching and ageing; a run takes about ten.
AGED_SECONDS = 61.0  #: Longer than the pause between two looks.

#: What each of the two processes does.
ENQUEUE = """
import random, sys
from customer_jobs import CustomerJobs
url, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
jobs, numbers = CustomerJobs(url), list(range(count))
random.Random(seed).shuffle(numbers)
print("ready", flush=True)
sys.stdin.readline()
for number in numbers:
    jobs.create_customer({"email": f"user-{number}@example.com"}, external_id=f"user-{number}")
"""


@dataclass
class Report:
    """What a run came to."""

    creates: int
    enqueued: int = 0
    customers: int = 0
    customers_per_external_id: Counter[int] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    retried_by_hand: int = 0
    requests: int = 0
    calls_in_ledger: int = 0
    most_sends: int = 0
    seconds: float = 0.0

    def lines(self) -> list[str]:
        def counted(counter: Counter[str]) -> str:
            return ", ".join(f"{count} {name}" for name, count in sorted(counter.items()))

        return [
            f"creates, each enqueued by two processes   {self.creates}",
            f"jobs in the table                         {self.enqueued}",
            f"customers at Stripe                       {self.customers}",
            f"customers per external_id                 {dict(self.customers_per_external_id)}",
            f"jobs by state                             {counted(self.states)}",
            f"jobs by outcome                           {counted(self.outcomes)}",
            f"retried by hand after outcome_unknown     {self.retried_by_hand}",
            f"faults met                                {counted(self.faults)}",
            f"attempts by verdict                       {counted(self.verdicts)}",
            f"requests at Stripe; attempts in ledger    {self.requests}; {self.calls_in_ledger} (a look may ask twice)",
            f"sends of one create at most               {self.most_sends}",
            f"seconds                                   {self.seconds:.1f}",
        ]


def run(engine: Engine, creates: int, *, faults: str = FAULTS, seed: int = 1) -> Report:
    """Enqueue so many creates twice and work until all are done."""
    began = time.monotonic()
    report = Report(creates)
    enqueue_twice(engine, creates)
    report.enqueued = len(rows(engine, jobs))
    with Sandbox(faults=faults, seed=seed) as sandbox:
        # Twice the threads' worth: two workers, each with its own connections to Stripe.
        workers = [Worker(engine, sandbox), Worker(engine, sandbox)]
        for worker in workers:
            worker.runner._draw = random.Random(seed).random  # noqa: SLF001 - a worker of the tests has no jitter
        work(engine, workers)
        while retried := retry_unknown(engine):
            report.retried_by_hand += retried
            work(engine, workers)
        tell(report, engine, sandbox)
    report.seconds = time.monotonic() - began
    return report


def enqueue_twice(engine: Engine, creates: int) -> None:
    url = engine.url.render_as_string(hide_password=False)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ENQUEUE, url, str(creates), str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in (1, 2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.communicate("go\n")
        assert process.returncode == 0


def work(engine: Engine, workers: Sequence[Worker]) -> None:
    """Dispatch and attempt until every job is final; each message is delivered to both workers."""
    first = workers[0]
    with ThreadPoolExecutor(THREADS) as threads:
        for _ in range(MOST_ROUNDS):
            lead(engine, first.holder)
            add_worker(engine, slots=1000)
            age(engine, 1, lanes)
            while first.dispatch.run_once().dispatched:
                taken, first.published[:] = [job_id for _, job_id in first.published], []
                deliveries = [(worker, job_id) for job_id in taken for worker in workers]
                list(threads.map(lambda each: each[0].attempt(each[1]), deliveries))
            if all(row["finished_at"] is not None for row in rows(engine, jobs)):
                return
            later(engine, AGED_SECONDS)
    raise AssertionError("some jobs do not end")


def retry_unknown(engine: Engine) -> int:
    """Retry what ended as `outcome_unknown`, as its remedy says; how many."""
    retried = {row["retry_of"] for row in rows(engine, jobs)}
    unknown = [row for row in rows(engine, jobs, state="failed") if row["error"]["code"] == OUTCOME_UNKNOWN]
    failed = [row for row in unknown if row["id"] not in retried]
    for row in failed:
        CustomerJobs(engine).retry(row["id"])
    return len(failed)


def tell(report: Report, engine: Engine, sandbox: Sandbox) -> None:
    customers = sandbox.customers()
    report.customers = len(customers)
    of_ids = Counter(customer["metadata"]["external_id"] for customer in customers)
    report.customers_per_external_id = Counter(of_ids.values())
    ended = rows(engine, jobs)
    report.states = Counter(row["state"] for row in ended)
    report.outcomes = Counter(row["outcome"] for row in ended if row["outcome"])
    calls = rows(engine, attempts)
    report.verdicts = Counter(row["verdict"] for row in calls)
    report.calls_in_ledger = len(calls)
    requests = [request for request in sandbox.requests if request.endpoint != "account"]
    report.requests = len(requests)
    report.faults = Counter(request.fault for request in requests if request.fault)
    sends = Counter(request.idempotency_key for request in requests if request.idempotency_key)
    report.most_sends = max(sends.values())


def main() -> None:
    parser = argparse.ArgumentParser(description="Creates that lose their answers: one customer each.")
    parser.add_argument("--creates", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--postgresql", action="store_true", help="on a PostgreSQL made for the occasion")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="customer-jobs-")))
        url = f"sqlite:///{directory / 'jobs.sqlite3'}"
        if arguments.postgresql:
            url = stack.enter_context(servers.postgres_url(directory))
        engine = open_engine(url, pool_size=THREADS)
        stack.callback(engine.dispose)
        migrate(engine)
        for frozen in ("frozen_500_after", "frozen_500"):
            faults = FAULTS.replace("frozen_500_after", frozen)
            sys.stdout.write(f"{engine.dialect.name}, 5 % each of {faults.replace(':0.05', '').replace(',', ', ')}\n")
            report = run(engine, arguments.creates, faults=faults, seed=arguments.seed)
            sys.stdout.write("".join(f"  {line}\n" for line in report.lines()) + "\n")
            empty(engine)


def empty(engine: Engine) -> None:
    with engine.begin() as connection:
        for table in reversed(jobs.metadata.sorted_tables):
            connection.execute(table.delete())


if __name__ == "__main__":
    import logging

    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    main()
