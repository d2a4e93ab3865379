"""Thousands of jobs while everything goes wrong, and what must hold at the end.

    .venv/bin/python -m tests.chaos.soak [--jobs N] [--rounds N] [--workers N] [--seed N] [--sqlite]
        [--spare-workers]

Three workers under a supervisor, PostgreSQL, a Redis-compatible server, Stripe's stand-in, and TCP proxies in between;
two apps enqueue, two consume. Workers, leader, Redis, PostgreSQL and Stripe are harmed at the same time, in an order
that the seed decides. Every fault proves that it happened, or the soak fails. It ends with exit code 1 when a promise
is broken, and then keeps the logs.
"""

from __future__ import annotations

import argparse
import logging
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue

from sqlalchemy import func, select

from customer_jobs.database import reading
from customer_jobs.embedded import EmbeddedError, wait_until
from customer_jobs.errors import Unavailable
from customer_jobs.schema import jobs
from tests.chaos import invariants
from tests.chaos.audience import Listener, OnceOnly
from tests.chaos.crew import Crew, End
from tests.chaos.faults import SURVIVED, Fault, Target, lanes
from tests.chaos.leaks import Holdings, holdings, most_of
from tests.chaos.orders import Order, Producers, orders, stock
from tests.chaos.outcome import counted, eventually, heard_all, outcome, still_connected, unfinished
from tests.chaos.proofs import NotDone
from tests.chaos.site import Site, site
from worker.dispatcher.dispatch import SPARE_JOBS
from worker.process import DISPATCHER_CONNECTIONS, THREADS

ROUNDS = 8  #: How often each fault strikes.
LATENCY_SECONDS = (0.02, 0.2)  #: Of Stripe: a call is likely to be under way when its worker is killed.
STRUCK_AFTER_SECONDS = 0.3  #: By then a fault that was just called for has begun.
CALM_SECONDS = 2.0  #: At most, between two faults of one lane; one often strikes while all recover from the last.
#: Backoffs of the unluckiest, who met seven faults, and leases of the last that were killed.
END_SECONDS = 300.0
SETTLE_SECONDS = 90.0  #: Pools and threads of a worker that has nothing to do.
SQLITE_CONNECTIONS = 15  #: SQLAlchemy's default pool with its overflow.
#: What pools may hold at most, whatever they happen to hold at first.
POOLS = {
    "PostgreSQL": THREADS + DISPATCHER_CONNECTIONS + 1,  # One listens.
    ".sqlite3": 2 * SQLITE_CONNECTIONS,  # SQLite closes some files later than their connection.
    ".sqlite3-wal": SQLITE_CONNECTIONS,
}
#: The relay and the pruning share a pool of Redis, and may ask at once; a pooled connection that was reset stays a bare
#: socket until it is needed again.
SPARE = {"Redis": 1, "socket": DISPATCHER_CONNECTIONS}
SAY_EVERY_SECONDS = 10.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Done:
    """A fault that happened."""

    name: str
    seconds: float
    proof: str


@dataclass
class Report:
    """What a soak came to."""

    seed: int
    done: list[Done] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)  #: Nothing, or a promise is.
    ended: list[End] = field(default_factory=list)  #: Workers, before they were told to at the end.
    figures: dict[str, str] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        yield f"{'fault':32}{'times':>6}{'seconds':>9}   proof of the last"
        for name in dict.fromkeys(each.name for each in sorted(self.done, key=lambda each: each.name)):
            of_name = [each for each in self.done if each.name == name]
            mean = sum(each.seconds for each in of_name) / len(of_name)
            yield f"{name:32}{len(of_name):6}{mean:9.1f}   {of_name[-1].proof}"
        yield ""
        yield from (f"{name:40}{value}" for name, value in self.figures.items())
        yield ""
        yield from (f"broken: {each}" for each in self.broken)
        yield f"{len(self.broken)} broken promises, seed {self.seed}"


def soak(
    directory: Path,
    *,
    database: str,
    count: int,
    rounds: int,
    workers: int,
    seed: int,
    only: Collection[str] = (),
    calm_refusals: bool = False,
    calm_seconds: float = CALM_SECONDS,
    say: Say = lambda _: None,
) -> Report:
    """Run one: so many jobs while each fault strikes `rounds` times, or `only` those that are named.

    A create that Stripe refuses after an answer was lost looks for its customer for two minutes before it fails:
    `calm_refusals` are all over before the first fault.
    """
    report, chance, began = Report(seed), random.Random(seed), time.monotonic()
    wanted = orders(count, chance)
    refused = [order for order in wanted if order.is_refused_create]
    # Stripe refuses at once, so these keep no thread.
    keep_busy = [order for order in wanted if not order.is_refused_create]
    # Enough to give every thread of every worker something to do at once.
    several = workers * THREADS + SPARE_JOBS
    first, during, last = keep_busy[:several], keep_busy[several:-several], keep_busy[-several:]
    (first if calm_refusals else during).extend(refused)
    with site(directory, database, latency_seconds=LATENCY_SECONDS, seed=seed) as here:
        stock(here, wanted)
        with (
            Crew(directory, here.settings) as crew,
            Listener(here) as listener,
            OnceOnly(here) as once_only,
            Producers(here) as producers,
        ):
            crew.start(*(f"w{number}" for number in range(1, workers + 1)))
            before = busy_and_idle(here, crew, producers, first)
            allowed = before.allowing(POOLS, SPARE)
            say(f"{time.monotonic() - began:.0f} s: calm so far, {progress(here)}; before: {before}")
            chosen = [{name: lane[name] for name in lane if not only or name in only} for lane in lanes(here)]
            chosen = [lane for lane in chosen if lane]
            strike_all(report, Target(here, crew, chance), producers, during, chosen, rounds, calm_seconds, say)
            here.heal()
            say(f"{time.monotonic() - began:.0f} s: healed, {progress(here)}")
            ended = eventually(lambda: not unfinished(here), END_SECONDS)
            say(f"{time.monotonic() - began:.0f} s: {progress(here)}")
            if ended:
                after = busy_and_idle(here, crew, producers, last, allowed)
                report.broken += after.beyond(allowed)
                report.figures["held by a worker before"] = str(before)
                report.figures["held by a worker after"] = str(after)
            eventually(lambda: heard_all(here, listener, once_only), SETTLE_SECONDS)
            report.broken += outcome(here, crew, [listener, once_only], producers, wanted if ended else [])
            report.ended += crew.ends
            tell(report, here, crew, listener, producers)
            report.broken += [f"told to stop, {end} ended so" for end in crew.end_all() if end.exit_code != 0]
        here.engine.dispose()
        report.broken += still_connected(here)
    report.figures["seconds"] = f"{time.monotonic() - began:.0f}"
    return report


def strike_all(
    report: Report,
    target: Target,
    producers: Producers,
    wanted: Sequence[Order],
    chosen: Sequence[Mapping[str, Fault]],
    rounds: int,
    calm_seconds: float,
    say: Say,
) -> None:
    """Do all harm, each lane in a thread of its own, while the orders come in."""
    strikes = rounds * sum(map(len, chosen))
    # Dealt out, creates first: every batch has some of both kinds.
    dealt = sorted(wanted, key=lambda order: order.customer_id is not None)
    batches = SimpleQueue[list[Order]]()
    for number in range(strikes):
        batches.put(dealt[number::strikes])

    def work(lane: Mapping[str, Fault], chance: random.Random) -> None:
        for _ in range(rounds):
            for name in chance.sample(sorted(lane), len(lane)):
                time.sleep(chance.uniform(0, calm_seconds))
                say(f"  {name}")
                strike(report, replace(target, chance=chance), producers, batches.get(), name, lane[name])

    with ThreadPoolExecutor(len(chosen), thread_name_prefix="lane") as threads:
        under_way = [threads.submit(work, lane, random.Random(target.chance.random())) for lane in chosen]
        while wait(under_way, SAY_EVERY_SECONDS).not_done:
            say(f"{len(report.done)} of {strikes} faults, {progress(target.site)}")
        for each in under_way:
            each.result()


def strike(
    report: Report, target: Target, producers: Producers, batch: Sequence[Order], name: str, fault: Fault
) -> None:
    began = time.monotonic()
    # Half of them later: jobs that end at once would be done before the harm, and Stripe's faults need calls to meet.
    enqueuing = producers.begin(batch[::2]) + producers.begin(batch[1::2], after_seconds=STRUCK_AFTER_SECONDS)
    try:
        proof = fault(target)
    except (NotDone, EmbeddedError) as error:
        report.broken.append(f"did not happen: {name}: {error}")
    else:
        report.done.append(Done(name, time.monotonic() - began, proof))
    for each in enqueuing:
        try:
            each.result()
        except Unavailable as error:
            report.broken.append(f"an order was not taken: {error}")


def busy_and_idle(
    here: Site, crew: Crew, producers: Producers, batch: Sequence[Order], allowed: Holdings | None = None
) -> Holdings:
    """The most that any worker holds after all its threads were busy at once, once it has nothing to do any more."""
    here.sandbox.hold()
    for each in producers.begin(batch):
        each.result()
    here.sandbox.wait_until_held(len(crew.names) * THREADS, SETTLE_SECONDS)
    here.sandbox.release()
    wait_until(lambda: not unfinished(here), END_SECONDS, "every job has ended")
    found: list[Holdings] = []

    def settled() -> bool:
        found.append(most_held(here, crew))
        return not found[-1].beyond(allowed) if allowed is not None else len(found) > 1 and found[-1] == found[-2]

    eventually(settled, SETTLE_SECONDS, every_seconds=2.0)
    return found[-1]


def most_held(here: Site, crew: Crew) -> Holdings:
    servers = {here.to_redis.port: "Redis", here.to_stripe.port: "Stripe"}
    if here.to_postgres is not None:
        servers[here.to_postgres.port] = "PostgreSQL"
    return most_of([holdings(crew.program(name).pid, servers) for name in crew.names])


def tell(report: Report, here: Site, crew: Crew, listener: Listener, producers: Producers) -> None:
    world = invariants.look(here.engine, here.sandbox)
    made = [attempt for each in world.attempts.values() for attempt in each]
    states = Counter(f"{job['kind']} {job['outcome'] or job['state']}" for job in world.jobs.values())
    report.figures |= {
        "jobs": counted(states),
        "customers made": f"{len(world.ours())}",
        "attempts by verdict": counted(Counter(str(attempt["verdict"]) for attempt in made)),
        "most attempts at one job": f"{max(map(len, world.attempts.values()))}",
        "workers ended": counted(Counter(str(end.cause) for end in crew.ends)),
        "events in the outbox": f"{sum(map(len, world.events.values()))}",
        "deliveries of them": f"{len(listener.events)}",
        "enqueuing failed and was done again": f"{producers.failures}",
    }


def progress(here: Site) -> str:
    try:
        with reading(here.engine) as transaction:
            counted_jobs = transaction.rows(select(jobs.c.state, func.count().label("n")).group_by(jobs.c.state))
    except Unavailable:
        return "the database is away"
    return counted({row["state"]: row["n"] for row in counted_jobs})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"how often each fault strikes; {ROUNDS}")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--spare-workers", action="store_true", help="let the same workers live through it all")
    parser.add_argument("--seed", type=int, default=None, help="of an earlier run; a new one is printed")
    parser.add_argument("--sqlite", action="store_true", help="without PostgreSQL, and with what can go wrong there")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    directory = Path(tempfile.mkdtemp(prefix="customer-jobs-"))
    say(f"seed {seed}, logs in {directory}")
    # Consumers report every outage, and there will be many.
    logging.getLogger("customer_jobs").setLevel(logging.CRITICAL)
    report = soak(
        directory,
        database="sqlite" if arguments.sqlite else "postgresql",
        count=arguments.jobs,
        rounds=arguments.rounds,
        workers=arguments.workers,
        seed=seed,
        only=SURVIVED if arguments.spare_workers else (),
        say=say,
    )
    if arguments.spare_workers:
        report.broken += [f"a worker ended: {ended}" for ended in report.ended]
    sys.stdout.write("\n" + "".join(f"{line}\n" for line in report.lines()))
    if report.broken:
        sys.stdout.write(f"the logs are kept in {directory}\n")
        raise SystemExit(1)
    shutil.rmtree(directory)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
