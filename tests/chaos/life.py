"""A whole installation within the test's process, one operation at a time, and what everybody in it can do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, cast

import redis
from greenlet import getcurrent
from sqlalchemy import ColumnElement, Engine, Interval, delete, func, literal, select, type_coerce, update

from customer_jobs import ConflictError, CustomerJobs
from customer_jobs.database import Transaction, reading, writing
from customer_jobs.errors import NotRetryable, UnknownJob
from customer_jobs.lifecycle import Claim, extend
from customer_jobs.problems import TOO_LATE
from customer_jobs.request import Request
from customer_jobs.schema import jobs, leases, metadata
from customer_jobs.sql import now
from customer_jobs.vocabulary import FINAL_STATES, Kind, Lease, State
from customer_jobs.webhooks.intake import Intake
from tests.builders import Row, create, fetch, settings_for
from tests.chaos.operation import NONE, Harm, Operation, seam
from tests.chaos.stand_ins import Leases, Stream
from tests.chaos.stripe_within import StripeWithin
from tests.chaos.witness import Witness
from worker.answers import Answer, NotAnswered
from worker.credentials import Key, bind
from worker.dispatcher.dispatch import Dispatch
from worker.dispatcher.leader import LEASE_SECONDS, take_lead
from worker.dispatcher.prune import Prune
from worker.dispatcher.relay import Relay
from worker.dispatcher.upkeep import rescue, show_life
from worker.gateway import Gateway
from worker.leases import LONGEST_SECONDS
from worker.retry import CREATE_WINDOW, RetryPolicy
from worker.runner import Runner

STREAM = "customer-jobs:events"
RETENTION_DAYS = 30.0
DAY_SECONDS = 86_400.0
ELSEWHERE = "cus_elsewhere"  #: A customer that nobody here has made.
HOLDERS = ("a", "b")  #: Two dispatchers; either may believe that it leads.
POLICIES = {Kind.CUSTOMER_CREATE: RetryPolicy(window=CREATE_WINDOW), Kind.CUSTOMER_FETCH: RetryPolicy()}
MOST_STOPPED = 3  #: At once; each may hold a connection.
BEFORE_CREATE = "before a create is sent"
#: Of looks at what is left; each ends something or lets the clock go on to the next moment at which something is due.
MOST_LOOKS = 400


class Life:
    """Producers, two dispatchers, worker processes, Redis and Stripe around one database."""

    def __init__(self, engine: Engine, eyes: Engine, seen: Counter[str], *, draw: float) -> None:
        self.engine = engine  #: With seams.
        self.eyes = eyes  #: The same database, without.
        self.seen = seen  #: What has happened, by its name.
        self.stripe = StripeWithin()
        self.stripe.sandbox.add_customer(ELSEWHERE, account="acct_shop")
        self.stream = Stream()
        self.messages: list[tuple[str, str]] = []  #: In the broker: (kind, job id).
        self.stopped: list[Operation] = []
        self.leases = Leases()
        self.producer = CustomerJobs(engine)
        self._gateways: list[Gateway] = []
        self._set_back_seconds = 0.0
        self._draw = draw
        self.witness = Witness(eyes, self.stripe.sandbox, seen)
        _empty(eyes)
        self.rotate_key()

    # What people, apps and time do.

    def enqueue_create(self, external_id: str | None, email: str | None, harm: Harm = NONE) -> None:
        body = {} if email is None else {"email": email}

        def work() -> None:
            try:
                self.producer.create_customer(body, external_id=external_id)
            except ConflictError:
                self._saw("conflict")

        self._operate("enqueue", work, harm)

    def enqueue_fetch(self, customer_id: str, external_id: str | None, harm: Harm = NONE) -> None:
        self._operate(
            "enqueue", lambda: self.producer.fetch_customer(customer_id, external_id=external_id, context={}), harm
        )

    def retry(self, job_id: str, harm: Harm = NONE) -> None:
        def work() -> None:
            try:
                self.producer.retry(job_id)
            except (NotRetryable, UnknownJob):  # emptied, or pruned while this was stopped
                return
            self._saw("retry by hand")

        self._operate("retry", work, harm)

    def cancel(self, job_id: str, harm: Harm = NONE) -> None:
        def work() -> None:
            with suppress(UnknownJob):
                self.producer.cancel(job_id)

        self._operate("cancel", work, harm)

    def pass_time(self, seconds: float) -> None:
        """Everybody's clock goes on."""
        self.stripe.ahead_seconds += seconds
        self.shift_clock(seconds)

    def shift_clock(self, seconds: float) -> None:
        """The database's clock jumps: what is in the tables is so much longer ago, or less long."""
        self._saw("clock jumps" if seconds > 0 else "clock jumps back")
        self._set_back_seconds += max(-seconds, 0.0)
        with writing(self.eyes) as transaction:
            for table in metadata.sorted_tables:
                times = [column for column in table.c if column.name.endswith("_at")]
                values = {column.name: type_coerce(self._earlier(column, seconds), column.type) for column in times}
                transaction.change(update(table).values(values))

    def rotate_key(self) -> None:
        """The workers start anew with another key of the same account."""
        gateway = self.stripe.gateway(f"sk_test_shop_{len(self._gateways)}")
        self._gateways.append(gateway)
        key = Key("default", gateway.fingerprint("default"), livemode=False, account_id="acct_shop")
        with writing(self.eyes) as transaction:
            bind(transaction, [key])
        self._start_process()

    # What the dispatchers do.

    def lead(self, holder: str, harm: Harm = NONE) -> None:
        def work() -> None:
            with writing(self.engine) as transaction:
                leads = take_lead(transaction, holder)
            self._saw(f"{holder} {'leads' if leads else 'does not lead'}")
            show_life(self.engine, "w1", 16)

        self._operate("lead", work, harm)

    def dispatch(self, holder: str, harm: Harm = NONE, *, broker: str | None = None) -> None:
        """`broker`: it fails "before" it takes the first message, or "after"."""
        failing = [broker]

        def publish(jobs: Sequence[tuple[str, str]]) -> None:
            for job in jobs:
                seam("before publishing")
                fails = failing.pop() if failing else None
                if fails != "before":
                    self.messages.append(job)
                if fails is not None:
                    self._saw("publishing fails")
                    raise ConnectionError("away")
                seam("after publishing")

        self._operate(
            "dispatch", Dispatch(self.engine, settings_for(), publish, holder=holder).run_once, harm, holder=holder
        )

    def rescue(self, holder: str, harm: Harm = NONE) -> None:
        runner = self._runner

        def abandon(transaction: Transaction, held: Claim) -> object:
            self._saw("abandoned")
            return runner.abandon(transaction, held, POLICIES[Kind(held.job["kind"])])

        self._operate("rescue", lambda: rescue(self.engine, holder, abandon), harm, holder=holder)

    def relay(self, holder: str, harm: Harm = NONE, *, away: str | None = None) -> None:
        self.stream.away = away

        def work() -> None:
            try:
                Relay(self.engine, cast("redis.Redis", self.stream), STREAM, holder=holder).run_once()
            except redis.RedisError:
                self._saw("Redis away")

        self._operate("relay", work, harm, holder=holder)

    def prune(self, holder: str, harm: Harm = NONE) -> None:

        def work() -> None:
            prune = Prune(self.engine, cast("redis.Redis", self.stream), STREAM, RETENTION_DAYS, holder=holder)
            if prune.run_once():
                self._saw("pruned")

        self._operate("prune", work, harm, holder=holder)

    # What workers do.

    def attempt(self, message: tuple[str, str], harm: Harm = NONE, *, fault: str | None = None) -> None:
        kind, job_id = Kind(message[0]), message[1]
        runner, call = self._runner, self._create if kind is Kind.CUSTOMER_CREATE else fetch

        def work() -> None:
            recorded = runner.attempt(job_id, call, POLICIES[kind], worker="w1")
            if recorded is None:
                self._saw("nothing to claim")
            elif recorded.state is State.RUNNING:
                self._saw("late record")
            else:
                self._saw(f"attempt {recorded.outcome or recorded.code}")

        self._operate("attempt", work, harm, fault=fault, job_id=job_id)

    def _create(self, stripe: Gateway, request: Request) -> Answer:
        """The call of the task, before which a process may stop for any time."""
        seam(BEFORE_CREATE)
        answer = create(stripe, request)
        if isinstance(answer, NotAnswered) and answer.problem.code == TOO_LATE:
            self._saw("too late")
            if isinstance(current := getcurrent(), Operation):
                current.was_not_sent = True
        return answer

    def extend_leases(self, longest_seconds: float = LONGEST_SECONDS) -> None:
        """What the thread of a living process does for the attempts under way in it."""
        if self.leases.held:
            with writing(self.eyes) as transaction:
                extend(transaction, list(self.leases.held.values()), longest_seconds=longest_seconds)

    def go_on(self, operation: Operation, harm: Harm = NONE) -> None:
        """Let go on what was stopped, however long ago."""
        self.stopped.remove(operation)
        if operation.holder is not None and self._leader() != operation.holder:
            self._saw("two leaders")
        self._run(operation, harm)

    # What Stripe does of itself.

    def tell(self, event: Mapping[str, Any], harm: Harm = NONE) -> None:
        """Deliver one of Stripe's events, perhaps not for the first time."""

        def work() -> None:
            receipt = Intake(self.producer, priority="default").accept(dict(event))
            self._saw("doubled webhook" if receipt.duplicate else "webhook")

        self._operate("webhook", work, harm)

    # What is looked at.

    def rows(self, *conditions: Any) -> list[Row]:
        """The jobs that fulfil these conditions, in the order in which they were made."""
        with reading(self.eyes) as transaction:
            return transaction.rows(select(*jobs.c).where(*conditions).order_by(jobs.c.created_at, jobs.c.id))

    def check(self) -> None:
        """Everything that holds between any two statements."""
        about_to_send = [each.job_id for each in self.stopped if each.seam == BEFORE_CREATE]
        broken = self.witness.broken(about_to_send)
        assert not broken, "\n".join(broken)

    def work(self, looks: int) -> bool:
        """Do what is due, and let the clock go on to what is due next, so many times; whether all jobs are final."""
        for _ in range(looks):
            self.lead("a")
            self.dispatch("a")
            while self.messages:
                self.attempt(self.messages.pop(0))
            self.rescue("a")
            self.relay("a")
            self.check()
            if (seconds := self._until_something_is_due()) is None:
                return True
            self.pass_time(seconds)
        return False

    def heal(self) -> None:
        """No more harm: everything goes on, the clock too, until every job is final; then nothing is missing."""
        while self.stopped:
            self.go_on(self.stopped[0])
        self.rotate_key()
        told = 0
        while self.work(MOST_LOOKS) and told < len(self.stripe.events()):
            # Whatever is still unknown becomes known by Stripe's own word.
            for event in self.stripe.events():
                self.tell(event)
            told = len(self.stripe.events())
        # Whoever led last may be the one that was killed, and its lease begin when the clock had not been set back yet.
        self.pass_time(2 * LEASE_SECONDS + self._set_back_seconds)
        self.lead("a")
        self.relay("a")
        self.check()
        broken = self.witness.broken_at_the_end(self.stream.entries)
        assert not broken, "\n".join(broken)

    def end(self) -> None:
        """Leave no operation and no connection behind."""
        while self.stopped:
            self.stopped.pop().kill()
        for gateway in self._gateways:
            gateway.close()

    def _until_something_is_due(self) -> float | None:
        """Seconds until a waiting job is due or a lease runs out, one at least; None: all jobs are final."""
        moment = func.min(func.coalesce(jobs.c.lease_expires_at, jobs.c.due_at), type_=jobs.c.due_at.type)
        with reading(self.eyes) as transaction:
            row = transaction.row(
                select(moment.label("next"), now().label("now")).where(jobs.c.state.not_in(FINAL_STATES))
            )
        if row is None or row["next"] is None:
            return None
        return max(1.0, float((row["next"] - row["now"]).total_seconds()) + 0.01)

    # How operations run.

    def _operate(
        self,
        name: str,
        work: Callable[[], object],
        harm: Harm,
        *,
        fault: str | None = None,
        job_id: str | None = None,
        holder: str | None = None,
    ) -> None:
        self._run(Operation(name, work, fault=fault, job_id=job_id, holder=holder), harm)

    def _run(self, operation: Operation, harm: Harm) -> None:
        if harm.what == "stop" and len(self.stopped) >= MOST_STOPPED:
            harm = NONE
        operation.go_on(harm)
        self.witness.unsent[operation.job_id] += operation.was_not_sent
        operation.was_not_sent = False
        if not operation.dead:
            self.stopped.append(operation)
            self._saw(f"stopped {operation.name}")
        elif operation.killed:
            self._saw(f"killed {operation.name}")
            self.witness.unsent[operation.job_id] += operation.seam == BEFORE_CREATE
            self._start_process()

    def _leader(self) -> str | None:
        with reading(self.eyes) as transaction:
            row = transaction.row(
                select(leases.c.holder).where(leases.c.name == Lease.LEAD, leases.c.expires_at > now())
            )
        return None if row is None else str(row["holder"])

    def _start_process(self) -> None:
        """A worker process that knows nothing of what the one before it knew."""
        clocks = [lambda: self.stripe.ahead_seconds]
        self._runner = Runner(self.engine, self._gateways[-1], draw=lambda: self._draw, clocks=clocks)
        self._runner._leases = self.leases  # type: ignore[assignment]

    def _saw(self, what: str) -> None:
        self.seen[what] += 1

    def _earlier(self, column: ColumnElement[Any], seconds: float) -> ColumnElement[Any]:
        if self.eyes.dialect.name == "sqlite":
            return func.strftime("%Y-%m-%d %H:%M:%f000", column, f"{-seconds:f} seconds")
        return column - literal(timedelta(seconds=seconds), Interval)


def _empty(engine: Engine) -> None:
    with writing(engine) as transaction:
        for table in reversed(metadata.sorted_tables):
            transaction.change(delete(table))
