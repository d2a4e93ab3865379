"""Keys and customers' data stay between the table and Stripe: listening everywhere else finds none of either."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from celery import Celery
from celery.events import EventReceiver

from customer_jobs import CustomerJobs
from customer_jobs.broker import QUEUE
from customer_jobs.embedded import Program, wait_until
from customer_jobs.events import DEFAULT_STREAM
from tests.acceptance.stack import SOON_SECONDS, Stack, unique, wait_for_line
from tests.acceptance.test_messages import everything_kept_by, everything_sent_to, readable

KEYS = ("sk_test_sandbox_4f8b2c6d9e1a", "rk_test_eu_nowrite_77aa55cc33ee")
WEBHOOK_SECRET = "whsec_1f3e5d7c9b"
NAME, PHONE, NOTE = "Jenny Rosenquist", "+15557654321", "allergic to peanuts"

#: PostgreSQL's own words quote a row whole; whoever logs them logs a customer.
BREAKS_AND_QUOTES = """
CREATE FUNCTION quote_it() RETURNS trigger AS $$ BEGIN
    IF NEW.name = 'break' THEN RAISE EXCEPTION 'refused %%', NEW; END IF; RETURN NEW;
END $$ LANGUAGE plpgsql;
CREATE TRIGGER quote_it BEFORE INSERT ON customer_jobs.customers FOR EACH ROW EXECUTE FUNCTION quote_it();
"""


class Ears:
    """What was heard during a run, by where it was heard."""

    def __init__(self) -> None:
        self.heard: dict[str, bytes] = {}

    def found(self, *words: str) -> dict[str, list[str]]:
        """Which of the words were heard, and where."""
        places = {place: [word for word in words if word.encode() in heard] for place, heard in self.heard.items()}
        return {place: words for place, words in places.items() if words}


@contextmanager
def celery_events(redis_url: str) -> Iterator[list[dict[str, Any]]]:
    """Celery's events during the block, as Flower receives them."""
    app = Celery(broker=redis_url, set_as_current=False)
    app.conf.update(broker_transport_options={"global_keyprefix": f"{QUEUE}:"}, event_exchange=f"{QUEUE}-events")
    caught: list[dict[str, Any]] = []
    stopped = threading.Event()

    def receive() -> None:
        with app.connection_for_read() as connection:
            receiver = EventReceiver(connection, app=app, handlers={"*": caught.append})
            while not stopped.is_set():
                try:
                    receiver.capture(limit=None, timeout=0.5, wakeup=False)
                except TimeoutError:
                    continue

    listener = threading.Thread(target=receive)
    listener.start()
    try:
        yield caught
    finally:
        stopped.set()
        listener.join(10)


@contextmanager
def listening(stack: Stack, worker: Program) -> Iterator[Ears]:
    """Listen to Redis, to Celery's events, to the worker's log; what is left in Redis is looked through at the end."""
    ears = Ears()
    with everything_sent_to(stack.redis_url) as sent, celery_events(stack.redis_url) as events:
        yield ears
    ears.heard = {
        "sent to Redis": readable(b"".join(sent)),
        "kept by Redis": readable(everything_kept_by(stack.redis_url)),
        "Celery's events": json.dumps(events, default=str, ensure_ascii=False).encode(),
        "the log": worker.log.read_bytes(),
    }


@pytest.fixture
def worker(own_stack: Stack) -> Program:
    """A worker that says all it has to say."""
    program = own_stack.start_worker(
        LOG_LEVEL="DEBUG",
        STRIPE_LOG="debug",
        STRIPE_API_KEY=KEYS[0],
        STRIPE_API_KEY_EU=KEYS[1],
        STRIPE_WEBHOOK_SECRET=WEBHOOK_SECRET,
    )
    with own_stack.engine.begin() as connection:
        connection.exec_driver_sql(BREAKS_AND_QUOTES)
    return program


def customer(**more: Any) -> dict[str, Any]:
    """A body that is full of what nobody should hear."""
    address = f"{unique('jenny')}@personal.example.com"
    metadata = {"note": NOTE, **more.pop("metadata", {})}
    return {"email": address, "name": NAME, "phone": PHONE, "metadata": metadata, **more}


def send(stack: Stack, task: str, *arguments: object, **kwargs: object) -> None:
    """A message as somebody else's program sends it."""
    app = Celery(broker=stack.redis_url, set_as_current=False)
    app.conf.broker_transport_options = {"global_keyprefix": f"{QUEUE}:"}
    with app.connection_for_write() as connection:
        app.send_task(task, args=arguments, kwargs=kwargs, queue=QUEUE, connection=connection, ignore_result=True)


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_neither_keys_nor_customers_are_heard_of(own_stack: Stack, worker: Program) -> None:
    stack = own_stack
    jobs: CustomerJobs = stack.jobs
    faults = ["", "429, 500, reset", "500_after, garbage, html_502", "402", "400", "key_in_use, lock_timeout", "cut"]
    personal = [NAME, PHONE, NOTE, "personal.example.com", *KEYS, KEYS[0][:20], KEYS[1][:20], WEBHOOK_SECRET]

    with listening(stack, worker) as ears:
        ended = [jobs.create_customer(customer(metadata={"sandbox": fault} if fault else {})) for fault in faults]
        ended += [
            jobs.create_customer(customer(email=f"no address of {NAME}")),
            jobs.create_customer(customer(emial="typo@personal.example.com")),
            jobs.create_customer(customer(), credential="eu"),  # A key that may not.
            jobs.create_customer(customer(), credential="us"),  # A key that nobody has.
            jobs.create_customer(customer(), stripe_account="acct_denied", external_id=unique("user")),
        ]
        finals = [stack.wait_for_end(job) for job in ended]
        fetched = stack.wait_for_end(jobs.fetch_customer(str(finals[0].customer_id), expand=["subscriptions"]))
        missing = stack.wait_for_end(jobs.fetch_customer("cus_missing"))
        jobs.create_customer(customer(name="break"))
        wait_for_line(worker, "broke off")
        for job in [*finals, fetched, missing]:
            stack.consumer.event_about(job.id)

    states = [job.state.value for job in finals]
    assert states.count("succeeded") >= 5
    assert states.count("failed") >= 6
    assert all(ears.heard.values())
    assert finals[0].id.encode() in ears.heard["Celery's events"]
    assert finals[0].id.encode() in ears.heard["the log"]
    assert ears.found(*personal) == {}
    assert b"level=debug" in ears.heard["the log"]


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_what_others_send_is_not_repeated(own_stack: Stack, worker: Program) -> None:
    """The broker has heard it from them; the worker's log and Celery's events do not say it again."""
    with listening(own_stack, worker) as ears:
        send(own_stack, "customer.create", customer())
        send(own_stack, "customer.fetch", name=NAME)
        send(own_stack, "customer.invent", customer(), note=NOTE)
        send(own_stack, "customer.enqueue", kind="customer.create", payload={"body": customer()})
        send(own_stack, "customer.enqueue", kind="customer.fetch", payload={"customer_id": NAME}, context=NOTE)
        with redis.Redis.from_url(own_stack.redis_url) as client:
            client.lpush(f"{QUEUE}:{QUEUE}", json.dumps({"body": NAME, "headers": {}, "properties": {}}))
        own_stack.wait_for_end(own_stack.jobs.create_customer({}))
        wait_for_line(worker, "discarded")

    repeated = {name: heard for name, heard in ears.heard.items() if name in {"Celery's events", "the log"}}
    ears.heard = repeated
    assert ears.found(NAME, PHONE, NOTE, "personal.example.com") == {}
    assert all(repeated.values())


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_what_is_said_aloud_is_heard(own_stack: Stack, worker: Program) -> None:
    """The ears are not deaf: what is planted at each place is found at each place."""
    words = {place: unique(place) for place in ("command", "key", "stream", "event", "log")}

    with listening(own_stack, worker) as ears:
        with redis.Redis.from_url(own_stack.redis_url) as client:
            client.echo(words["command"])
            client.set("somewhere", words["key"])
            client.xadd(DEFAULT_STREAM, {"event": json.dumps({"email": words["stream"]}), "type": "", "subject": ""})
        # A job's external_id is data of the producer's that no rule keeps out of events.
        own_stack.consumer.event_about(
            own_stack.wait_for_end(own_stack.jobs.create_customer({}, external_id=words["event"])).id
        )
        app = Celery(broker=own_stack.redis_url, set_as_current=False)
        app.conf.update(broker_transport_options={"global_keyprefix": f"{QUEUE}:"}, event_exchange=f"{QUEUE}-events")
        with app.connection_for_write() as connection, app.events.Dispatcher(connection) as dispatcher:
            dispatcher.send("task-custom", said=words["log"])
        with worker.log.open("a") as log:
            log.write(words["log"])
        wait_until(lambda: words["log"] in worker.log.read_text(), SOON_SECONDS, "it is logged")

    found = ears.found(*words.values())
    assert {words["command"], words["key"], words["stream"], words["event"]} <= set(found["sent to Redis"])
    assert {words["key"], words["stream"], words["event"]} <= set(found["kept by Redis"])
    assert found["Celery's events"] == [words["log"]]
    assert found["the log"] == [words["log"]]
