"""The events of the sandbox: signed, delivered, doubled, shuffled, and listed for those who missed them."""

import json
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import stripe

from customer_jobs.sandbox import Endpoint, Sandbox, sign
from tests.unit.sandbox_client import Clock, client, create, customers

SECRET = "whsec_test"


@dataclass
class Receiver:
    """A webhook endpoint that answers as told and keeps what it was sent."""

    url: str
    statuses: list[int] = field(default_factory=list)
    received: "queue.Queue[tuple[bytes, str]]" = field(default_factory=queue.Queue)

    def event(self) -> Any:
        body, signature = self.received.get(timeout=5)
        return stripe.Webhook.construct_event(body, signature, SECRET)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            state.received.put((body, self.headers["Stripe-Signature"]))
            self.send_response(state.statuses.pop(0) if state.statuses else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Receiver(f"http://127.0.0.1:{server.server_port}/webhooks/stripe")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(seed=1) as running:
        yield running


def test_a_create_is_told_with_the_key_that_caused_it(sandbox: Sandbox, receiver: Receiver) -> None:
    sandbox.webhooks.configure(Endpoint(receiver.url, SECRET))

    created = create(sandbox, "one", email="jenny@example.com")

    event = receiver.event()
    assert (event.type, event.object, event.livemode, event.pending_webhooks) == ("customer.created", "event", False, 1)
    assert event.data.object.to_dict() == created.to_dict()
    assert event.request.to_dict() == {"id": created.last_response.request_id, "idempotency_key": "one"}
    assert "account" not in event.to_dict()


def test_a_replay_is_not_told_again(sandbox: Sandbox, receiver: Receiver) -> None:
    sandbox.webhooks.configure(Endpoint(receiver.url, SECRET))

    create(sandbox, "one")
    create(sandbox, "one")

    sandbox.webhooks.wait_until_idle(5)
    assert receiver.received.qsize() == 1


def test_an_update_tells_what_was_before_and_a_delete_what_was_lost(sandbox: Sandbox, receiver: Receiver) -> None:
    created = customers(sandbox).create({"name": "A", "metadata": {"same": "1", "k": "1"}})
    sandbox.webhooks.configure(Endpoint(receiver.url, SECRET))

    customers(sandbox).update(created.id, {"name": "B", "metadata": {"k": "2"}})
    customers(sandbox).delete(created.id)

    updated, deleted = receiver.event(), receiver.event()
    assert updated.type == "customer.updated"
    assert updated.data.previous_attributes.to_dict() == {"name": "A", "metadata": {"k": "1"}}
    assert (deleted.type, deleted.data.object.name) == ("customer.deleted", "B")


def test_an_event_of_a_connected_account_names_it(sandbox: Sandbox, receiver: Receiver) -> None:
    sandbox.webhooks.configure(Endpoint(receiver.url, SECRET))

    customers(sandbox).create({}, {"stripe_account": "acct_seller"})

    assert receiver.event().account == "acct_seller"


def test_an_endpoint_hears_only_of_its_account_and_types(sandbox: Sandbox, receiver: Receiver) -> None:
    sandbox.webhooks.configure(Endpoint(receiver.url, SECRET, account="acct_shop", types=("customer.deleted",)))

    customers(sandbox, "sk_test_other_1").create()
    created = customers(sandbox).create()
    customers(sandbox).delete(created.id)

    sandbox.webhooks.wait_until_idle(5)
    assert receiver.event().type == "customer.deleted"
    assert receiver.received.empty()


def test_a_failed_delivery_is_tried_again(sandbox: Sandbox, receiver: Receiver) -> None:
    receiver.statuses = [500, 302]
    sandbox.webhooks.configure(Endpoint(receiver.url, SECRET, backoff_seconds=0.01))

    customers(sandbox).create()

    sandbox.webhooks.wait_until_idle(5)
    assert len({receiver.event().id for _ in range(3)}) == 1
    assert [(one.attempt, one.status) for one in sandbox.webhooks.deliveries()] == [(1, 500), (2, 302), (3, 200)]


def test_a_receiver_out_of_reach_is_given_up(sandbox: Sandbox) -> None:
    sandbox.webhooks.configure(Endpoint("http://127.0.0.1:1/", SECRET, backoff_seconds=0.001, max_attempts=3))

    customers(sandbox).create()

    sandbox.webhooks.wait_until_idle(5)
    assert [one.status for one in sandbox.webhooks.deliveries()] == [None, None, None]


def test_events_can_arrive_late_twice_and_out_of_order(sandbox: Sandbox, receiver: Receiver) -> None:
    lossy = Endpoint(receiver.url, SECRET, delay_seconds=0.01, shuffle_seconds=0.2, duplicate_probability=1.0)
    sandbox.webhooks.configure(lossy)

    order = [customers(sandbox).create().id for _ in range(10)]

    sandbox.webhooks.wait_until_idle(5)
    arrived = [receiver.event().data.object.id for _ in range(20)]
    assert sorted(arrived) == sorted(order * 2)
    assert list(dict.fromkeys(arrived)) != order


def test_a_thin_endpoint_gets_notifications(sandbox: Sandbox, receiver: Receiver) -> None:
    sandbox.webhooks.configure(Endpoint(receiver.url, SECRET, payload="thin"))

    created = create(sandbox, "one")

    body, signature = receiver.received.get(timeout=5)
    notification: Any = stripe.StripeClient("sk_test_shop_1").parse_event_notification(body, signature, SECRET)
    assert notification.type == "v1.customer.created"
    assert notification.related_object.id == created.id
    assert notification.reason.request.idempotency_key == "one"


def test_an_event_can_be_made_by_hand(sandbox: Sandbox, receiver: Receiver) -> None:
    sandbox.webhooks.configure(Endpoint(receiver.url, SECRET))

    sent = sandbox.send_event("invoice.paid", {"id": "in_1", "object": "invoice"})

    assert receiver.event().id == sent["id"]


def test_the_signature_is_stripes() -> None:
    body = json.dumps({"id": "evt_1", "object": "event"})

    signature = sign(body, "whsec_old, whsec_new", timestamp=1_790_000_000)

    assert signature.startswith("t=1790000000,v1=")
    for secret in ("whsec_old", "whsec_new"):
        assert stripe.WebhookSignature.verify_header(body, signature, secret)
    with pytest.raises(stripe.SignatureVerificationError):
        stripe.WebhookSignature.verify_header(body, signature, "whsec_other")


@pytest.mark.parametrize(
    "arguments", [{"url": "file:///etc/passwd"}, {"url": "nonsense"}, {"secret": ""}, {"payload": "thick"}]
)
def test_an_endpoint_that_makes_no_sense_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|needs|payload"):
        Endpoint(**{"url": "http://127.0.0.1/", "secret": SECRET, **arguments})


def test_missed_events_can_be_listed() -> None:
    clock = Clock()
    with Sandbox(clock=clock) as sandbox:
        first = customers(sandbox).create()
        clock.now += 10
        customers(sandbox).update(first.id, {"name": "B"})
        second = customers(sandbox).create()
        events = client(sandbox).events

        everything = events.list().data
        since = events.list(
            {"created": {"gte": int(clock.now)}, "types": ["customer.created", "customer.deleted"]}
        ).data
        older = events.list({"starting_after": everything[0].id, "type": "customer.*"}).data

        assert [event.type for event in everything] == ["customer.created", "customer.updated", "customer.created"]
        assert [event.data.object.id for event in since] == [second.id]
        assert [event.id for event in older] == [event.id for event in everything[1:]]
        assert events.retrieve(everything[0].id).id == everything[0].id
        with pytest.raises(stripe.InvalidRequestError, match="No such event: 'evt_missing'"):
            events.retrieve("evt_missing")


def test_stopping_does_not_wait_for_late_deliveries() -> None:
    with Sandbox(webhooks=(Endpoint("http://127.0.0.1:1/", SECRET, delay_seconds=60),)) as sandbox:
        customers(sandbox).create()

    assert sandbox.webhooks.deliveries() == []
