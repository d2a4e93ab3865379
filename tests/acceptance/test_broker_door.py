"""`customer.enqueue`, for apps that have only the broker: what becomes a job, what is refused, and what nobody sees."""

from __future__ import annotations

import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis as redis_client
from celery import Celery

from customer_jobs import Job
from customer_jobs.embedded import wait_until
from tests.acceptance.stack import SOON_SECONDS, Stack, email, environment, running, unique, wait_for_line
from tests.acceptance.test_messages import readable, send, work_through_messages
from tests.markdown import blocks
from tests.proxy import Proxy
from tests.servers import Server

QUEUE = "customer-jobs"
on_sqlite = pytest.mark.parametrize("database", ["sqlite"])


def ask(stack: Stack, task_id: str | None = None, *, prefix: str = "", **arguments: Any) -> str:
    """The id of a message to `customer.enqueue` as another program's Celery sends it."""
    app = Celery(broker=stack.redis_url, set_as_current=False)
    app.conf.broker_transport_options = {"global_keyprefix": prefix}
    with app.connection_for_write() as connection:
        sent = app.send_task(
            "customer.enqueue",
            kwargs=arguments,
            queue=QUEUE,
            task_id=task_id,
            connection=connection,
            ignore_result=True,
        )
    return str(sent.id)


def job_of(stack: Stack, message_id: str) -> Job:
    """The job that a message became, once it is final."""
    wait_until(lambda: stack.jobs.get(message_id), SOON_SECONDS, "the message is a job")
    return stack.jobs.wait(message_id, SOON_SECONDS)


class Overheard:
    """What everybody may hear who listens to Celery's events and commands: Flower, for one."""

    def __init__(self, pubsub: Any) -> None:
        self._pubsub = pubsub
        self._heard: list[bytes] = []
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._listen, name="overheard")
        self._thread.start()

    def until(self, *words: bytes) -> bytes:
        """All that was heard so far, once a message with these words was among it."""
        with self._changed:
            heard = self._changed.wait_for(
                lambda: next((each for each in self._heard if all(word in each for word in words)), None), SOON_SECONDS
            )
            assert heard is not None, f"nobody said {words!r}"
            return b"\n".join(self._heard)

    def close(self) -> None:
        self._pubsub.connection.disconnect()
        self._thread.join()

    def _listen(self) -> None:
        try:
            for message in self._pubsub.listen():
                if isinstance(message["data"], bytes):
                    with self._changed:
                        self._heard.append(readable(message["data"]))
                        self._changed.notify_all()
        except (redis_client.RedisError, OSError, ValueError, AttributeError):
            pass  # The connection was closed: it is over.


@contextmanager
def overhearing(stack: Stack) -> Iterator[Overheard]:
    with redis_client.Redis.from_url(stack.redis_url, socket_timeout=None) as client, client.pubsub() as pubsub:
        pubsub.psubscribe("*")
        overheard = Overheard(pubsub)
        try:
            yield overheard
        finally:
            overheard.close()


@pytest.fixture
def open_door(own_stack: Stack) -> Stack:
    """A stack whose worker takes creates by broker."""
    own_stack.start_worker(ALLOW_BROKER_PAYLOADS="true", LOG_LEVEL="DEBUG")
    return own_stack


def log_of(stack: Stack) -> str:
    return (stack.directory / "one.log").read_text()


@on_sqlite
def test_a_message_becomes_a_job_with_its_id(open_door: Stack) -> None:
    stack, address, mine = open_door, email(), unique("user")

    with overhearing(stack) as overheard:
        message = ask(
            stack,
            kind="customer.create",
            payload={"body": {"email": address, "name": "Jenny Rosen"}},
            external_id=mine,
            context={"n": 1},
        )
        ended = job_of(stack, message)
        heard = overheard.until(b"task-succeeded", message.encode())

    assert (ended.id, ended.state, ended.outcome) == (message, "succeeded", "created")
    assert (ended.external_id, ended.context) == (mine, {"n": 1})
    assert [each["email"] for each in stack.customers_of(ended)] == [address]
    assert stack.consumer.event_about(message)["data"]["context"] == {"n": 1}
    for secret in (address, "Jenny Rosen"):
        assert secret.encode() not in heard
        assert secret not in log_of(stack)


@on_sqlite
def test_what_the_page_says_to_write_makes_a_job(open_door: Stack) -> None:
    (text,) = (each.text for each in blocks("python") if each.page == "producers.md" and "send_task" in each.text)

    told = subprocess.run(
        [sys.executable, "-c", text],
        capture_output=True,
        text=True,
        check=True,
        env=environment({"REDIS_URL": open_door.redis_url}),
    )
    ended = job_of(open_door, told.stdout.strip())

    assert (ended.outcome, ended.external_id) == ("created", "user-1044")


@on_sqlite
def test_a_doubled_message_is_one_job(open_door: Stack) -> None:
    stack, address, message = open_door, email(), str(uuid.uuid4())
    payload = {"body": {"email": address}}

    for _ in range(3):
        ask(stack, message, kind="customer.create", payload=payload)
    ended = job_of(stack, message)
    ask(stack, message, kind="customer.create", payload=payload)
    work_through_messages(stack)

    assert stack.jobs.get(message) == ended
    assert len(stack.requests_of(ended)) == len(stack.customers_of(ended)) == 1


@on_sqlite
def test_two_bodies_for_one_customer_are_refused_without_showing_either(open_door: Stack) -> None:
    stack, mine, other = open_door, unique("user"), email()
    first = ask(stack, kind="customer.create", payload={"body": {"name": "Jenny"}}, external_id=mine)
    job_of(stack, first)

    with overhearing(stack) as overheard:
        second = ask(stack, kind="customer.create", payload={"body": {"email": other}}, external_id=mine)
        heard = overheard.until(b"task-failed", second.encode())

    assert f"the external_id already belongs to job {first} with another body".encode() in heard
    assert other.encode() not in heard
    assert other not in log_of(stack)
    assert stack.jobs.get(second) is None


@pytest.mark.parametrize("prefix", ["", f"{QUEUE}:"])
def test_a_sender_may_know_the_key_prefix_or_not(stack: Stack, prefix: str) -> None:
    nobody = unique("cus").replace("-", "")

    ended = job_of(stack, ask(stack, prefix=prefix, kind="customer.fetch", payload={"customer_id": nobody}))

    assert (ended.state, ended.error and ended.error["code"]) == ("failed", "resource_missing")


def test_a_fetch_by_broker_needs_no_permission(stack: Stack) -> None:
    made = stack.wait_for_end(stack.jobs.create_customer({"email": email()}))

    fetched = job_of(stack, ask(stack, kind="customer.fetch", payload={"customer_id": made.customer_id}))

    assert (fetched.state, fetched.outcome, fetched.customer_id) == ("succeeded", "found", made.customer_id)


REFUSED: dict[str, tuple[Mapping[str, Any], str]] = {
    "a create": ({"kind": "customer.create", "payload": {"body": {"email": "%"}}}, "ALLOW_BROKER_PAYLOADS=true"),
    "another kind": ({"kind": "customer.%", "payload": {}}, "kind is invalid"),
    "no id": ({"kind": "customer.fetch", "payload": {"customer_id": "%/"}}, "customer_id is invalid"),
    "no payload": ({"kind": "customer.fetch", "payload": "%"}, "payload is invalid"),
    "another argument": ({"kind": "customer.fetch", "%": "%"}, "takes kind, payload, external_id, context"),
}


@pytest.mark.parametrize("stack", ["sqlite"], indirect=True)
@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_says_what_to_do_and_nothing_of_what_was_sent(stack: Stack, case: str) -> None:
    template, says = REFUSED[case]
    secret = unique("jenny")

    with overhearing(stack) as overheard:
        message = ask(stack, **{k.replace("%", secret): _filled(v, secret) for k, v in template.items()})
        heard = overheard.until(b"task-failed", message.encode())

    assert says.encode() in heard
    assert secret.encode() not in heard
    assert secret not in log_of(stack)
    assert stack.jobs.get(message) is None


def _filled(value: Any, secret: str) -> Any:
    if isinstance(value, dict):
        return {key: _filled(each, secret) for key, each in value.items()}
    return value.replace("%", secret)


@pytest.mark.parametrize("stack", ["sqlite"], indirect=True)
def test_a_message_whose_id_cannot_be_a_jobs_is_refused(stack: Stack) -> None:
    with overhearing(stack) as overheard:
        ask(stack, "signup-42", kind="customer.fetch", payload={"customer_id": "cus_1"})
        heard = overheard.until(b"task-failed", b"signup-42")

    assert b"which must be a UUID" in heard


@pytest.mark.parametrize("stack", ["sqlite"], indirect=True)
@pytest.mark.parametrize("kind", ["customer.create", "customer.fetch"])
def test_a_foreign_message_to_a_kind_fails_with_the_line_to_write_instead(stack: Stack, kind: str) -> None:
    message, secret = str(uuid.uuid4()), unique("jenny")

    with overhearing(stack) as overheard:
        send(stack, kind, {"email": f"{secret}@example.com"}, task_id=message)
        heard = overheard.until(b"task-failed", message.encode())

    assert b"to enqueue a job by broker: send_task(" in heard
    assert secret.encode() not in heard
    assert secret not in log_of(stack)


@pytest.mark.parametrize("stack", ["sqlite"], indirect=True)
def test_a_message_for_no_task_is_discarded_in_one_line_that_quotes_nothing(stack: Stack) -> None:
    secret = unique("jenny")

    with overhearing(stack) as overheard:
        send(stack, "customer.foo", {"email": f"{secret}@example.com"})
        heard = overheard.until(b"task-failed", b"customer.foo")
    work_through_messages(stack)

    (line,) = (line for line in log_of(stack).splitlines() if "not ours was discarded" in line)
    assert "customer.enqueue" in line
    assert secret.encode() not in heard
    assert secret not in log_of(stack)


@pytest.mark.slow
def test_a_message_outlives_a_database_that_is_away(tmp_path: Path, postgres_database_url: str, redis: Server) -> None:
    with Proxy.before(postgres_database_url) as proxy, running(tmp_path, postgres_database_url, redis.url) as stack:
        worker = stack.start_worker(ALLOW_BROKER_PAYLOADS="true", DATABASE_URL=proxy.through(postgres_database_url))
        wait_for_line(worker, "event=leads")  # Who leads lets in messages that have no prefix of ours.
        proxy.refuse()
        proxy.reset()
        message = ask(stack, kind="customer.create", payload={"body": {"email": email()}})
        wait_for_line(worker, "not enqueued yet")
        proxy.accept()

        ended = job_of(stack, message)

    assert (ended.state, ended.outcome) == ("succeeded", "created")
