"""After an outage: what Stripe lists and never arrived is taken in, what did arrive is left alone."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import stripe
from sqlalchemy import Engine
from typer.testing import CliRunner

from customer_jobs import CustomerJobs
from customer_jobs.cli import app
from customer_jobs.errors import CustomerJobsError, InvalidSetting, Unavailable
from customer_jobs.sandbox import Sandbox
from customer_jobs.schema import jobs, webhook_events
from customer_jobs.webhooks import RULES, Rule, WebhookReceiver
from customer_jobs.webhooks.catch_up import TRIES, catch_up
from tests.builders import add_job, rows

KEY = "sk_test_sandbox"
AN_HOUR = timedelta(hours=1)


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    with Sandbox() as running:
        monkeypatch.setenv("STRIPE_API_BASE", running.url)
        monkeypatch.setenv("STRIPE_API_KEY", KEY)
        yield running


@pytest.fixture
def producer(engine: Engine) -> CustomerJobs:
    return CustomerJobs(engine)


def customer(sandbox: Sandbox, account: str | None = None, key: str | None = None) -> str:
    """The id of a customer that somebody made there."""
    client = stripe.StripeClient(KEY, base_addresses={"api": sandbox.url})
    options = {"stripe_account": account, "idempotency_key": key}
    given: Any = {name: value for name, value in options.items() if value}
    return client.v1.customers.create({}, given).id


def an_hour_ago() -> datetime:
    return datetime.now(UTC) - AN_HOUR


def test_what_was_missed_is_fetched_and_what_was_not_is_left_alone(
    engine: Engine, producer: CustomerJobs, sandbox: Sandbox
) -> None:
    one, two, three = (customer(sandbox) for _ in range(3))
    known = sandbox.send_event("invoice.paid", {"id": "in_1", "customer": one})
    first = WebhookReceiver(producer, "whsec_test").accept(known)
    sandbox.update_customer(two, name="Jenny")
    sandbox.delete_customer(three)
    sandbox.send_event("price.created", {"id": "price_1"})

    result = catch_up(producer, an_hour_ago())
    again = catch_up(producer, an_hour_ago())

    assert (result.listed, result.known, result.missed, result.jobs) == (7, 1, 5, 3)
    assert (again.listed, again.known, again.missed, again.jobs) == (7, 6, 0, 0)
    found = rows(engine, jobs)
    assert {row["customer_id"] for row in found} == {one, two, three}
    # The event that had arrived keeps its fetch; those who wait for nobody go after those who do.
    assert {row["id"]: row["priority"] for row in found}[first.job_id or ""] == 2
    assert sorted(row["priority"] for row in found) == [2, 3, 3]
    assert len(rows(engine, webhook_events)) == 6


@pytest.mark.parametrize("database", ["sqlite"])
def test_every_page_is_read(engine: Engine, producer: CustomerJobs, sandbox: Sandbox) -> None:
    for number in range(250):
        sandbox.send_event("invoice.paid", {"id": "in_1", "customer": f"cus_{number % 7}"})

    result = catch_up(producer, an_hour_ago())

    assert (result.listed, result.missed, result.jobs) == (250, 250, 7)
    assert len(rows(engine, webhook_events)) == 250
    assert len([request for request in sandbox.requests if request.endpoint == "events"]) == 3


@pytest.mark.parametrize("database", ["sqlite"])
def test_only_events_since_then_and_of_the_rules_are_asked_for(
    engine: Engine, producer: CustomerJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    present = time.time()
    clock = [present - 7200]
    with Sandbox(clock=lambda: clock[0]) as sandbox:
        monkeypatch.setenv("STRIPE_API_BASE", sandbox.url)
        monkeypatch.setenv("STRIPE_API_KEY", KEY)
        customer(sandbox)
        clock[0] = present
        late = customer(sandbox)
        sandbox.update_customer(late, name="Jenny")

        result = catch_up(producer, an_hour_ago(), rules=RULES[:1])

    assert (result.listed, result.missed) == (1, 1)
    assert [row["customer_id"] for row in rows(engine, jobs)] == [late]


@pytest.mark.parametrize("database", ["sqlite"])
def test_a_rule_that_knows_no_customer_leaves_its_events_alone(
    engine: Engine, producer: CustomerJobs, sandbox: Sandbox
) -> None:
    sandbox.send_event("payout.paid", {"id": "po_1"})

    result = catch_up(producer, an_hour_ago(), rules=[Rule("*", lambda _: None)])

    assert (result.listed, result.known, result.missed) == (1, 0, 0)
    assert rows(engine, webhook_events) == []


@pytest.mark.parametrize("database", ["sqlite"])
def test_a_connected_account_has_a_list_of_its_own(engine: Engine, producer: CustomerJobs, sandbox: Sandbox) -> None:
    customer(sandbox)
    theirs = customer(sandbox, "acct_1")

    result = catch_up(producer, an_hour_ago(), stripe_account="acct_1")

    assert result.missed == 1
    assert [(row["customer_id"], row["stripe_account"]) for row in rows(engine, jobs)] == [(theirs, "acct_1")]


@pytest.mark.parametrize("database", ["sqlite"])
def test_each_credential_asks_with_its_own_key(
    engine: Engine, producer: CustomerJobs, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    customer(sandbox)
    with pytest.raises(InvalidSetting, match="STRIPE_API_KEY_EU is not set"):
        catch_up(producer, an_hour_ago(), credential="eu")
    monkeypatch.setenv("STRIPE_API_KEY_EU", KEY)

    catch_up(producer, an_hour_ago(), credential="eu")

    assert [row["credential"] for row in rows(engine, jobs)] == ["eu"]


def test_the_news_of_our_own_creates_settles_them_and_fetches_nothing(
    engine: Engine, producer: CustomerJobs, sandbox: Sandbox
) -> None:
    failed = add_job(engine, state="failed", first_sent_at=datetime.now(UTC))
    made = customer(sandbox, key=f"customer-jobs-{failed}")

    result = catch_up(producer, an_hour_ago())

    assert (result.missed, result.jobs) == (1, 1)
    (retried,) = rows(engine, jobs, retry_of=failed)
    assert retried["candidate_customer_id"] == made
    assert len(rows(engine, jobs)) == 2


@pytest.mark.parametrize("fault", ["rate_limit", "500", "reset"])
@pytest.mark.parametrize("database", ["sqlite"])
def test_a_page_that_stripe_does_not_give_is_asked_for_again(
    producer: CustomerJobs, sandbox: Sandbox, fault: str
) -> None:
    customer(sandbox)
    sandbox.faults.add(fault, path="/v1/events", times=3)
    pauses: list[float] = []

    result = catch_up(producer, an_hour_ago(), pause=pauses.append)

    assert result.missed == 1
    assert pauses == [0.5, 1.0, 2.0]


@pytest.mark.parametrize("database", ["sqlite"])
def test_a_stripe_that_never_answers_is_out_of_reach(producer: CustomerJobs, sandbox: Sandbox) -> None:
    sandbox.faults.add("503", path="/v1/events")
    pauses: list[float] = []

    with pytest.raises(Unavailable, match="list of events"):
        catch_up(producer, an_hour_ago(), pause=pauses.append)

    assert len(pauses) == TRIES - 1


@pytest.mark.parametrize(
    ("key", "says"),
    [("rk_test_sandbox_noread", "may not read events"), ("sk_test_sandbox_revoked", "'default' is not valid")],
)
@pytest.mark.parametrize("database", ["sqlite"])
@pytest.mark.usefixtures("sandbox")
def test_a_key_that_may_not_is_told(
    producer: CustomerJobs, monkeypatch: pytest.MonkeyPatch, key: str, says: str
) -> None:
    monkeypatch.setenv("STRIPE_API_KEY", key)

    with pytest.raises(CustomerJobsError, match=says) as refused:
        catch_up(producer, an_hour_ago())

    assert key not in str(refused.value)


@pytest.mark.parametrize("database", ["sqlite"])
def test_the_command_says_what_was_missed(database_url: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    customer(sandbox)
    command = ["webhooks", "catch-up", "--since"]

    first = CliRunner().invoke(app, [*command, "2h", "--json"])
    second = CliRunner().invoke(app, [*command, "90d"])
    future = CliRunner().invoke(app, [*command, "2999-01-01T00:00:00Z"])
    nonsense = CliRunner().invoke(app, [*command, "soon"])

    assert (first.exit_code, json.loads(first.stdout)) == (0, {"listed": 1, "known": 0, "missed": 1, "jobs": 1})
    assert (second.exit_code, second.stdout.splitlines()[0]) == (
        0,
        "1 events listed; about customers: 1 known, 0 missed",
    )
    assert "keeps events for 30 days" in second.stderr
    for refused in (future, nonsense):
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert re.fullmatch(r"error: --since: [^\n]+\n", refused.stderr)
