"""An operator lets the jobs of a credential wait and go on again; what is on its way to Stripe ends."""

from __future__ import annotations

import time

from typer.testing import CliRunner

from customer_jobs import Job
from customer_jobs.cli import app
from customer_jobs.embedded import wait_until
from tests.acceptance.stack import READY_SECONDS, Stack, email

STOPS_WITHIN_SECONDS = 1.0  #: A pause holds from then on.
WAITS_SECONDS = 1.5  #: Three looks of the dispatcher's clock.


def run(stack: Stack, *words: str) -> str:
    """What the command prints."""
    result = CliRunner().invoke(app, words, env={"DATABASE_URL": stack.database_url, "COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.stdout


def create(stack: Stack) -> Job:
    return stack.jobs.create_customer({"email": email()})


def test_a_pause_by_hand_lets_running_jobs_end_and_the_others_wait(own_stack: Stack) -> None:
    stack = own_stack
    stack.start_worker()
    stack.sandbox.hold()
    running = [create(stack) for _ in range(2)]
    stack.sandbox.wait_until_held(2)

    run(stack, "limits", "pause", "default", "--reason", "maintenance")
    time.sleep(STOPS_WITHIN_SECONDS)
    waiting = create(stack)
    time.sleep(WAITS_SECONDS)  # Nothing may happen meanwhile.
    stack.sandbox.release()

    for job in running:
        assert stack.wait_for_end(job).outcome == "created"
    assert "held by      credential paused: maintenance" in run(stack, "show", waiting.id)
    assert "1 customer.create of default: credential paused: maintenance" in run(stack, "stats")
    assert stack.requests_of(waiting) == []

    run(stack, "limits", "resume", "default")
    assert stack.wait_for_end(waiting).outcome == "created"


def test_a_pause_for_a_refused_key_is_lifted_by_hand(own_stack: Stack) -> None:
    stack = own_stack
    stack.start_worker()
    stack.sandbox.faults.add("401", times=1)
    assert stack.wait_for_end(create(stack)).state == "failed"

    waiting = create(stack)
    wait_until(lambda: "Stripe refused the key: 401" in run(stack, "limits"), READY_SECONDS, "the credential pauses")
    time.sleep(WAITS_SECONDS)
    assert stack.requests_of(waiting) == []

    assert run(stack, "limits", "resume", "default") == "resumed credential 'default'\n"
    assert stack.wait_for_end(waiting).outcome == "created"
