"""Which lanes a look asks for jobs: enough for the calls that may leave, however many lanes wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from customer_jobs.lanes import Endpoint, Lane
from worker.dispatcher.allowance import Allowance

#: So many for each call that may leave: what is known of a lane may have left meanwhile, or be held by somebody.
LANES_PER_CALL = 8


def choose_lanes(
    in_order: Iterable[Lane], allowance: Allowance, room: int, *, may_fly: Callable[[Lane], bool]
) -> tuple[list[Lane], dict[Endpoint, Lane]]:
    """The lanes to ask, and of each account the first that is left out: its turn comes when more calls may leave.

    Of `allowance` the buckets of whole accounts have been read. Neither a lane that somebody paused is here nor there,
    nor one with as many jobs in flight as it may have: a person lets it go on, or a job that ends.
    """
    asked: list[Lane] = []
    left_out: dict[Endpoint, Lane] = {}
    of_account: Counter[Endpoint] = Counter()
    for lane in in_order:
        if allowance.is_paused(lane) or not may_fly(lane):
            continue
        account = lane.account
        calls = min(allowance.buckets[account].calls, room)
        if of_account[account] < LANES_PER_CALL * calls and len(asked) < LANES_PER_CALL * room:
            asked.append(lane)
            of_account[account] += 1
        else:
            left_out.setdefault(account, lane)
    return asked, left_out


def own_accounts(lanes: Iterable[Lane]) -> list[Lane]:
    """The lanes of the keys' own accounts for the same calls: what holds one of these back holds back all its kind."""
    return [Lane(*each) for each in dict.fromkeys((lane.credential, "", lane.reconciling, lane.kind) for lane in lanes)]
