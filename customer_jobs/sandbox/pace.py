"""How long a request takes, and the gate that holds requests in mid-air; knows nothing of Stripe."""

import random
import threading
from collections.abc import Callable

from customer_jobs.sandbox.journal import Request

Latency = float | tuple[float, float]


class StoppedError(Exception):
    """The sandbox stops: the request under way gets no answer."""


class Pace:
    """Latency, gate and stop signal, shared by all requests."""

    def __init__(self, latency_seconds: Latency, seed: int | None = None) -> None:
        self._random = random.Random(seed)  # noqa: S311  # spreads latency, repeatable by its seed
        self._condition = threading.Condition()
        self._held: Callable[[Request], bool] | None = None
        self._held_after = False
        self._waiting = 0
        self._stopped = threading.Event()
        self._low = self._high = 0.0
        self.set_latency(latency_seconds)

    def set_latency(self, latency_seconds: Latency) -> None:
        """A fixed time, or the bounds of an evenly spread one."""
        low, high = latency_seconds if isinstance(latency_seconds, tuple) else (latency_seconds, latency_seconds)
        if not 0.0 <= low <= high:
            raise ValueError(f"latency must be a number of seconds or (least, most), not {latency_seconds!r}")
        self._low, self._high = low, high

    def hold(self, predicate: Callable[[Request], bool] | None, *, after: bool) -> None:
        with self._condition:
            self._held, self._held_after = predicate or (lambda _: True), after

    def release(self) -> None:
        with self._condition:
            self._held = None
            self._condition.notify_all()

    def stop(self) -> None:
        with self._condition:
            self._stopped.set()
            self._condition.notify_all()

    def before_deed(self, request: Request, extra_seconds: float = 0.0) -> None:
        """Wait at the gate, then for the latency and the extra time."""
        self._pass_gate(request, after=False)
        self.pause(self._random.uniform(self._low, self._high) + extra_seconds if self._high else extra_seconds)

    def after_deed(self, request: Request) -> None:
        self._pass_gate(request, after=True)

    def pause(self, seconds: float) -> None:
        """Wait that long.

        Raises:
            StoppedError: the sandbox stopped meanwhile.
        """
        if seconds > 0.0 and self._stopped.wait(seconds):
            raise StoppedError

    def wait_until_held(self, count: int, timeout_seconds: float) -> None:
        with self._condition:
            if not self._condition.wait_for(lambda: self._waiting >= count, timeout_seconds):
                raise TimeoutError(f"{self._waiting} of {count} requests are held after {timeout_seconds:g} s")

    def _pass_gate(self, request: Request, *, after: bool) -> None:
        if self._held is None:
            return
        with self._condition:
            if self._holds(request, after=after):
                self._waiting += 1
                self._condition.notify_all()
                self._condition.wait_for(lambda: self._stopped.is_set() or not self._holds(request, after=after))
                self._waiting -= 1
        if self._stopped.is_set():
            raise StoppedError

    def _holds(self, request: Request, *, after: bool) -> bool:
        return self._held is not None and self._held_after == after and self._held(request)
