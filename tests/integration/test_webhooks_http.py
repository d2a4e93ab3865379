"""The endpoint over HTTP: what it answers, in one process and in several, with the database there and not."""

from __future__ import annotations

import http.client
import json
import logging
import random
import signal
import socket
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import stripe
import uvicorn
from sqlalchemy import Engine, text
from starlette.applications import Starlette
from typer.testing import CliRunner

from customer_jobs import embedded
from customer_jobs.cli import app
from customer_jobs.embedded import LOOPBACK, Program, wait_until
from customer_jobs.sandbox import Sandbox, sign
from customer_jobs.schema import customers, jobs, leases, webhook_events, workers
from customer_jobs.webhooks import Rule, asgi
from tests.acceptance.stack import environment
from tests.acceptance.terminal import status
from tests.builders import CUSTOMER_ID, Row, Worker, age, rows
from tests.deliveries import SECRET, deliver_all, post
from tests.localstripe import localstripe
from tests.proxy import Proxy

READY_SECONDS = 30.0
PATH = "/webhooks/stripe"


def event(customer: Row | None = None, **members: Any) -> Row:
    return {
        "id": f"evt_{uuid.uuid4().hex}",
        "object": "event",
        "type": "customer.updated",
        "created": int(time.time()),
        "livemode": False,
        "data": {"object": customer or {"id": CUSTOMER_ID, "object": "customer"}},
        "request": None,
        **members,
    }


@contextmanager
def served(served_app: Starlette) -> Iterator[str]:
    """The URL of the app's endpoint on a server in this process, so that a test can reach into it."""
    with socket.create_server((LOOPBACK, 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(served_app, lifespan="on", log_config=None))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            wait_until(lambda: server.started or not thread.is_alive(), READY_SECONDS, "it has started")
            yield f"http://{LOOPBACK}:{listening.getsockname()[1]}{PATH}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def url(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The endpoint of the app as a server starts it."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", SECRET)
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET_EU", "whsec_eu")
    with served(asgi.make_app()) as url:
        yield url


def port_of(url: str) -> int:
    return urlsplit(url).port or 0


def post_in_pieces(url: str, body: bytes, length: int | None) -> int:
    """The status for a body of which only this much is sent; its length is announced, or it comes in chunks."""
    connection = http.client.HTTPConnection(LOOPBACK, port_of(url), timeout=10)
    connection.putrequest("POST", PATH)
    connection.putheader("Stripe-Signature", sign(body, SECRET))
    if length is not None:
        connection.putheader("Content-Length", str(length))
        connection.endheaders()
    else:
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders(
            (body[start : start + 65536] for start in range(0, len(body), 65536)), encode_chunked=True
        )
    answered = connection.getresponse().status
    connection.close()
    return answered


@contextmanager
def endpoint(directory: Path, database_url: str, *flags: str, **settings: str) -> Iterator[tuple[str, Program]]:
    """The URL and the program of `customer-jobs webhooks`, once it answers."""
    port = embedded.free_port()
    program = embedded.start(
        "webhooks",
        [sys.executable, "-m", "customer_jobs.cli", "webhooks", "--port", str(port), *flags],
        log=directory / "webhooks.log",
        env=environment({"DATABASE_URL": database_url, "STRIPE_WEBHOOK_SECRET": SECRET, **settings}),
    )
    try:
        wait_until(lambda: answers(port), READY_SECONDS, "the endpoint answers", program=program)
        yield f"http://{LOOPBACK}:{port}{PATH}", program
    finally:
        program.stop()
    assert "Traceback" not in program.log.read_text()


def answers(port: int) -> bool:
    try:
        return status(port, "/health") in {200, 503}
    except OSError:
        return False


def test_a_signed_event_is_stored_and_acknowledged(url: str, engine: Engine) -> None:
    sent = event()
    body = json.dumps(sent).encode()

    first, second = post(url, body), post(url, body)

    (fetch,) = rows(engine, jobs)
    assert first == (200, {"event_id": sent["id"], "job_id": fetch["id"], "duplicate": False})
    assert second == (200, {"event_id": sent["id"], "job_id": fetch["id"], "duplicate": True})


def test_each_credential_has_a_path_and_a_secret_of_its_own(url: str, engine: Engine) -> None:
    body = json.dumps(event()).encode()

    assert post(f"{url}/eu", body)[0] == 400
    assert post(url, body, secret="whsec_eu")[0] == 400
    assert post(f"{url}/us", body) == (404, {"error": "there is no such endpoint"})
    assert status(port_of(url), PATH) == 405
    assert rows(engine, webhook_events) == []

    assert post(f"{url}/eu", body, secret="whsec_eu")[0] == 200
    assert [row["credential"] for row in rows(engine, jobs)] == ["eu"]


BODY = json.dumps(event()).encode()


def signed(body: bytes, secret: str = SECRET, offset: int = 0) -> str:
    return sign(body, secret, int(time.time()) + offset)


@pytest.mark.parametrize(
    ("body", "signature"),
    [
        (BODY, ""),
        (BODY, signed(BODY, "whsec_other")),
        (BODY, signed(BODY, offset=-3600)),
        (BODY, signed(BODY, offset=+3600)),
        (BODY, "é"),
        (BODY[:-20], signed(BODY)),
        (BODY[:-20], signed(BODY[:-20])),
        (b"", signed(b"")),
        (b"\xff\xfe", signed(b"\xff\xfe")),
        (b"[" * 500_000, signed(b"[" * 500_000)),
        (b'{"object": "event"}', signed(b'{"object": "event"}')),
        (b'{"id": "evt_1", "object": "customer"}', signed(b'{"id": "evt_1", "object": "customer"}')),
    ],
    ids=[
        *("unsigned", "forged", "stale", "future", "garbled", "cut off on the way", "truncated", "empty"),
        *("no text", "deep", "no id", "no event"),
    ],
)
@pytest.mark.parametrize("database", ["sqlite"])
def test_a_bad_signature_or_body_is_answered_400(url: str, engine: Engine, body: bytes, signature: str) -> None:
    answered, document = post(url, body, signature)

    assert (answered, list(document)) == (400, ["error"])
    assert rows(engine, webhook_events) == []


@pytest.mark.parametrize("database", ["sqlite"])
def test_a_body_of_more_than_a_mebibyte_is_answered_413(url: str, engine: Engine) -> None:
    body = json.dumps(event(padding="x" * asgi.MAX_BODY_BYTES)).encode()
    largest = json.dumps(event(padding="x" * (asgi.MAX_BODY_BYTES - 400))).encode()

    assert post_in_pieces(url, body, len(body)) == 413
    assert post_in_pieces(url, body, None) == 413
    assert rows(engine, webhook_events) == []
    assert post(url, largest)[0] == post_in_pieces(url, largest, None) == 200


@pytest.mark.parametrize("database", ["sqlite"])
def test_a_body_that_does_not_come_is_answered_408(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "BODY_SECONDS", 0.2)

    assert post_in_pieces(url, b"", 100) == 408


@pytest.mark.parametrize("database", ["sqlite"])
def test_what_is_not_stored_is_not_acknowledged_and_nothing_of_it_is_told(
    url: str, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    sent = event({"id": CUSTOMER_ID, "object": "customer", "email": "jenny.rosen@example.com"})
    body = json.dumps(sent).encode()
    with engine.begin() as connection:
        connection.execute(
            text("CREATE TRIGGER full BEFORE INSERT ON webhook_events BEGIN SELECT RAISE(ABORT, 'no room'); END")
        )

    with caplog.at_level(logging.INFO, "customer_jobs"):
        answer = post(url, body)

    assert answer == (500, {"error": "not stored: try again"})
    assert "not stored" in caplog.text
    assert "jenny" not in caplog.text
    assert rows(engine, webhook_events) == rows(engine, jobs) == []

    with engine.begin() as connection:
        connection.execute(text("DROP TRIGGER full"))
    assert post(url, body)[0] == 200


@pytest.mark.parametrize("database", ["postgresql"])
def test_a_database_that_hangs_is_answered_503_and_the_event_may_come_again(
    url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = json.dumps(event()).encode()
    assert status(port_of(url), "/health") == 200
    monkeypatch.setattr(asgi, "ANSWER_SECONDS", 0.3)

    with engine.begin() as connection:
        connection.execute(text("LOCK TABLE customer_jobs.webhook_events IN ACCESS EXCLUSIVE MODE"))
        refused, _ = post(url, body)
        health = status(port_of(url), "/health")

    monkeypatch.undo()
    accepted, _ = post(url, body)
    assert (refused, health, accepted) == (503, 503, 200)
    assert len(rows(engine, webhook_events)) == len(rows(engine, jobs)) == 1


@pytest.mark.parametrize("database", ["sqlite"])
def test_an_app_with_rules_of_its_own(database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", SECRET)
    body = json.dumps(event({"id": "po_1", "note": "cus_2"}, type="payout.paid")).encode()

    with served(asgi.make_app([Rule("payout.*", lambda sent: sent.object.get("note"))])) as url:
        assert post(url, body)[0] == 200

    assert [row["customer_id"] for row in rows(engine, jobs)] == ["cus_2"]


def test_without_a_database_it_starts_and_says_that_it_is_not_healthy(
    tmp_path: Path,
) -> None:
    url = f"postgresql://app:s3cret@{LOOPBACK}:{embedded.free_port()}/app"
    with endpoint(tmp_path, url) as (address, program):
        assert status(port_of(address), "/health") == 503

        answer = post(address, json.dumps(event()).encode())

        assert answer == (503, {"error": "not stored: try again"})
        assert program.stop() == 0
    assert "s3cret" not in program.log.read_text()


@pytest.mark.parametrize("database", ["postgresql"])
def test_told_to_stop_it_answers_what_is_under_way(tmp_path: Path, database_url: str, engine: Engine) -> None:
    sent = event()
    with endpoint(tmp_path, database_url, "--workers", "2") as (url, program), ThreadPoolExecutor() as threads:
        with engine.begin() as connection:
            connection.execute(text("LOCK TABLE customer_jobs.webhook_events IN EXCLUSIVE MODE"))
            under_way = threads.submit(post, url, json.dumps(sent).encode())
            wait_until(lambda: is_waiting(engine), READY_SECONDS, "the delivery waits in the database")
            program.send(signal.SIGTERM)
            wait_until(lambda: "Shutting down" in program.log.read_text(), READY_SECONDS, "it stops")
            time.sleep(0.2)
            assert not under_way.done()
        answered = under_way.result()
        wait_until(lambda: not program.running(), READY_SECONDS, "it ends")

        assert program.exit_code() == 0
    (fetch,) = rows(engine, jobs)
    assert answered == (200, {"event_id": sent["id"], "job_id": fetch["id"], "duplicate": False})


def is_waiting(engine: Engine) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with engine.connect() as connection:
        return bool(connection.execute(text(query)).scalar_one())


@pytest.mark.slow
@pytest.mark.parametrize("database", ["postgresql"])
def test_a_thousand_deliveries_from_several_processes(tmp_path: Path, database_url: str, engine: Engine) -> None:
    chance = random.Random(1)
    with Sandbox() as sandbox, endpoint(tmp_path, database_url, "--workers", "2") as (url, _):
        worker = Worker(engine, sandbox)
        for table in (leases, workers):
            age(engine, -READY_SECONDS, table)  # It gives no sign of life while the events arrive.
        ids = [customer_at_stripe(worker) for _ in range(20)]
        acknowledged = []
        for _ in range(2):
            # Each event shows its customer as it was then; only Stripe knows how it is now.
            told = [event(sandbox.update_customer(chance.choice(ids), name=f"state {number}")) for number in range(350)]
            deliveries = told + chance.sample(told, 150)
            chance.shuffle(deliveries)
            acknowledged += deliver_all(4, url, deliveries)
            worker.work()

    stored = {row["id"]: row["job_id"] for row in rows(engine, webhook_events)}
    assert len(acknowledged) == 1000
    assert {answer.status for answer in acknowledged} == {200}
    assert len(stored) == 700
    assert {answer.event_id: answer.document["job_id"] for answer in acknowledged} == stored
    assert sum(answer.document["duplicate"] for answer in acknowledged) == 300
    assert len(rows(engine, jobs)) == 40  # One fetch of each customer and round.
    copies = {row["id"]: row["name"] for row in rows(engine, customers)}
    assert copies == {customer["id"]: customer["name"] for customer in sandbox.customers()}


def customer_at_stripe(worker: Worker) -> str:
    """The id of a customer that somebody else made."""
    key = str(uuid.uuid4())
    made = worker.gateway.create_customer({}, credential="default", stripe_account=None, idempotency_key=key)
    assert made.body is not None
    return str(made.body["id"])


@pytest.mark.slow
@pytest.mark.parametrize("database", ["postgresql"])
def test_nothing_acknowledged_is_lost_when_the_database_is_cut_off_in_mid_flood(
    tmp_path: Path, database_url: str, engine: Engine
) -> None:
    told = [event({"id": f"cus_{number % 25}", "object": "customer"}) for number in range(200)]
    with Proxy.before(database_url) as proxy:
        there = proxy.through(database_url)
        with endpoint(tmp_path, there, "--workers", "2") as (url, _):
            cut = threading.Thread(target=cut_off, args=(proxy, lambda: len(rows(engine, webhook_events))))
            cut.start()
            seen = deliver_all(4, url, told, for_seconds=20)
            cut.join()

    stored = {row["id"]: row["job_id"] for row in rows(engine, webhook_events)}
    waiting = {row["id"]: row["customer_id"] for row in rows(engine, jobs)}
    acknowledged = [answer for answer in seen if answer.acknowledged]
    assert {answer.status for answer in seen} == {200, 503}
    assert {answer.event_id for answer in acknowledged} == stored.keys() == {each["id"] for each in told}
    assert {answer.event_id: answer.document["job_id"] for answer in acknowledged} == stored
    assert {each["id"]: each["data"]["object"]["id"] for each in told} == {
        event_id: waiting[job_id] for event_id, job_id in stored.items()
    }


def cut_off(proxy: Proxy, stored: Callable[[], int]) -> None:
    """Break the connections, lose a commit's answer, refuse new ones for a second, hang for half a second."""
    wait_until(lambda: stored() >= 25, READY_SECONDS, "the flood has begun")
    proxy.cut_replies_after(0)
    wait_until(lambda: stored() >= 50, READY_SECONDS, "it goes on")
    proxy.refuse()
    proxy.reset()
    time.sleep(1)
    proxy.accept()
    wait_until(lambda: stored() >= 100, READY_SECONDS, "it goes on")
    proxy.stall()
    time.sleep(0.5)
    proxy.reset()
    proxy.go_on()


@pytest.mark.parametrize("database", ["sqlite"])
def test_events_signed_by_localstripe_are_taken_in(tmp_path: Path, database_url: str, engine: Engine) -> None:
    with localstripe() as stripe_url, endpoint(tmp_path, database_url) as (url, _):
        registered = json.dumps({"url": url, "secret": SECRET, "events": ["customer.created"]}).encode()
        json_type = {"Content-Type": "application/json"}
        hook = urllib.request.Request(f"{stripe_url}/_config/webhooks/ours", registered, json_type)
        urllib.request.urlopen(hook, timeout=5).close()
        client = stripe.StripeClient("sk_test_x", base_addresses={"api": stripe_url})
        customer = client.v1.customers.create({"email": "jenny.rosen@example.com"}).id
        wait_until(lambda: rows(engine, webhook_events), READY_SECONDS, "the event arrives")

    (stored,) = rows(engine, webhook_events)
    (fetch,) = rows(engine, jobs)
    assert (stored["type"], stored["job_id"]) == ("customer.created", fetch["id"])
    assert fetch["customer_id"] == customer


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "STRIPE_WEBHOOK_SECRET is not set; "),
        ({"STRIPE_WEBHOOK_SECRET": SECRET}, "DATABASE_URL is not set; "),
        ({"STRIPE_WEBHOOK_SECRET": "sk_test_pasted"}, "STRIPE_WEBHOOK_SECRET is not a signing secret "),
        ({"STRIPE_WEBHOOK_SECRET": SECRET, "DATABASE_URL": "sqlite://", "LOG_LEVEL": "LOUD"}, "LOG_LEVEL must be "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_command_says_what_is_missing(settings: dict[str, str], says: str) -> None:
    ended = CliRunner().invoke(app, ["webhooks", "--port", "0"], env=settings)

    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"error: {says}")
    assert "pasted" not in ended.stderr


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        env = {"STRIPE_WEBHOOK_SECRET": SECRET, "DATABASE_URL": "sqlite://"}

        ended = CliRunner().invoke(app, ["webhooks", "--port", str(port)], env=env)

    assert ended.exit_code == 2
    assert f"{LOOPBACK}:{port}" in ended.stderr


@pytest.mark.parametrize("words", [["webhooks"], ["webhooks", "catch-up", "--since", "2d"]], ids=" ".join)
def test_without_the_extra_it_is_named(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)

    ended = CliRunner().invoke(app, words)

    assert (ended.exit_code, ended.stdout) == (2, "")
    assert "pip install 'customer-jobs[webhooks]'" in ended.stderr
