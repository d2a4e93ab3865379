"""Spaces the calls of one process: jobs that were handed out together leave for Stripe one after the other."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Spacing:
    """Spaces the calls of one process (generic cell rate algorithm): tokens that arrive together leave one by one.

    Source: https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm
    """

    rate: float  #: Calls per second.
    tolerance: float = 3.0  #: Calls that may leave before their time.
    next_at: float = 0.0  #: The theoretical time of the next call, by any monotonic clock, in seconds.

    def reserved(self, now: float) -> tuple[Spacing, float]:
        """The spacing with one more call in it, and how many seconds that call has to wait."""
        interval = 1 / self.rate
        due = max(self.next_at, now)
        return replace(self, next_at=due + interval), max(due - self.tolerance * interval - now, 0.0)


class Pace:
    """Makes the threads of a process wait for their turn, endpoint by endpoint."""

    def __init__(self) -> None:
        self._spacings: dict[Hashable, Spacing] = {}
        self._lock = threading.Lock()

    def wait(self, endpoint: Hashable, rate: float) -> None:
        """Return when it is this call's turn: at once, unless several leave together."""
        with self._lock:
            spacing = self._spacings.get(endpoint) or Spacing(rate)
            self._spacings[endpoint], seconds = spacing.reserved(time.monotonic())
        if seconds > 0:
            time.sleep(seconds)
