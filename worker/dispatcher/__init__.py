"""The dispatcher: runs beside the tasks in every worker; one of them leads, dispatches, relays, rescues and prunes."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable

import structlog
from sqlalchemy import Engine

from customer_jobs.database import Transaction, writing
from customer_jobs.lifecycle import Claim
from worker.dispatcher import upkeep
from worker.dispatcher.dispatch import PUBLISH_PAUSE_SECONDS, Dispatch, Look, Publish
from worker.dispatcher.door import Door
from worker.dispatcher.front import whole_again_at
from worker.dispatcher.leader import LOOK_EVERY_SECONDS, RENEW_EVERY_SECONDS, give_up_lead, show_looks, take_lead
from worker.dispatcher.prune import BATCH_SIZE as PRUNED_AT_ONCE
from worker.dispatcher.prune import Prune
from worker.dispatcher.relay import BATCH_SIZE, Relay, connect
from worker.dispatcher.wakeup import Wakeup, listen
from worker.logs import frames
from worker.settings import Settings

CLOCK_SECONDS = 0.5  #: Nothing waits longer than this for a wake-up that got lost.
#: While every thread is busy, looks begin so long after one another: one follows all the jobs that end meanwhile.
GATHER_JOBS_SECONDS = 0.03
#: Behind one that was just published, events gather for so many times what publishing took: a few milliseconds, and
#: more where there is much to do.
GATHER_EVENTS = 4
LIFE_EVERY_SECONDS = 2  #: Signs of life; a worker counts as silent after ten seconds.
RESCUE_EVERY_SECONDS = 1  #: A lease that ran out, or an event that nobody rang for, is noticed within a second.
PRUNE_EVERY_SECONDS = 60  #: Nothing is in a hurry to be forgotten.
PRUNE_PAUSE_SECONDS = 0.2  #: Between two batches, so that pruning leaves room for work.
PAUSE_AFTER_ERROR_SECONDS = 1.0  #: Before a loop goes on that failed.
#: What the loops may take to end, all together, and each thing that is done after them; the process ends without them.
STOP_SECONDS = 5

log = structlog.get_logger(__name__)


class Dispatcher:
    """The threads of one process; each does one thing, so that none waits for another's database or Redis."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        publish: Publish,
        *,
        worker: str,
        slots: int,
        abandon: Callable[[Transaction, Claim], object],
        dispatches: bool = True,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._worker = worker
        self._slots = slots
        self._abandon = abandon
        self._dispatches = dispatches
        # A worker that comes back under the same name is another holder.
        self._holder = f"{worker}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
        self._leads = threading.Event()
        self._looked_at: float | None = None  #: By the monotonic clock; None while another leads.
        self._trim_at = 0.0  #: When the stream is trimmed again, by the monotonic clock.
        self._all_overdue_at = 0.0  #: When all that is overdue is looked for again, by the monotonic clock.
        self._stopped = threading.Event()
        self._wakeup = Wakeup()
        self._dispatch = Dispatch(engine, settings, publish, holder=self._holder)
        redis = connect(settings.redis_url.get_secret_value())
        self._relay = Relay(engine, redis, settings.event_stream, holder=self._holder)
        # A connection of its own: it waits for messages while the others work.
        self._door = Door(connect(settings.redis_url.get_secret_value()))
        self._prune = Prune(engine, redis, settings.event_stream, settings.retention_days, holder=self._holder)
        self._threads: list[threading.Thread] = []

    def wake(self) -> None:
        """Look at once: an attempt was recorded, and a thread came free."""
        self._wakeup.job_ended()

    def start(self) -> None:
        """Begin; returns at once."""
        if self._slots:
            self._run_loop("life", self._life_once)
        if not self._dispatches:
            return
        channel = self._settings.database_schema
        self._run("listen", lambda: listen(self._engine, channel, self._wakeup, self._stopped))
        self._run_loop("lead", self._lead_once)
        self._run_loop("dispatch", self._dispatch_once)
        self._run_loop("relay", self._relay_once)
        self._run_loop("rescue", self._rescue_once)
        self._run_loop("door", self._door_once)
        self._run_loop("prune", self._prune_once)

    def stop(self) -> None:
        """Dispatch no more and let another lead; events are relayed until `close`."""
        self._stopped.set()
        self._wakeup.ring()
        give_up_at = time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, give_up_at - time.monotonic()))
        # Whoever is not signed off counts as silent ten seconds later.
        self._try("sign off", lambda: upkeep.say_goodbye(self._engine, self._worker))

    def close(self) -> None:
        """Publish what the last jobs left and give up the lead."""
        if self._leads.is_set():
            # Otherwise whoever leads next publishes them.
            self._try("publish the last events", self._hand_over)

    def _hand_over(self) -> None:
        with writing(self._engine) as transaction:
            take_lead(transaction, self._holder)
        self._relay.start_over()
        while self._relay.run_once():
            pass
        with writing(self._engine) as transaction:
            give_up_lead(transaction, self._holder)

    def _try(self, what: str, work: Callable[[], object]) -> None:
        """Do it, unless it fails, or takes longer than a database that answers."""

        def run() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - the process ends, with this done or not
                log.warning("not done at the end", what=what, error=type(error).__name__)

        thread = threading.Thread(target=run, name=f"dispatcher-{what}", daemon=True)
        thread.start()
        thread.join(STOP_SECONDS)
        if thread.is_alive():
            log.warning("not done at the end", what=what, error="it takes too long")

    def _lead_once(self) -> None:
        with writing(self._engine) as transaction:
            leads = take_lead(transaction, self._holder)
            looked_at = self._looked_at
            if leads and looked_at is not None:
                show_looks(transaction, self._holder, seconds_ago=time.monotonic() - looked_at)
        if leads != self._leads.is_set():
            log.info("leads" if leads else "leads no more", holder=self._holder)
            (self._leads.set if leads else self._leads.clear)()
            self._wakeup.ring()
        self._stopped.wait(RENEW_EVERY_SECONDS if leads and looked_at is not None else LOOK_EVERY_SECONDS)

    def _dispatch_once(self) -> None:
        self._wakeup.jobs.clear()
        # Until the look is over: a job that ends meanwhile may have ended too late for it.
        self._wakeup.awaiting_room = True
        began = time.monotonic()
        look = self._dispatch.run_once() if self._leads.is_set() else Look(0, leads=False)
        self._looked_at = time.monotonic() if look.leads else None
        self._wakeup.awaiting_room = look.full
        if look.full and look.dispatched:
            self._stopped.wait(max(began + GATHER_JOBS_SECONDS - time.monotonic(), 0))
        if look.broker_away:
            # Whatever rings meanwhile, it might be the jobs that were just put back.
            self._stopped.wait(PUBLISH_PAUSE_SECONDS)
            return
        pause = CLOCK_SECONDS if look.again_in_seconds is None else min(look.again_in_seconds, CLOCK_SECONDS)
        self._wakeup.jobs.wait(pause)

    def _relay_once(self) -> None:
        self._wakeup.events.clear()
        began = time.monotonic()
        published = self._relay.run_once() if self._leads.is_set() else 0
        if published == 0 and not self._stopped.is_set():  # Whose ring the first line may have silenced.
            self._wakeup.events.wait()
        elif published < BATCH_SIZE:
            self._stopped.wait(GATHER_EVENTS * (time.monotonic() - began))

    def _rescue_once(self) -> None:
        if self._leads.is_set():
            began = time.monotonic()
            lately = began < self._all_overdue_at
            overdue = upkeep.overdue(self._engine, lately=lately)
            if not lately:
                self._all_overdue_at = whole_again_at(began, time.monotonic())
            if overdue.events:
                self._relay.start_over()
            # A look at what ran out lately does not ask for events: the relay does.
            if overdue.events or lately:
                self._wakeup.events.set()
            if overdue.leases and upkeep.rescue(self._engine, self._holder, self._abandon):
                self._wakeup.ring()
        else:
            # Whoever comes to lead knows nothing of what ran out before.
            self._all_overdue_at = 0.0
        self._stopped.wait(RESCUE_EVERY_SECONDS)

    def _door_once(self) -> None:
        if not self._leads.is_set():
            self._stopped.wait(LOOK_EVERY_SECONDS)
        else:
            self._door.run_once()

    def _prune_once(self) -> None:
        if not self._leads.is_set():
            self._stopped.wait(LOOK_EVERY_SECONDS)
            return
        removed = self._prune.run_once()
        if time.monotonic() >= self._trim_at:
            self._trim_at = time.monotonic() + PRUNE_EVERY_SECONDS
            self._prune.trim_stream()
        self._stopped.wait(PRUNE_PAUSE_SECONDS if removed >= PRUNED_AT_ONCE else PRUNE_EVERY_SECONDS)

    def _life_once(self) -> None:
        upkeep.show_life(self._engine, self._worker, self._slots)
        self._stopped.wait(LIFE_EVERY_SECONDS)

    def _run_loop(self, name: str, once: Callable[[], None]) -> None:
        def run() -> None:
            while not self._stopped.is_set():
                try:
                    once()
                except Exception as error:  # noqa: BLE001 - the outermost loop: it goes on whatever happens
                    log.warning("failed, goes on", loop=name, error=type(error).__name__, frames=frames(error))
                    self._stopped.wait(PAUSE_AFTER_ERROR_SECONDS)

        self._run(name, run)

    def _run(self, name: str, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name=f"dispatcher-{name}", daemon=True)
        thread.start()
        self._threads.append(thread)
