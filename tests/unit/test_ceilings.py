"""How many jobs may be in flight after Stripe said that too many were."""

from __future__ import annotations

from customer_jobs.lanes import Lane, by_endpoint
from worker.dispatcher.ceilings import Ceilings

CREATES = Lane("default", "", reconciling=False, kind="customer.create")
FETCHES = Lane("default", "", reconciling=False, kind="customer.fetch")
OF_ANOTHER = Lane("eu", "", reconciling=False, kind="customer.create")
FLYING = by_endpoint({CREATES: 8, FETCHES: 4, OF_ANOTHER: 6})


def test_without_a_word_from_stripe_only_the_setting_counts() -> None:
    ceilings = Ceilings(100)

    assert ceilings.room(CREATES, FLYING) == 100 - 12
    assert not ceilings.concern(CREATES)


def test_an_endpoint_that_is_too_busy_may_have_half_in_flight() -> None:
    ceilings = Ceilings(100)

    ceilings.lower(CREATES.endpoint, FLYING)

    assert ceilings.room(CREATES, FLYING) == 0
    assert ceilings.room(CREATES, by_endpoint({CREATES: 1, FETCHES: 40})) == 3
    assert (ceilings.concern(CREATES), ceilings.concern(FETCHES)) == (True, False)
    assert ceilings.room(FETCHES, FLYING) > 0


def test_an_account_that_is_too_busy_slows_all_its_endpoints() -> None:
    ceilings = Ceilings(100)

    ceilings.lower(CREATES.account, FLYING)

    assert ceilings.room(FETCHES, FLYING) == ceilings.room(CREATES, FLYING) == 0
    assert ceilings.room(FETCHES, by_endpoint({CREATES: 3, FETCHES: 1})) == 2
    assert ceilings.concern(FETCHES)
    assert ceilings.room(OF_ANOTHER, FLYING) > 0


def test_one_job_is_always_allowed() -> None:
    ceilings = Ceilings(100)

    for _ in range(3):
        ceilings.lower(CREATES.endpoint, by_endpoint({CREATES: 1}))

    assert ceilings.room(CREATES, {}) == 1


def test_a_ceiling_rises_by_one_a_second_until_it_is_none() -> None:
    ceilings = Ceilings(10)
    ceilings.lower(CREATES.endpoint, FLYING)

    ceilings.recover(1.5)

    assert ceilings.room(CREATES, {}) == 5
    ceilings.recover(60)
    assert not ceilings.concern(CREATES)
