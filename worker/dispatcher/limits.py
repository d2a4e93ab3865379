"""Stripe's limits as token buckets; pure, the time passes by argument."""

from __future__ import annotations

from dataclasses import dataclass

#: A bucket never fills above what the limiter on the other side forgives; two calls may leave together.
CAPACITY_TOKENS = 2.0
#: Above this many calls per second a bucket of two would empty between two looks of the dispatcher.
CAPACITY_SECONDS = 0.08
#: What is handed out of a limit: the rest absorbs the jitter of the way to Stripe.
SHARE = 0.99


@dataclass(frozen=True)
class Bucket:
    """Tokens as they stood when the bucket was last looked at."""

    tokens: float
    rate: float  #: Calls per second that the limit allows.

    def refilled(self, elapsed_seconds: float) -> Bucket:
        """The bucket after some time; a clock that went backwards adds nothing."""
        gained = max(elapsed_seconds, 0.0) * self.rate * SHARE
        return Bucket(min(self.tokens + gained, self.capacity), self.rate)

    def spent(self, calls: int) -> Bucket:
        """The bucket after handing out so many calls."""
        return Bucket(self.tokens - calls, self.rate)

    @property
    def capacity(self) -> float:
        """Tokens it holds at most."""
        return max(CAPACITY_TOKENS, self.rate * CAPACITY_SECONDS)

    @property
    def calls(self) -> int:
        """How many calls may leave now."""
        # Adding up many small refills must not leave the last one a rounding error short.
        return max(int(self.tokens + 1e-6), 0)

    def seconds_until(self, calls: int = 1) -> float:
        """How long until so many calls may leave."""
        return max(calls - self.tokens, 0.0) / (self.rate * SHARE)
