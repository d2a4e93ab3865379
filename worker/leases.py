"""Keeps the leases of the attempts that run in this process, and says when one can be held no longer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import structlog
from sqlalchemy import Engine

from customer_jobs import lifecycle
from customer_jobs.database import writing
from customer_jobs.lifecycle import Claim

EXTEND_EVERY_SECONDS = 5  #: A lease of 15 s survives one extension that fails, and a slow one.
#: Connecting and reading have ended by then: a call that takes longer hangs. A create not sent by then is not sent.
LONGEST_SECONDS = 120

log = structlog.get_logger(__name__)

Clock = Callable[[], float]  #: Seconds since any moment.


def _since_boot() -> float:
    # Linux' monotonic clock stands still while a laptop sleeps, macOS' does not.
    # Source: https://man7.org/linux/man-pages/man2/clock_gettime.2.html
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


#: The first cannot be set back. A virtual machine that is paused may find only the second put right when it goes on.
CLOCKS: tuple[Clock, ...] = (_since_boot, time.time)


def too_late_after(seconds: float, clocks: Sequence[Clock] = CLOCKS) -> Callable[[], bool]:
    """Whether so many seconds have passed since this call, by any of the clocks; asked now or after a long sleep."""
    ends = [(clock, clock() + seconds) for clock in clocks]
    return lambda: any(clock() >= end for clock, end in ends)


class LeaseKeeper:
    """Extends every held lease from one thread, which runs only while there is something to hold."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._held: dict[str, Claim] = {}
        self._lock = threading.Lock()
        self._running = False

    @contextmanager
    def holding(self, claim: Claim) -> Iterator[None]:
        """Keep the lease of a claim until the block ends."""
        with self._lock:
            if not self._running:
                threading.Thread(target=self._extend_forever, name="leases", daemon=True).start()
                self._running = True  # Unless the system has no thread left: the next attempt may find one.
            self._held[claim.lease_token] = claim
        try:
            yield
        finally:
            with self._lock:
                del self._held[claim.lease_token]

    def _extend_forever(self) -> None:
        pause = threading.Event()
        while True:
            pause.wait(EXTEND_EVERY_SECONDS)
            with self._lock:
                held = list(self._held.values())
                if not held:
                    self._running = False
                    return
            try:
                with writing(self._engine) as transaction:
                    lifecycle.extend(transaction, held, longest_seconds=LONGEST_SECONDS)
            except Exception as error:  # noqa: BLE001 - the next round comes in time: a lease outlives two of them
                log.warning("leases not extended", held=len(held), error=type(error).__name__)
