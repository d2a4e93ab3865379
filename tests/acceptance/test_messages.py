"""Celery messages only carry ids: doubled, forged or inspected, they change nothing and reveal nothing."""

from __future__ import annotations

import base64
import re
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import redis

from customer_jobs import Job
from customer_jobs.broker import PREFIX, QUEUE
from tests.acceptance.stack import STRIPE_API_KEY, Stack, email, send_message, unique


def send(stack: Stack, kind: str, *arguments: object, task_id: str | None = None) -> None:
    send_message(stack.redis_url, kind, *arguments, task_id=task_id)


def work_through_messages(stack: Stack) -> None:
    """Return when every message sent so far was taken: jobs go through the same queue, in order."""
    stack.wait_for_end(stack.jobs.create_customer({"email": email()}))


def test_a_doubled_message_makes_one_call(stack: Stack) -> None:
    job = stack.jobs.create_customer({"email": email()})
    stack.sandbox.hold(lambda request: request.idempotency_key == f"customer-jobs-{job.id}")
    try:
        send(stack, job.kind, job.id, task_id=job.id)
        stack.sandbox.wait_until_held()
        for _ in range(3):
            send(stack, job.kind, job.id, task_id=job.id)
        work_through_messages(stack)
    finally:
        stack.sandbox.release()
    ended = stack.wait_for_end(job)
    send(stack, job.kind, job.id)
    work_through_messages(stack)

    assert (ended.state, ended.attempt, len(ended.attempts)) == ("succeeded", 1, 1)
    assert len(stack.requests_of(job)) == 1
    assert len(stack.events_of(job)) == 1
    assert stack.jobs.get(job.id) == ended


def test_a_message_for_a_job_that_is_not_due_yet_is_ignored(stack: Stack) -> None:
    job = stack.jobs.create_customer({"email": email()}, due_at=datetime.now(UTC) + timedelta(hours=1))

    send(stack, job.kind, job.id, task_id=job.id)
    work_through_messages(stack)

    assert stack.requests_of(job) == []
    assert stack.jobs.get(job.id) == job
    assert stack.jobs.cancel(job.id)
    assert stack.consumer.event_about(job.id)["type"] == "customer_jobs.customer.create.cancelled"


def test_messages_that_make_no_sense_change_nothing_and_the_worker_goes_on(stack: Stack) -> None:
    unknown, name = str(uuid.uuid4()), unique("Rosen")

    send(stack, "customer.create", unknown, task_id=unknown)
    send(stack, "customer.fetch", "no id at all")
    send(stack, "customer.create")
    send(stack, "customer.create", {"email": "x@example.com"}, 2)
    send(stack, "customer.invent", unknown)
    work_through_messages(stack)
    with redis.Redis.from_url(stack.redis_url, protocol=2) as client:
        for item in (name, f'["{name}"]', f'"{name}"', f'{{"headers": "{name}"}}', b"\xff" + name.encode()):
            client.lpush(PREFIX + QUEUE, item)
    work_through_messages(stack)

    assert not any(name in log.read_text() for log in stack.directory.glob("*.log"))
    assert all(unknown not in str(request) for request in stack.sandbox.requests)
    assert stack.jobs.get(unknown) is None


def test_the_broker_holds_ids_and_nothing_of_the_customer_or_the_key(stack: Stack) -> None:
    address, name, mine = email(), unique("Rosen"), unique("user")

    with everything_sent_to(stack.redis_url) as sent:
        made = stack.wait_for_end(stack.jobs.create_customer({"email": address, "name": name}, external_id=mine))
        assert made.customer_id is not None
        ended: list[Job] = [
            made,
            stack.wait_for_end(stack.jobs.fetch_customer(made.customer_id)),
            stack.wait_for_end(
                stack.jobs.create_customer({"email": f"a{address}", "name": name, "metadata": {"sandbox": "429, 500"}})
            ),
            stack.wait_for_end(stack.jobs.create_customer({"email": f"{name} at home", "name": name})),
        ]
        for job in ended:
            stack.consumer.event_about(job.id)
    kept = everything_kept_by(stack.redis_url)

    seen = readable(b"".join(sent) + kept)
    for job in ended:
        assert f'[["{job.id}"], {{}}, '.encode() in seen  # a message's whole arguments
    for secret in (address, name, STRIPE_API_KEY):
        assert secret.encode() not in seen


@contextmanager
def everything_sent_to(redis_url: str) -> Iterator[list[bytes]]:
    """Every command that the Redis gets during the block, as MONITOR shows it."""
    address = urlsplit(redis_url)
    assert address.port is not None
    sent: list[bytes] = []
    with socket.create_connection((address.hostname or "", address.port), timeout=30) as connection:
        connection.sendall(b"MONITOR\r\n")
        assert connection.recv(5, socket.MSG_WAITALL) == b"+OK\r\n"

        def record() -> None:
            while b"the-end-of-it" not in b"".join(sent[-2:]):
                sent.append(connection.recv(65536))

        recorder = threading.Thread(target=record)
        recorder.start()
        try:
            yield sent
        finally:
            with redis.Redis.from_url(redis_url) as client:
                client.echo("the-end-of-it")
            recorder.join(30)


def everything_kept_by(redis_url: str) -> bytes:
    """Every key of the Redis with its value."""
    with redis.Redis.from_url(redis_url) as client:
        read: dict[bytes, Callable[[bytes], Any]] = {
            b"string": client.get,
            b"list": lambda key: client.lrange(key, 0, -1),
            b"set": client.smembers,
            b"zset": lambda key: client.zrange(key, 0, -1),
            b"hash": client.hgetall,
            b"stream": client.xrange,
        }
        parts = [(key, read[client.type(key)](key)) for key in client.scan_iter(count=1000)]
    return repr(parts).encode()


def readable(seen: bytes) -> bytes:
    """The bytes and, behind them, what in them is written in base64, as Celery's bodies are."""
    runs = re.findall(rb"(?:[A-Za-z0-9+/]{4}){5,}={0,2}", seen)
    return seen + b" ".join(base64.b64decode(run) for run in runs if len(run) % 4 == 0)
