"""Keeps the leases of the attempts that run in this process, so that nobody takes them for abandoned."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from sqlalchemy import Engine

from customer_jobs import lifecycle
from customer_jobs.database import writing
from customer_jobs.lifecycle import Claim

EXTEND_EVERY_SECONDS = 5  #: A lease of 15 s survives two extensions that fail.
LONGEST_SECONDS = 120  #: A call that takes longer hangs; connecting and reading have ended by then.

log = structlog.get_logger(__name__)


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
            self._held[claim.lease_token] = claim
            if not self._running:
                self._running = True
                threading.Thread(target=self._extend_forever, name="leases", daemon=True).start()
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
