"""The whole life cycle under every harm at any statement: what must hold holds after each step, and all ends well.

`make short-chaos` runs the same examples each time; CHAOS_EXAMPLES=200, as in `make chaos`, looks for so many new ones.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from sqlalchemy import Engine

from customer_jobs.database import open_engine
from customer_jobs.schema import jobs
from customer_jobs.vocabulary import WAITING_STATES, State
from tests.chaos.life import DAY_SECONDS, ELSEWHERE, HOLDERS, RETENTION_DAYS, Life
from tests.chaos.operation import NONE, Harm, add_seams
from tests.chaos.stripe_within import UNREACHABLE

STEPS = 40  #: In one example, before it heals.
EXAMPLES = {"sqlite": 70, "postgresql": 25}
#: At most, until all that is wanted has happened. Examples are the same each time, but for constants that hypothesis
#: takes from whatever modules other tests have imported.
ROUNDS = 4
FIRST_SEED = 100  #: Where nothing else is imported, one round is enough with it.

#: What Stripe may do to a call.
FAULTS = (
    "500_after", "reset_after", "frozen_500", "frozen_500_after", "cut", "html", "503", "hang_after", "rate_limit",
    "lock_timeout", "key_in_use", "400", "401", "402", "424", "reset", UNREACHABLE,
)  # fmt: skip
#: By how much a clock jumps: past a lease of either kind, a look for a customer, the longest attempt, Stripe's memory.
JUMPS_SECONDS = (6.0, 16.0, 16.0, 61.0, 130.0, 3700.0, DAY_SECONDS, RETENTION_DAYS * DAY_SECONDS + 60)
JUMPS_BACK_SECONDS = (6.0, 40.0)
SOME_LOOKS = 8  #: Enough to find out that a customer cannot be found.
MOST_BACK_SECONDS = 240  #: In all; reconciling looks ten minutes around an attempt.

#: What has to have happened at least once, or the run has shown nothing.
WANTED = {
    "clock jumps", "clock jumps back", "late record", "abandoned", "two leaders", "killed attempt", "killed dispatch",
    "stopped attempt", "webhook", "retry by hand", "pruned", "succeeded created", "succeeded replayed",
    "succeeded adopted", "failed outcome_unknown",
}  # fmt: skip
#: And in the longer run, which is SQLite's: there a statement takes less time.
WANTED_ON_SQLITE = WANTED | {
    "doubled message", "lost message", "killed rescue", "killed relay", "killed enqueue", "killed webhook",
    "killed prune", "stopped dispatch", "stopped relay", "publishing fails", "Redis away", "conflict",
    "doubled webhook", "succeeded linked", "cancelled None", "too late",
}  # fmt: skip

kills = st.integers(1, 12).map(lambda seam: Harm("kill", seam))
stops = st.integers(1, 4).map(lambda seam: Harm("stop", seam))
harms = st.one_of(st.just(NONE), kills, stops)
holders = st.sampled_from(HOLDERS)
external_ids = st.sampled_from([None, "u1", "u2"])
emails = st.sampled_from([None, "a@example.com"])
faults = st.sampled_from(FAULTS)
some_fault = st.one_of(st.none(), faults)
at_a_call = st.integers(2, 4)  #: Before it, after it, or before it is recorded.
which = st.integers(0, 1000)  #: Of some that there are.


class Machine(RuleBasedStateMachine):
    """Drives one life; `engine`, `eyes` and `seen` are given to a subclass for each run.

    Which rule comes next, and with what, never depends on how things stand: ids are random and clocks go on, and a
    step that was possible once may not be when hypothesis tries it again. One that is not possible does nothing.
    """

    engine: Engine
    eyes: Engine
    seen: Counter[str]

    @initialize(
        draw=st.sampled_from([0.0, 0.99]),
        most=st.sampled_from(["2", "25"]),
        links=st.booleans(),
        creates=st.lists(st.tuples(external_ids, emails), min_size=1, max_size=4),
    )
    def begin(self, draw: float, most: str, links: bool, creates: list[tuple[str | None, str | None]]) -> None:
        os.environ["MAX_ATTEMPTS"] = most
        self.life = Life(self.engine, self.eyes, self.seen, draw=draw)
        self.back_seconds = 0.0
        self.life.lead("a")
        if links:
            self.life.enqueue_fetch(ELSEWHERE, "u2")
        for external_id, email in creates:
            self.life.enqueue_create(external_id, email)
        self.life.check()

    @rule(external_id=external_ids, email=emails, harm=harms)
    def enqueue_create(self, external_id: str | None, email: str | None, harm: Harm) -> None:
        self.life.enqueue_create(external_id, email, harm)
        self.life.check()

    @rule(number=which, links=st.booleans(), harm=harms)
    def enqueue_fetch(self, number: int, links: bool, harm: Harm) -> None:
        known = [each["id"] for each in self.life.stripe.sandbox.customers()]
        if links:
            self.life.enqueue_fetch(ELSEWHERE, "u2", harm)
        else:
            self.life.enqueue_fetch(_one([*known, "cus_gone"], number), None, harm)
        self.life.check()

    @rule(holder=holders, leads=st.booleans(), broker=st.sampled_from([None, None, "before", "after"]), harm=harms)
    def dispatch(self, holder: str, leads: bool, broker: str | None, harm: Harm) -> None:
        if leads:
            self.life.pass_time(11)
            self.life.lead(holder)
        self.life.dispatch(holder, harm, broker=broker)
        self.life.check()

    @rule(number=which, doubled=st.booleans(), fault=st.sampled_from([None, None, *FAULTS]), harm=harms)
    def deliver(self, number: int, doubled: bool, fault: str | None, harm: Harm) -> None:
        if not self.life.messages:
            self._dispatch()
        if self.life.messages:
            message = _one(self.life.messages, number)
            if doubled:
                self.seen["doubled message"] += 1
            else:
                self.life.messages.remove(message)
            self.life.attempt(message, harm, fault=fault)
            self.life.check()

    @rule(number=which, fault=faults)
    def attempt_and_fail(self, number: int, fault: str) -> None:
        self._attempt(number, NONE, fault)

    @rule(number=which, fault=some_fault, seam=st.integers(1, 24))
    def attempt_and_die(self, number: int, fault: str | None, seam: int) -> None:
        self._attempt(number, Harm("kill", seam), fault)

    @rule(number=which, fault=some_fault, seam=at_a_call, silent=st.booleans())
    def attempt_and_stop(self, number: int, fault: str | None, seam: int, silent: bool) -> None:
        """Perhaps for so long that somebody takes over."""
        self._attempt(number, Harm("stop", seam), fault)
        if silent:
            self.life.pass_time(16)
            self.life.lead("b")
            self.life.rescue("b")
            self.life.check()

    @rule(number=which)
    def attempt(self, number: int) -> None:
        self._attempt(number, NONE, None)

    @rule(number=which, faults=st.tuples(some_fault, some_fault), seams=st.tuples(at_a_call, at_a_call))
    def attempt_twice_at_once(self, number: int, faults: tuple[str | None, str | None], seams: tuple[int, int]) -> None:
        """An attempt falls silent, another takes over, and the first comes back while that one is under way."""
        stopped = len(self.life.stopped)
        self.attempt_and_stop(number, faults[0], seams[0], silent=True)
        if len(self.life.stopped) > stopped:
            first = self.life.stopped[-1]
            self._attempt(number, Harm("stop", seams[1]), faults[1], job_id=first.job_id)
            self.life.go_on(first)
            self.life.check()

    @rule(number=which, fault=faults, again=st.booleans())
    def attempt_until_final(self, number: int, fault: str, again: bool) -> None:
        """Whatever a fault leaves open is settled; perhaps a person then has the job that it failed tried again."""
        self._attempt(number, NONE, fault)
        self.life.work(SOME_LOOKS)
        failed = self.life.rows(jobs.c.state == State.FAILED)
        if again and failed:
            unknown = [each for each in failed if each["first_sent_at"] is not None]
            self.life.retry((unknown or failed)[-1]["id"])
            self.life.check()

    def _dispatch(self) -> None:
        """Time passes until the others' lead and most jobs' pauses are over."""
        self.life.pass_time(11)
        self.life.lead("a")
        self.life.dispatch("a")

    def _attempt(self, number: int, harm: Harm, fault: str | None, job_id: str | None = None) -> None:
        """The way of most jobs."""
        self._dispatch()
        if messages := [each for each in self.life.messages if job_id in {None, each[1]}]:
            message = _one(messages, number)
            self.life.messages.remove(message)
            self.life.attempt(message, harm, fault=fault)
        self.life.check()

    @rule(number=which, harm=harms)
    def go_on(self, number: int, harm: Harm) -> None:
        if self.life.stopped:
            self.life.go_on(_one(self.life.stopped, number), harm)
        self.life.check()

    @rule(seconds=st.sampled_from(JUMPS_SECONDS), extends=st.booleans())
    def pass_time(self, seconds: float, extends: bool) -> None:
        self.life.pass_time(seconds)
        if extends:
            self.life.extend_leases()
        self.life.check()

    @rule(seconds=st.sampled_from(JUMPS_BACK_SECONDS))
    def jump_back(self, seconds: float) -> None:
        self.back_seconds += seconds
        if self.back_seconds <= MOST_BACK_SECONDS:
            self.life.shift_clock(-seconds)
            self.life.check()

    @rule(holder=holders, harm=harms)
    def rescue(self, holder: str, harm: Harm) -> None:
        self.life.rescue(holder, harm)
        self.life.check()

    @rule(holder=holders, leads=st.booleans(), away=st.sampled_from([None, "before", "after"]), harm=harms)
    def relay(self, holder: str, leads: bool, away: str | None, harm: Harm) -> None:
        if leads:
            self.life.pass_time(11)
            self.life.lead(holder)
        self.life.relay(holder, harm, away=away)
        self.life.check()

    @rule(holder=holders, harm=harms)
    def prune(self, holder: str, harm: Harm) -> None:
        self.life.lead(holder)
        self.life.relay(holder)
        self.life.pass_time(JUMPS_SECONDS[-1])
        self.life.lead(holder)
        self.life.prune(holder, harm)
        self.life.check()

    @rule(number=which, harm=harms)
    def tell(self, number: int, harm: Harm) -> None:
        if events := self.life.stripe.events():
            self.life.tell(_one(events, number), harm)
            self.life.check()

    @rule(number=which, harm=harms)
    def retry(self, number: int, harm: Harm) -> None:
        if failed := self.life.rows(jobs.c.state == State.FAILED):
            self.life.retry(_one(failed, number)["id"], harm)
            self.life.check()

    @rule(number=which, harm=harms)
    def cancel(self, number: int, harm: Harm) -> None:
        if found := self.life.rows(jobs.c.state.in_(WAITING_STATES)) or self.life.rows():
            self.life.cancel(_one(found, number)["id"], harm)
            self.life.check()

    @rule()
    def flush_broker(self) -> None:
        self.seen["lost message"] += len(self.life.messages)
        self.life.messages.clear()

    @rule()
    def rotate_key(self) -> None:
        self.life.rotate_key()

    def teardown(self) -> None:
        if sys.exc_info()[0] is None:
            self.life.heal()
        self.life.end()


def _one(some: list[Any], number: int) -> Any:
    return some[number % len(some)]


@pytest.fixture
def eyes(database_url: str) -> Iterator[Engine]:
    """A second view of the database, in which no harm is done."""
    eyes = open_engine(database_url)
    yield eyes
    eyes.dispose()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_word_of_stripes_after_the_job_was_pruned_breaks_no_promise(
    engine: Engine, eyes: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAX_ATTEMPTS", "2")
    add_seams(engine)
    machine = type("Machine", (Machine,), {"engine": engine, "eyes": eyes, "seen": Counter[str]()})()
    machine.begin(draw=0.0, most="2", links=False, creates=[(None, None)])
    machine.enqueue_create(email=None, external_id=None, harm=NONE)
    machine.attempt_and_fail(fault="500_after", number=0)
    machine.attempt_and_die(fault=None, number=0, seam=1)
    machine.attempt_and_fail(fault="500_after", number=0)
    machine.attempt_and_stop(fault="400", number=0, seam=2, silent=False)
    machine.go_on(harm=NONE, number=0)
    machine.prune(harm=NONE, holder="a")

    machine.teardown()

    assert machine.seen["failed outcome_unknown"] == 1
    assert machine.seen["pruned"] == 1


@pytest.mark.timeout(1800)
def test_no_harm_at_any_statement_breaks_a_promise(
    engine: Engine, eyes: Engine, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAX_ATTEMPTS", "25")
    add_seams(engine)
    explores = "CHAOS_EXAMPLES" in os.environ
    examples = int(os.environ.get("CHAOS_EXAMPLES", EXAMPLES[database]))
    seen: Counter[str] = Counter()
    machine = type("Machine", (Machine,), {"engine": engine, "eyes": eyes, "seen": seen})
    profile = settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink) if explores else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )

    wanted = WANTED_ON_SQLITE if database == "sqlite" else WANTED
    for number in range(ROUNDS):
        if not wanted <= seen.keys():
            run_state_machine_as_test(machine if explores else seed(FIRST_SEED + number)(machine), settings=profile)

    print(*(f"{count:6} {what}" for what, count in sorted(seen.items())), sep="\n")
    missing = sorted(wanted.difference(seen))
    assert not missing, f"never happened: {', '.join(missing)}"
