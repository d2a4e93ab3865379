"""Customers that were at Stripe before: a fetch links one to the app's own id, and no later create doubles it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from customer_jobs import Job
from tests.acceptance.stack import Stack, email, unique


def existing_customer(stack: Stack) -> str:
    """The id of a customer at Stripe that nobody here knows under an id of the app's."""
    job = stack.wait_for_end(stack.jobs.create_customer({"email": email()}))
    assert job.customer_id is not None
    return job.customer_id


def linked(stack: Stack) -> tuple[str, str]:
    """A customer's id, and the app's own id that it has been linked to."""
    customer_id, mine = existing_customer(stack), unique("user")
    stack.wait_for_end(stack.jobs.fetch_customer(customer_id, external_id=mine))
    return customer_id, mine


def creates_of(stack: Stack, external_id: str) -> list[str]:
    """The customers that Stripe's stand-in made for one of the app's ids."""
    return [each["id"] for each in stack.sandbox.customers() if each["metadata"].get("external_id") == external_id]


def let_others_pass(stack: Stack, count: int = 2) -> None:
    """Return when jobs that were enqueued now, one after the other, have ended."""
    for _ in range(count):
        stack.wait_for_end(stack.jobs.create_customer({"email": email()}))


def test_a_fetch_links_a_customer_to_the_apps_own_id(stack: Stack) -> None:
    customer_id, mine = linked(stack)

    copy = stack.jobs.customer(external_id=mine)

    assert copy is not None
    assert (copy.id, copy.external_id) == (customer_id, mine)


def test_a_later_create_is_linked_without_a_call(stack: Stack) -> None:
    customer_id, mine = linked(stack)

    ended = stack.wait_for_end(stack.jobs.create_customer({"email": email()}, external_id=mine, context={"n": 1}))

    assert (ended.state, ended.outcome, ended.customer_id) == ("succeeded", "linked", customer_id)
    assert ended.result is not None
    assert ended.result["response"]["id"] == customer_id
    assert stack.requests_of(ended) == []
    assert creates_of(stack, mine) == []
    event = stack.consumer.event_about(ended.id)["data"]
    assert (event["outcome"], event["customer_id"], event["context"]) == ("linked", customer_id, {"n": 1})


def test_a_create_waits_for_the_fetch_that_is_to_link_it(stack: Stack) -> None:
    customer_id, mine = existing_customer(stack), unique("user")
    stack.sandbox.hold(lambda request: request.path == f"/v1/customers/{customer_id}")
    try:
        fetch = stack.jobs.fetch_customer(customer_id, external_id=mine)
        stack.sandbox.wait_until_held()
        create = stack.jobs.create_customer({"email": email()}, external_id=mine)
        let_others_pass(stack)
        waiting = stack.jobs.get(create.id)
    finally:
        stack.sandbox.release()
    fetched, ended = stack.wait_for_end(fetch), stack.wait_for_end(create)

    assert waiting is not None
    assert (waiting.final, waiting.attempt, waiting.attempts) == (False, 0, ())
    assert fetched.outcome == "found"
    assert (ended.outcome, ended.customer_id, ended.attempt) == ("linked", customer_id, 1)
    assert stack.requests_of(ended) == []
    assert creates_of(stack, mine) == []


def test_a_create_waits_for_a_fetch_that_is_not_due_yet(stack: Stack) -> None:
    customer_id, mine = existing_customer(stack), unique("user")
    fetch = stack.jobs.fetch_customer(customer_id, external_id=mine, due_at=datetime.now(UTC) + timedelta(seconds=1.5))

    ended = stack.wait_for_end(stack.jobs.create_customer({"email": email()}, external_id=mine))

    assert stack.wait_for_end(fetch).outcome == "found"
    assert (ended.outcome, ended.customer_id) == ("linked", customer_id)
    assert creates_of(stack, mine) == []


def assert_created(stack: Stack, job: Job) -> None:
    ended = stack.wait_for_end(job)
    assert (ended.state, ended.outcome) == ("succeeded", "created")
    assert job.external_id is not None
    assert creates_of(stack, job.external_id) == [ended.customer_id]


def test_a_create_goes_ahead_when_there_is_nothing_to_link(stack: Stack) -> None:
    mine = unique("user")
    missing = stack.wait_for_end(stack.jobs.fetch_customer("cus_nobody", external_id=mine))
    assert missing.state == "failed"

    assert_created(stack, stack.jobs.create_customer({"email": email()}, external_id=mine))


def test_a_create_goes_ahead_when_the_linked_customer_was_deleted(stack: Stack) -> None:
    customer_id, mine = linked(stack)
    stack.sandbox.delete_customer(customer_id)

    gone = stack.wait_for_end(stack.jobs.fetch_customer(customer_id, external_id=mine))
    assert gone.outcome == "deleted"

    assert_created(stack, stack.jobs.create_customer({"email": email()}, external_id=mine))


def test_a_young_copy_is_enough_to_link(stack: Stack) -> None:
    customer_id, mine = existing_customer(stack), unique("user")

    fetched = stack.wait_for_end(stack.jobs.fetch_customer(customer_id, max_age_seconds=600, external_id=mine))
    ended = stack.wait_for_end(stack.jobs.create_customer({"email": email()}, external_id=mine))

    assert fetched.outcome == "fresh"
    assert (ended.outcome, ended.customer_id) == ("linked", customer_id)
    assert stack.requests_of(fetched) == []
    assert creates_of(stack, mine) == []


def test_a_link_holds_within_its_account_only(stack: Stack) -> None:
    customer_id, mine = linked(stack)

    elsewhere = stack.wait_for_end(
        stack.jobs.create_customer({"email": email()}, external_id=mine, stripe_account="acct_connected2")
    )

    assert (elsewhere.outcome, len(stack.requests_of(elsewhere))) == ("created", 1)
    assert stack.jobs.customer(external_id=mine) != stack.jobs.customer(
        external_id=mine, stripe_account="acct_connected2"
    )
    assert elsewhere.customer_id != customer_id
