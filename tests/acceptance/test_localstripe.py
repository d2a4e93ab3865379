"""The main job against localstripe, a stand-in for Stripe that we did not write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.stack import Stack, email, unique
from tests.localstripe import localstripe
from tests.servers import Server


@pytest.fixture
def stack(tmp_path: Path, sqlite_url: str, redis: Server) -> Iterator[Stack]:
    """A stack with a worker that takes localstripe for Stripe."""
    with localstripe() as url, Stack(tmp_path, sqlite_url, redis.url, url) as stack:
        stack.start_worker()
        yield stack


def test_a_customer_is_created_and_fetched_at_localstripe(stack: Stack) -> None:
    address, mine = email(), unique("user")

    made = stack.wait_for_end(
        stack.jobs.create_customer(
            {"email": address, "name": "Jenny Rosen", "metadata": {"plan": "pro"}}, external_id=mine
        )
    )
    assert made.customer_id is not None
    found = stack.wait_for_end(stack.jobs.fetch_customer(made.customer_id))
    missing = stack.wait_for_end(stack.jobs.fetch_customer("cus_missing"))

    assert (made.state, made.outcome) == ("succeeded", "created")
    assert (found.state, found.outcome, found.customer_id) == ("succeeded", "found", made.customer_id)
    assert found.result is not None
    assert found.result["customer_email"] == address
    assert found.result["response"]["name"] == "Jenny Rosen"
    assert found.result["response"]["metadata"] == {"plan": "pro", "customer_jobs_id": made.id, "external_id": mine}
    assert missing.state == "failed"
    assert missing.error is not None
    assert missing.error["http_status"] == 404
    copy = stack.jobs.customer(external_id=mine)
    assert copy is not None
    assert (copy.id, copy.email) == (made.customer_id, address)
    for job in (made, found, missing):
        assert stack.consumer.event_about(job.id)["data"]["state"] == job.state
