"""Short soaks: one of each fault on PostgreSQL, and a few on SQLite; `make chaos` runs the long ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.chaos.faults import LEADER, POSTGRESQL, REDIS, STRIPE, WORKERS
from tests.chaos.soak import soak

SHORT: Any = {"calm_seconds": 0.5, "calm_refusals": True}
ON_A_FILE = {
    "worker killed",
    "leader killed",
    "Redis flushed",
    "Redis restarted empty",
    "Stripe 500 after the deed",
    "Stripe resets after the deed",
}


@pytest.mark.timeout(900)
def test_whatever_goes_wrong_nothing_is_lost_and_nothing_happens_twice(tmp_path: Path) -> None:
    report = soak(tmp_path, database="postgresql", count=220, rounds=1, workers=3, seed=1, **SHORT)

    assert not report.broken, "\n".join(report.lines())
    assert "11 customer.create failed" in report.figures["jobs"]
    every = {name for lane in (WORKERS, LEADER, REDIS, STRIPE, POSTGRESQL) for name in lane}
    assert {each.name for each in report.done} == every


@pytest.mark.timeout(900)
def test_nor_is_it_on_sqlite(tmp_path: Path) -> None:
    report = soak(tmp_path, database="sqlite", count=120, rounds=1, workers=2, seed=2, only=ON_A_FILE, **SHORT)

    assert not report.broken, "\n".join(report.lines())
    assert "6 customer.create failed" in report.figures["jobs"]
    assert {each.name for each in report.done} == ON_A_FILE
