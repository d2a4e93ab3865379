"""One dispatcher leads at a time, and another takes over when it is gone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from sqlalchemy import Engine, select, update

from customer_jobs.database import reading, writing
from customer_jobs.schema import leases
from customer_jobs.sql import now
from tests.builders import rows
from worker.dispatcher.leader import LEASE_SECONDS, give_up_lead, still_leads, take_lead


def takes(engine: Engine, holder: str) -> bool:
    with writing(engine) as transaction:
        return take_lead(transaction, holder)


def leads(engine: Engine, holder: str) -> bool:
    with reading(engine) as transaction:
        return still_leads(transaction, holder)


def wait_out(engine: Engine, seconds: float) -> None:
    """Let time pass for the lease."""
    with writing(engine) as transaction:
        (row,) = transaction.rows(select(*leases.c))
        transaction.change(update(leases).values(expires_at=row["expires_at"] - timedelta(seconds=seconds)))


def test_the_first_leads_and_no_second(engine: Engine) -> None:
    assert takes(engine, "a")
    assert not takes(engine, "b")

    assert leads(engine, "a")
    assert not leads(engine, "b")


def test_many_who_try_at_once_are_led_by_one(engine: Engine) -> None:
    with ThreadPoolExecutor(6) as pool:
        taken = list(pool.map(lambda number: takes(engine, f"holder-{number}"), range(6)))

    assert sum(taken) == 1
    assert [leads(engine, f"holder-{number}") for number in range(6)] == taken


def test_a_leader_that_renews_goes_on(engine: Engine) -> None:
    takes(engine, "a")
    wait_out(engine, 9)

    assert takes(engine, "a")

    (row,) = rows(engine, leases)
    with reading(engine) as transaction:
        left = row["expires_at"] - transaction.value(select(now()))
    assert timedelta(seconds=LEASE_SECONDS - 2) < left <= timedelta(seconds=LEASE_SECONDS)


def test_the_lead_is_taken_over_when_it_has_run_out(engine: Engine) -> None:
    takes(engine, "a")
    wait_out(engine, LEASE_SECONDS)

    assert not leads(engine, "a")
    assert takes(engine, "b")
    assert not takes(engine, "a")
    assert leads(engine, "b")


def test_a_lead_of_before_the_clock_was_set_back_keeps_nobody_waiting(engine: Engine) -> None:
    takes(engine, "a")
    wait_out(engine, -3600)

    assert takes(engine, "b")
    assert not leads(engine, "a")


def test_a_lead_that_is_given_up_is_free_at_once(engine: Engine) -> None:
    takes(engine, "a")

    with writing(engine) as transaction:
        give_up_lead(transaction, "a")

    assert not leads(engine, "a")
    assert takes(engine, "b")


def test_nobody_gives_up_the_lead_of_another(engine: Engine) -> None:
    takes(engine, "a")

    with writing(engine) as transaction:
        give_up_lead(transaction, "b")

    assert leads(engine, "a")
    assert not takes(engine, "b")
