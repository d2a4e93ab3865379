"""How long an event takes from its COMMIT to a consumer, and how many events a second the relay and a consumer manage.

    .venv/bin/python -m benchmarks.events [--quick]

Everything is real and runs on this machine, each in a process of its own: PostgreSQL (TEST_POSTGRES_URL names a server
to make a database on; else one is started), a Redis-compatible server and one worker, which leads; the consumer is in
the process that measures.

    to a consumer   from just before the COMMIT of a transaction that cancels a job, in another process than the worker,
                    to the consumer's handler; one after another, on a machine that does nothing else
    relay           events in the table, all committed at once, to events on the stream
    consumer        the same events to one consumer that acknowledges each
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine, insert, select

from benchmarks.parts import machine, postgres, stage
from customer_jobs import CustomerJobs, Event, EventConsumer
from customer_jobs.database import reading, writing
from customer_jobs.events import DEFAULT_STREAM, completion_event
from customer_jobs.schema import events
from customer_jobs.stream import connect
from customer_jobs.vocabulary import State

EVENTS, QUICK_EVENTS = 20_000, 5_000
CANCELS, QUICK_CANCELS = 200, 50
WARM_UP = 10  #: Connections are made and code is imported; users feel these once a day.
PACE_SECONDS = 0.1  #: Idle in between.
PATIENCE_SECONDS = 120.0
LATENCY_TARGET_MS, RELAY_TARGET = 10, 1000


class Listener:
    """A consumer in a thread, which notes when each event arrives."""

    def __init__(self, redis_url: str, engine: Engine) -> None:
        self.consumer = EventConsumer("benchmark", url=redis_url, engine=engine)
        self.arrived: dict[str, float] = {}
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self.consumer.run, args=(self._note,), name="consumer")
        self._thread.start()

    def wait_for(self, subject: str) -> float:
        """When the event about a job arrived, in seconds since 1970."""
        with self._changed:
            if not self._changed.wait_for(lambda: subject in self.arrived, PATIENCE_SECONDS):
                raise TimeoutError(f"no event about {subject} within {PATIENCE_SECONDS:g} s")
            return self.arrived[subject]

    def stop(self) -> None:
        self.consumer.stop()
        self._thread.join()

    def _note(self, event: Event) -> None:
        now = time.time()
        with self._changed:
            self.arrived[event.subject] = now
            self._changed.notify_all()


def latencies(engine: Engine, listener: Listener, count: int) -> list[float]:
    """Milliseconds from COMMIT to handler."""
    jobs = CustomerJobs(engine)
    found = []
    for _ in range(WARM_UP + count):
        job = jobs.create_customer({"name": "benchmark"}, due_at=datetime.now(UTC) + timedelta(days=1))
        time.sleep(PACE_SECONDS)
        with engine.connect() as connection:
            jobs.cancel(job.id, session=connection)
            before = time.time()
            connection.commit()
        found.append((listener.wait_for(job.id) - before) * 1000)
    return found[WARM_UP:]


def rates(engine: Engine, redis_url: str, listener: Listener, count: int) -> tuple[float, float]:
    """Events a second that the relay and the consumer manage; raises if they come out of order."""
    names = ("outcome", "stripe_account", "livemode", "customer_id", "external_id", "context", "error")
    job = dict.fromkeys(names) | {"kind": "customer.create", "credential": "default", "attempt": 1}
    rows = [completion_event(job | {"id": str(uuid.uuid4())}, State.SUCCEEDED) for _ in range(count)]
    with connect(redis_url) as client:
        last: Any = client.xrevrange(DEFAULT_STREAM, count=1)
        length = client.xlen(DEFAULT_STREAM)
        with writing(engine) as transaction:
            transaction.change(insert(events), rows)
            before = time.time()
        while client.xlen(DEFAULT_STREAM) < length + count:
            time.sleep(0.01)
        relayed = time.time() - before
        consumed = listener.wait_for(rows[-1]["subject"]) - before
        entries: Any = client.xrange(DEFAULT_STREAM, min=f"({last[0][0]}")
    with reading(engine) as transaction:
        in_order = [row["id"] for row in transaction.rows(select(events.c.id).order_by(events.c.seq))]
    published = [json.loads(fields["event"])["id"] for _, fields in entries]
    assert published == in_order[-count:], "the stream is not in the order of the table"
    return count / relayed, count / consumed


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a quarter of the events")
    quick = parser.parse_args().quick
    load = os.getloadavg()[0]
    with postgres() as url, stage(url) as on:
        on.start_workers()
        listener = Listener(on.redis_url, on.engine)
        try:
            measured = latencies(on.engine, listener, QUICK_CANCELS if quick else CANCELS)
            count = QUICK_EVENTS if quick else EVENTS
            relay, consumer = rates(on.engine, on.redis_url, listener, count)
        finally:
            listener.stop()
    p95 = statistics.quantiles(measured, n=20)[-1]
    middle, best, worst = statistics.median(measured), min(measured), max(measured)
    figures = f"median {middle:.1f}, p95 {p95:.1f}, best {best:.1f}, worst {worst:.1f}"
    lines = [
        machine([load, os.getloadavg()[0]]),
        "",
        f"to a consumer {len(measured):7} events   {figures} ms; target for the median: {LATENCY_TARGET_MS}",
        f"relay         {count:7} events   {relay:,.0f} a second, in order; target: {RELAY_TARGET:,}",
        f"consumer      {count:7} events   {consumer:,.0f} a second, relay included",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
