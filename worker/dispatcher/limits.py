"""Stripe's limits as token buckets, and how they give way and recover; pure, the time passes by argument."""

from __future__ import annotations

from dataclasses import dataclass, replace

#: A bucket never fills above what the limiter on the other side forgives; two calls may leave together.
CAPACITY_TOKENS = 2.0
#: Above this many calls per second a bucket of two would empty between two looks of the dispatcher.
CAPACITY_SECONDS = 0.08
#: What a look lasts beyond the moment of the next call is made good by the next look, so much of it at most: a database
#: that is far away costs nothing of a limit, and one that hangs lets no burst leave.
CATCH_UP_SECONDS = 0.25
#: What is handed out of a limit: the rest absorbs the jitter of the way to Stripe.
SHARE = 0.99
#: A limit that has been quiet for long is regained whole in so many seconds, a little at a time.
RECOVERY_SECONDS = 10.0
#: So long after Stripe last turned calls away the rate is only felt for, by this share of the limit each second; then
#: the steps grow, by that share more each second: near Stripe's limit a rate stays near it, and comes back soon.
FEEL_SECONDS = 3.0
FEEL_SHARE = 0.004
GROWTH_SHARE = 0.04
HALF = 0.5  #: What a rate that meets a limit is multiplied by: Stripe may have lowered it to anything.
A_LITTLE = 0.8  #: The same for one that is coming back: it was just below.
FLOOR_PER_SECOND = 1.0  #: However often it was slowed: one call a second finds out that the limit has gone.
#: A limiter answers with a few 429 now and then; this many in a second, and this share of the answers, are a limit.
SLOW_AFTER_ANSWERS = 3
SLOW_AFTER_SHARE = 0.1
#: A small rate makes few calls in a second: where this share of them is fewer than that, so many are a limit.
SLOW_AFTER_SHARE_OF_RATE = 0.2


@dataclass(frozen=True)
class Bucket:
    """Tokens and rate as they stood when the bucket was last looked at."""

    tokens: float
    limit: float  #: Calls per second that the settings allow.
    rate: float  #: Calls per second at present: the limit, or less after Stripe turned calls away.

    @classmethod
    def new(cls, limit: float) -> Bucket:
        """Begins with one token: neither with a burst nor with a wait."""
        return cls(tokens=1.0, limit=limit, rate=limit)

    def refilled(
        self, elapsed_seconds: float, quiet_seconds: float = float("inf"), late_seconds: float = 0.0
    ) -> Bucket:
        """The bucket after some time, so long after Stripe last turned calls away.

        So many seconds the next call was kept waiting by nothing but the look before: they count above the capacity.
        A clock that went backwards adds nothing.
        """
        elapsed = max(elapsed_seconds, 0.0)
        growth = min(FEEL_SHARE + GROWTH_SHARE * max(quiet_seconds - FEEL_SECONDS, 0.0), 1 / RECOVERY_SECONDS)
        rate = min(self.rate + self.limit * growth * elapsed, self.limit)
        # A limiter that turns calls away forgives no burst.
        catch_up = min(late_seconds, CATCH_UP_SECONDS) * self.rate * SHARE if self.rate == self.limit else 0.0
        tokens = min(self.tokens + elapsed * self.rate * SHARE, self.capacity + catch_up)
        return replace(self, tokens=tokens, rate=rate)

    def spent(self, calls: int) -> Bucket:
        """The bucket after handing out so many calls."""
        return replace(self, tokens=self.tokens - calls)

    def slowed(self, factor: float = HALF) -> Bucket:
        """The bucket after Stripe turned calls away."""
        rate = min(max(self.rate * factor, FLOOR_PER_SECOND), self.rate)  # A limit may be below the floor.
        return replace(self, tokens=min(self.tokens, 0.0), rate=rate)

    @property
    def capacity(self) -> float:
        """Tokens it holds at most."""
        return max(CAPACITY_TOKENS, self.limit * CAPACITY_SECONDS)

    @property
    def calls(self) -> int:
        """How many calls may leave now."""
        # Adding up many small refills must not leave the last one a rounding error short.
        return max(int(self.tokens + 1e-6), 0)

    def seconds_until(self, calls: int = 1) -> float:
        """How long until so many calls may leave."""
        return max(calls - self.tokens, 0.0) / (self.rate * SHARE)


def slowing(answers: int, rate_limited: int, *, rate: float, is_slowed: bool) -> float | None:
    """What the last second's answers multiply a rate by; None: they show no limit.

    A rate that was slowed and comes back meets the limit it was slowed for: one answer tells.
    """
    enough = SLOW_AFTER_ANSWERS if is_slowed else min(SLOW_AFTER_ANSWERS, rate * SLOW_AFTER_SHARE_OF_RATE)
    if rate_limited >= enough and rate_limited > SLOW_AFTER_SHARE * answers:
        return HALF
    return A_LITTLE if is_slowed and rate_limited else None
