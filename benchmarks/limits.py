"""How much of Stripe's allowance the workers use, how soon urgent work leaves, and what the table costs.

    .venv/bin/python -m benchmarks.limits [--quick] [ROW ...]

Everything is real and runs on this machine, each in a process of its own: PostgreSQL (TEST_POSTGRES_URL names a server
to make databases on; else one is started), a Redis-compatible server, workers as `celery -A worker.app worker` starts
them, and the sandbox, which takes 0.2 to 0.3 s for an answer unless a row says otherwise. Every row has its own.

Figures come from the sandbox's log of arrivals. What was used of an allowance is (N - 1) / (rate x seconds from the
first arrival to the last), N being the calls that were let through. Beside ours stand workers as people write them by
hand, see `peers`; they have no target. It ends with exit code 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from benchmarks import cost, peers
from benchmarks.arrivals import ENOUGH_SECONDS, RATE, answered, first_of, let_through, turned_away, used
from benchmarks.line import Line, table
from benchmarks.parts import Stage, enqueue, machine, postgres, stage
from customer_jobs import CustomerJobs
from customer_jobs.vocabulary import Kind, Priority
from worker.process import THREADS

STRIPE_SECONDS = (0.2, 0.3)  #: What Stripe takes for a customer.
CUT_RATE = 10.0
BUCKET_SECONDS = 1.0  #: What the sandbox's bucket holds, where it is not the point.
SMALL_BUCKET_TOKENS = 2
SLOW_SECONDS = 5.0
URGENT_PAUSE_SECONDS = (0.2, 0.5)  #: Between two urgent jobs: random, so that they meet every moment of the dispatcher.


@dataclass(frozen=True)
class Sizes:
    """How many of each; a peer waits for its own backoffs, so it is given fewer."""

    creates: int = 1000
    accounts: tuple[int, ...] = (100, 1000)
    peers: int = 200
    slow_peers: int = 40  #: Celery's own limit lets about one call leave in a second.
    waiting: int = 100_000  #: Bulk jobs behind which an urgent one is enqueued.
    urgent: int = 100
    urgent_slow: int = 10
    waiting_slow: int = 1000
    unlimited: int = 5000
    backlogs: tuple[int, int] = (1000, 1_000_000)
    looks: int = 200
    left: int = 90_000  #: Jobs of an hour at Stripe's limit.
    idle_seconds: float = 20.0


QUICK = Sizes(
    creates=200,
    accounts=(100, 400),
    peers=100,
    slow_peers=20,
    waiting=10_000,
    urgent=20,
    urgent_slow=3,
    waiting_slow=200,
    unlimited=1500,
    backlogs=(1000, 100_000),
    looks=60,
    left=9_000,
    idle_seconds=5.0,
)


def steady(postgres_url: str | None, sizes: Sizes) -> Iterator[Line]:
    """1 and 4 workers against a bucket of a second, and the workers that people write by hand."""
    for workers in (1, 4):
        yield ours(postgres_url, sizes.creates, workers, BUCKET_SECONDS, least=0.97, most_turned_away=0.001)
    yield by_hand("  by hand: autoretry, backoff", peers.by_hand.name, sizes.peers)
    yield by_hand('  by hand, rate_limit="25/s"', peers.by_hand_limited.name, sizes.slow_peers)


def small_bucket(postgres_url: str | None, sizes: Sizes) -> Iterator[Line]:
    """The same against a bucket that forgives two calls."""
    seconds = SMALL_BUCKET_TOKENS / RATE
    for workers in (1, 4):
        yield ours(postgres_url, sizes.creates, workers, seconds, least=0.95, most_turned_away=0.02)


def ours(
    postgres_url: str | None, count: int, workers: int, bucket_seconds: float, *, least: float, most_turned_away: float
) -> Line:
    """Creates by our workers, all enqueued at once."""
    limits = {"rate_limit": RATE, "rate_bucket_seconds": bucket_seconds}
    with stage(postgres_url, latency_seconds=STRIPE_SECONDS, **limits) as on:
        on.start_workers(workers)
        enqueue(on.engine, count)
        log = answered(on, count)
    bucket = f"bucket of {bucket_seconds * RATE:.0f}"
    what = f"creates at {RATE:.0f}/s, {bucket}, {counted(workers)}"
    return Line.of_allowance(what, count, used(log), turned_away(log), least, most_turned_away)


def by_hand(what: str, task: str, count: int) -> Line:
    """The same creates by a worker without a table."""
    with stage(None, latency_seconds=STRIPE_SECONDS, rate_limit=RATE, rate_bucket_seconds=BUCKET_SECONDS) as on:
        peers.start(on)
        peers.publish(on.redis_url, task, count)
        log = answered(on, count)
    return Line.of_allowance(what, count, used(log), turned_away(log))


def cut(postgres_url: str | None, sizes: Sizes) -> Iterator[Line]:
    """Stripe lowers its limit when a third of the creates are done, without a word, and raises it again."""
    limits = {"rate_limit": RATE, "rate_bucket_seconds": BUCKET_SECONDS}
    with stage(postgres_url, latency_seconds=STRIPE_SECONDS, **limits) as on:
        on.start_workers()
        enqueue(on.engine, sizes.creates)
        answered(on, sizes.creates // 3)
        changes = [(0.0, RATE)]
        for rate, seconds in ((CUT_RATE, sizes.creates / 50), (RATE, 0.0)):
            on.stripe.ask("limits", rate=rate)
            changes.append((time.time(), rate))
            time.sleep(seconds)
        log = answered(on, sizes.creates)
    what = f"limit cut to {CUT_RATE:.0f}/s for {sizes.creates / 50:.0f} s and back"
    yield Line.of_allowance(what, sizes.creates, used(log, changes=changes), turned_away(log), 0.85, 0.03)


def together(postgres_url: str | None, sizes: Sizes) -> Iterator[Line]:
    """Creates and fetches share an account that allows both, and the threads of one worker or of two."""
    limits = {"rate_limit": RATE, "account_rate_limit": 4 * RATE, "rate_bucket_seconds": BUCKET_SECONDS}
    for workers in (1, 2):
        with stage(postgres_url, latency_seconds=STRIPE_SECONDS, **limits) as on:
            on.start_workers(workers, RATE_LIMIT_ACCOUNT=f"{4 * RATE:.0f}")
            for kind in (Kind.CUSTOMER_CREATE, Kind.CUSTOMER_FETCH):
                enqueue(on.engine, sizes.creates, kind)
            answered(on, sizes.creates, "create")
            log = answered(on, sizes.creates, "retrieve")
        for name, endpoint in (("creates", "create"), ("fetches", "retrieve")):
            what = f"creates and fetches at once, {counted(workers)}: {name}"
            yield Line.of_allowance(what, sizes.creates, used(log, endpoint), turned_away(log, endpoint), 0.97, 0.001)


def accounts(postgres_url: str | None, sizes: Sizes) -> Iterator[Line]:
    """Creates of many connected accounts, which share what their credential may send."""
    for count in sizes.accounts:
        creates = max(sizes.creates, 2 * count)
        with stage(postgres_url, latency_seconds=STRIPE_SECONDS, rate_limit=RATE) as on:
            enqueue(on.engine, creates, accounts=count)
            on.start_workers(RATE_LIMIT_ACCOUNT=f"{RATE:.0f}")
            log = answered(on, creates)
        what = f"creates of {count:,} connected accounts at {RATE:.0f}/s together, 1 worker"
        yield Line.of_allowance(what, creates, used(log), turned_away(log), 0.97, 0.001)


def counted(workers: int) -> str:
    return f"{workers} worker{'s' * (workers > 1)}"


def enqueue_urgent(jobs: CustomerJobs, on: Stage) -> tuple[str, float]:
    """The idempotency key of a new urgent create, and when its transaction was about to be committed."""
    with on.engine.connect() as connection:
        job = jobs.create_customer({"email": "jenny.rosen@example.com"}, priority="urgent", session=connection)
        before = time.time()
        connection.commit()
    return f"customer-jobs-{job.id}", before


def urgent(postgres_url: str | None, sizes: Sizes) -> Iterator[Line]:
    """From the COMMIT of an urgent job's INSERT to its arrival, while bulk creates use the whole allowance."""
    limits = {"rate_limit": RATE, "rate_bucket_seconds": BUCKET_SECONDS}
    with stage(postgres_url, latency_seconds=STRIPE_SECONDS, **limits) as on:
        enqueue(on.engine, sizes.waiting, priority=Priority.BULK)
        on.start_workers()
        answered(on, int(2 * RATE))
        jobs, committed = CustomerJobs(on.engine), {}
        for _ in range(sizes.urgent):
            key, before = enqueue_urgent(jobs, on)
            committed[key] = before
            time.sleep(random.uniform(*URGENT_PAUSE_SECONDS))
        log = on.stripe.wait_until(lambda log: len(first_of(log, committed)) == sizes.urgent, ENOUGH_SECONDS)
    waits = [(request["arrived_at"] - committed[key]) * 1000 for key, request in first_of(log, committed).items()]
    median, p95 = statistics.median(waits), statistics.quantiles(waits, n=20)[-1]
    what = f"urgent job behind {sizes.waiting:,} bulk creates: to Stripe"
    yield Line(f"{what}, median", len(waits), median, "ms", turned_away(log), "<= 100 ms", reached=median <= 100)
    yield Line(f"{what}, p95", len(waits), p95, "ms", turned_away(log), "<= 250 ms", reached=p95 <= 250)


def slow_stripe(postgres_url: str | None, sizes: Sizes) -> Iterator[Line]:
    """From the first answer after an urgent job's INSERT, which frees a thread, to the job's arrival."""
    with stage(postgres_url, latency_seconds=SLOW_SECONDS, rate_limit=RATE) as on:
        enqueue(on.engine, sizes.waiting_slow, priority=Priority.BULK)
        on.start_workers()
        on.stripe.wait_until(lambda log: len(let_through(log, "create")) >= THREADS, ENOUGH_SECONDS)
        jobs, committed = CustomerJobs(on.engine), {}
        for _ in range(sizes.urgent_slow):
            key, before = enqueue_urgent(jobs, on)
            committed[key] = before
            # Long enough for it to get a thread: urgent jobs do not wait for one another.
            time.sleep(SLOW_SECONDS * random.uniform(1, 1.5))
        on.stripe.wait_until(lambda log: len(first_of(log, committed)) == sizes.urgent_slow, ENOUGH_SECONDS)
        log = on.stripe.requests()
    freed = sorted(request["finished_at"] for request in log if request["finished_at"] is not None)
    waits, overtaken_by = [], []
    for key, request in first_of(log, committed).items():
        first_free = next(at for at in freed if at > committed[key])
        waits.append((request["arrived_at"] - first_free) * 1000)
        overtaken_by.append(sum(first_free < other["arrived_at"] < request["arrived_at"] for other in log))
    median, worst = statistics.median(waits), max(waits)
    what = f"urgent job, {SLOW_SECONDS:.0f} s per answer, {sizes.waiting_slow:,} bulk: behind a free thread"
    yield Line(f"{what}, median", len(waits), median, "ms", turned_away(log), "<= 100 ms", reached=median <= 100)
    yield Line(f"{what}, worst", len(waits), worst, "ms", turned_away(log), "<= 250 ms", reached=worst <= 250)
    yield Line("  bulk jobs that took a free thread before it, worst", len(waits), max(overtaken_by), "jobs", None)


def unlimited(postgres_url: str | None, sizes: Sizes) -> Iterator[Line]:
    """What is left of a bare task's speed when there is a table, no limit and a Stripe that answers at once."""
    return cost.of_the_table(postgres_url, sizes.unlimited)


def backlog(postgres_url: str | None, sizes: Sizes) -> Iterator[Line]:
    """What a look of the dispatcher costs with few and with many jobs in the table, on either kind of database."""
    for url in dict.fromkeys((postgres_url, None)):
        yield from cost.of_looks(url, sizes.backlogs, sizes.looks)


def open_transaction(postgres_url: str | None, sizes: Sizes) -> Iterator[Line]:
    """A worker, and the cost of a look, when a transaction has been open for an hour."""
    if postgres_url is None:
        return  # Nobody could write meanwhile.
    with stage(postgres_url, latency_seconds=STRIPE_SECONDS, rate_limit=RATE, rate_bucket_seconds=BUCKET_SECONDS) as on:
        on.start_workers()
        enqueue(on.engine, 1)  # The limits of its lane are in the table from now on.
        before = answered(on, 1)
        with cost.left_behind(on.database_url, sizes.left, is_open=True):
            enqueue(on.engine, sizes.creates)
            log = answered(on, 1 + sizes.creates)[len(before) :]
    what = f"creates at {RATE:.0f}/s, a transaction is open, {sizes.left:,} jobs have left"
    yield Line.of_allowance(what, sizes.creates, used(log), turned_away(log), 0.97, 0.001)
    yield from cost.of_an_open_transaction(postgres_url, sizes.left, sizes.looks)


def idle(postgres_url: str | None, sizes: Sizes) -> Iterator[Line]:
    """What a worker takes that has nothing to do, on either kind of database."""
    for url in dict.fromkeys((postgres_url, None)):
        yield cost.of_idling(url, sizes.idle_seconds)


ROWS: dict[str, Callable[[str | None, Sizes], Iterator[Line]]] = {
    "steady": steady,
    "small-bucket": small_bucket,
    "cut": cut,
    "together": together,
    "accounts": accounts,
    "urgent": urgent,
    "slow-stripe": slow_stripe,
    "unlimited": unlimited,
    "backlog": backlog,
    "open-transaction": open_transaction,
    "idle": idle,
}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"all if none is named: {', '.join(ROWS)}")
    parser.add_argument("--quick", action="store_true", help="fewer of everything")
    parser.add_argument("--sqlite", action="store_true", help="our workers on SQLite")
    arguments = parser.parse_args()
    if unknown := set(arguments.rows) - set(ROWS):
        parser.error(f"unknown row {', '.join(sorted(unknown))}; known are {', '.join(ROWS)}")
    before = os.getloadavg()[0]
    lines: list[Line] = []
    # Ctrl-C ends all programs, and what was measured by then is printed.
    with suppress(KeyboardInterrupt), postgres() as postgres_url:
        for name in arguments.rows or ROWS:
            sys.stderr.write(f"{name} ...\n")
            for line in ROWS[name](None if arguments.sqlite else postgres_url, QUICK if arguments.quick else Sizes()):
                sys.stderr.write(f"  {'  '.join(line.cells)}\n")
                lines.append(line)
    sys.stdout.write(f"{machine([before, os.getloadavg()[0]])}\n\n{table(lines)}\n")
    raise SystemExit(1 if any(line.reached is False for line in lines) else 0)


if __name__ == "__main__":
    main()
