"""What faults go by when they harm who leads."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import update

from customer_jobs.database import writing
from customer_jobs.schema import leases
from customer_jobs.sql import now
from customer_jobs.vocabulary import Lease
from tests.builders import lead
from tests.chaos.crew import Crew
from tests.chaos.proofs import holder, leader, next_leader
from tests.chaos.site import site
from worker.dispatcher.leader import show_looks


def test_who_looked_lately_and_has_lost_the_lead_does_not_lead(tmp_path: Path) -> None:
    with site(tmp_path, "sqlite") as here:
        lead(here.engine, "w1@test/1/a")
        with writing(here.engine) as transaction:
            show_looks(transaction, "w1@test/1/a", seconds_ago=0)
        led_by = holder(here)
        with writing(here.engine) as transaction:
            transaction.change(update(leases).where(leases.c.name == Lease.LEAD).values(expires_at=now(-1)))

        assert led_by == "w1@test/1/a"
        assert holder(here) is None


def test_who_was_killed_does_not_lead_by_the_process_that_has_its_name_now(tmp_path: Path) -> None:
    with site(tmp_path, "sqlite") as here, Crew(tmp_path, here.settings) as crew:
        crew.start("w1")
        before = leader(here, crew)

        end = crew.kill("w1")
        crew.wait_until_ready("w1")
        by_the_table = holder(here)
        after = leader(here, crew)

        assert before.pid == end.pid
        assert by_the_table == before.holder
        assert after.pid == crew.program("w1").pid != before.pid
        assert after == next_leader(here, before)
