"""What Redis keeps of the messages that a worker has taken: those that are all there is of a job, and no job's id."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from kombu.connection import Connection

from worker.broker import Unacknowledged

UNACKED = "unacked"


@pytest.fixture
def queue() -> str:
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture
def connection(redis_url: str, queue: str) -> Iterator[Any]:
    options = {"global_keyprefix": f"{queue}:"}
    with Connection(redis_url, transport_options=options) as made:  # type: ignore[no-untyped-call]
        made.default_channel.QoS = Unacknowledged
        yield made


def take(connection: Any, queue: str, task: object) -> Any:
    """A message for a task, just taken by a worker."""
    headers = {"task": task, "id": str(uuid.uuid4())}
    connection.Producer().publish([], routing_key=queue, headers=headers, serializer="json")
    message = connection.default_channel.basic_get(queue)
    assert message.headers == headers
    return message


def kept(client: redis.Redis, queue: str) -> int:
    """How many messages Redis would give out again."""
    assert client.hlen(f"{queue}:{UNACKED}") == client.zcard(f"{queue}:{UNACKED}_index")
    return int(client.hlen(f"{queue}:{UNACKED}"))


@pytest.mark.parametrize("kind", ["customer.create", "customer.fetch"])
@pytest.mark.parametrize("end", ["ack", "reject", "requeue"])
def test_redis_keeps_nothing_of_a_message_that_holds_a_job_id(
    connection: Any, queue: str, client: redis.Redis, kind: str, end: str
) -> None:
    message = take(connection, queue, kind)

    while_taken = kept(client, queue)
    getattr(message, end)()

    assert (while_taken, kept(client, queue), client.llen(f"{queue}:{queue}")) == (0, 0, 0)


@pytest.mark.parametrize("task", ["customer.enqueue", "another.apps", None, ["customer.create"]])
def test_any_other_message_is_kept_until_it_is_acknowledged(
    connection: Any, queue: str, client: redis.Redis, task: object
) -> None:
    message = take(connection, queue, task)

    while_taken = kept(client, queue)
    message.ack()

    assert (while_taken, kept(client, queue)) == (1, 0)


def test_a_message_that_is_put_back_is_taken_again(connection: Any, queue: str, client: redis.Redis) -> None:
    message = take(connection, queue, "customer.enqueue")

    message.requeue()

    assert kept(client, queue) == 0
    assert connection.default_channel.basic_get(queue).headers["id"] == message.headers["id"]


def test_a_worker_takes_no_more_job_ids_than_it_may(connection: Any, queue: str) -> None:
    channel = connection.default_channel
    channel.basic_qos(0, 2, False)

    messages = [take(connection, queue, "customer.create") for _ in range(2)]
    while_full = channel.qos.can_consume()
    messages[0].ack()

    assert not while_full
    assert channel.qos.can_consume()
