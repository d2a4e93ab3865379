"""The apps under examples/, each with its server and its consumer, a worker and the local Stripe."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from customer_jobs.embedded import free_port, start, wait_until
from customer_jobs.sandbox import sign
from tests.acceptance.stack import CHECKOUT, READY_SECONDS, SOON_SECONDS, Stack, email
from tests.acceptance.terminal import in_terminal, run

EXAMPLES = CHECKOUT / "examples"
WEBHOOK_SECRET = "whsec_test"
TAKEN = re.compile(r"taken|already exists")


@dataclass(frozen=True)
class Example:
    """An app, by the commands of its README."""

    name: str
    port: str  #: Of its README.

    def commands(self) -> list[str]:
        text = (EXAMPLES / self.name / "README.md").read_text()
        (block,) = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        return [line for line in block.splitlines() if not line.startswith(". ")]


FLASK, FASTAPI, DJANGO = Example("flask", "5000"), Example("fastapi", "5001"), Example("django", "5002")


@contextmanager
def up(example: Example, stack: Stack, directory: Path) -> Iterator[httpx.Client]:
    """A client of the example, whose server and consumer run as its README says."""
    settings = {
        "DATABASE_URL": stack.database_url.replace("+psycopg", ""),
        "REDIS_URL": stack.redis_url,
        "STRIPE_WEBHOOK_SECRET": WEBHOOK_SECRET,
    }
    port = str(free_port())
    *before, server, consumer = example.commands()
    for command in before:
        ended = run(command, settings)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    # The usual port may be in use by the one that a person has running.
    if example is FLASK:
        server = f"flask --app {EXAMPLES}/flask/app.py run --port {port}"
    server = server.replace(example.port, f"{port} --noreload" if example is DJANGO else port)
    with ExitStack() as programs, httpx.Client(base_url=f"http://127.0.0.1:{port}", follow_redirects=True) as client:
        # The server last: it is the one that is waited for.
        for name, command in (("consumer", consumer), ("server", server)):
            words = command.split()
            words[0] = str(Path(sys.executable).with_name(words[0]))
            program = start(name, words, log=directory / f"{name}.log", env=in_terminal(settings), cwd=CHECKOUT)
            programs.enter_context(program)
        wait_until(lambda: answers(client), READY_SECONDS, f"{example.name} answers", program=program)
        yield client


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/").status_code == 200
    except httpx.TransportError:
        return False


def sign_up(example: Example, client: httpx.Client, address: str) -> httpx.Response:
    if example is FASTAPI:
        return client.post("/users", json={"email": address})
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', client.get("/").text)
    return client.post("/", data={"email": address, **({"csrfmiddlewaretoken": token[1]} if token else {})})


def page_of(example: Example, client: httpx.Client, signed_up: httpx.Response) -> str:
    path = f"/users/{signed_up.json()['id']}" if example is FASTAPI else signed_up.url.path
    return client.get(path).text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "database"),
    [(DJANGO, "postgresql"), (FASTAPI, "postgresql"), (FLASK, "sqlite")],
    ids=lambda value: getattr(value, "name", value),
)
def test_who_signs_up_becomes_one_customer_and_is_told_so(example: Example, own_stack: Stack, tmp_path: Path) -> None:
    stack, address = own_stack, email()
    stack.start_worker()

    with up(example, stack, tmp_path) as client:
        signed_up = sign_up(example, client, address)
        again = sign_up(example, client, address)

        wait_until(lambda: "cus_" in page_of(example, client, signed_up), SOON_SECONDS, "the page shows the customer")
        page = page_of(example, client, signed_up)

    assert signed_up.status_code in {200, 201}
    assert again.status_code == 409
    assert TAKEN.search(again.text)
    (customer,) = [each for each in stack.sandbox.customers() if each["email"] == address]
    assert customer["id"] in page
    assert "succeeded" in page
    assert customer["id"] in (tmp_path / "consumer.log").read_text()
    (job,) = stack.jobs.list()
    assert (job.outcome, job.external_id) == ("created", customer["metadata"]["external_id"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "database"),
    [(DJANGO, "postgresql"), (FASTAPI, "sqlite"), (FLASK, "postgresql")],
    ids=lambda value: getattr(value, "name", value),
)
def test_an_example_takes_in_what_stripe_has_signed(example: Example, own_stack: Stack, tmp_path: Path) -> None:
    stack = own_stack
    event = stack.sandbox.send_event("invoice.paid", {"id": "in_1", "customer": "cus_1"})
    body = json.dumps(event).encode()

    with up(example, stack, tmp_path) as client:

        def post(signature: str) -> httpx.Response:
            return client.post("/webhooks/stripe", content=body, headers={"Stripe-Signature": signature})

        forged = post(sign(body, "whsec_other"))
        stale = post(sign(body, WEBHOOK_SECRET, event["created"] - 301))
        nothing_yet = stack.jobs.list()
        first, second = (post(sign(body, WEBHOOK_SECRET)) for _ in range(2))

    assert (forged.status_code, stale.status_code, nothing_yet) == (400, 400, [])
    (fetch,) = stack.jobs.list()
    assert (fetch.kind, fetch.customer_id) == ("customer.fetch", "cus_1")
    assert (first.status_code, first.json()) == (second.status_code, second.json()) == (200, {"job_id": fetch.id})


def test_an_example_needs_three_commands_beside_make_dev() -> None:
    for example in (FLASK, FASTAPI, DJANGO):
        assert len(example.commands()) <= 3
        assert example.port in (EXAMPLES / example.name / "README.md").read_text()
