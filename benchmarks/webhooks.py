"""What the webhook receiver takes for one of Stripe's events, of a processor and in all.

    .venv/bin/python -m benchmarks.webhooks

PostgreSQL (TEST_POSTGRES_URL names a server to make a database on; else one is started) and SQLite; events of 20 KiB,
as Stripe's largest are, of twenty customers in turn, each signed and stored as from the wire. HTTP is not in it.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from benchmarks.line import Line, table
from benchmarks.parts import database, machine, postgres
from customer_jobs import CustomerJobs
from customer_jobs.sandbox import sign
from customer_jobs.webhooks import WebhookReceiver

EVENTS = 400
WARM_UP_EVENTS = 20  #: Statements are built and prepared once.
SECRET = "whsec_benchmark"
MOST_MS = 5.0  #: Of a processor: a hundred events a second take less than half of one.


def body(number: int) -> bytes:
    """An event as Stripe sends it."""
    metadata = {f"key_{key}": "x" * 400 for key in range(50)}
    customer = {"id": f"cus_{number % 20}", "object": "customer", "metadata": metadata}
    event = {
        "id": f"evt_{uuid.uuid4().hex}",
        "object": "event",
        "type": "customer.updated",
        "created": int(time.time()),
        "livemode": False,
        "data": {"object": customer},
    }
    return json.dumps(event).encode()


def of_events(postgres_url: str | None) -> Iterator[Line]:
    """The medians on one kind of database."""
    name = "SQLite" if postgres_url is None else "PostgreSQL"
    with (
        tempfile.TemporaryDirectory(prefix="customer-jobs-") as directory,
        database(Path(directory), postgres_url) as (_, engine),
    ):
        receiver = WebhookReceiver(CustomerJobs(engine), SECRET)
        own, whole = [], []
        for number in range(WARM_UP_EVENTS + EVENTS):
            sent = body(number)
            signature = sign(sent, SECRET)
            began = time.thread_time(), time.perf_counter()
            receiver.receive(sent, signature)
            own.append(1000 * (time.thread_time() - began[0]))
            whole.append(1000 * (time.perf_counter() - began[1]))
    median = statistics.median(own[WARM_UP_EVENTS:])
    yield Line(
        f"an event on {name}, of a processor", EVENTS, median, "ms", None, f"<= {MOST_MS:g} ms", median <= MOST_MS
    )
    yield Line("  in all", EVENTS, statistics.median(whole[WARM_UP_EVENTS:]), "ms", None)


def main() -> None:
    """Measure and print the table."""
    before = os.getloadavg()[0]
    with postgres() as postgres_url:
        lines = [line for url in (postgres_url, None) for line in of_events(url)]
    sys.stdout.write(f"{machine([before, os.getloadavg()[0]])}\n\n{table(lines)}\n")


if __name__ == "__main__":
    main()
