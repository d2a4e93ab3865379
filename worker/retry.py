"""When a job is tried again, and when no more: a pure function of what has happened so far."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

BASE_SECONDS = 1.0  #: The first retry comes within a second.
CAP_SECONDS = 3600.0  #: An hours-long outage is met by one attempt an hour and job, spread over the hour.
#: Stripe may forget an idempotency key after 24 h and would then execute anew; an hour is left for slow clocks.
#: Source: https://docs.stripe.com/api/idempotent_requests
CREATE_WINDOW = timedelta(hours=23)
LONGEST_RATE_LIMITED = timedelta(days=3)  #: A limit that lasts longer is a wrong limit, not a rush.
MOST_ABANDONED = 5  #: A job that has taken five workers down with it would take down the next.


@dataclass(frozen=True)
class RetryPolicy:
    """Full-jitter exponential backoff.

    Source: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """

    base_seconds: float = BASE_SECONDS
    cap_seconds: float = CAP_SECONDS
    window: timedelta | None = None  #: No attempt is sent later than this after the first one.

    def delay_seconds(self, failures: int, random: float) -> float:
        """How long to wait after so many failures in a row; `random` is uniform in [0, 1)."""
        # 2 ** 1024 is no float any more; the cap is reached long before.
        ceiling = min(self.cap_seconds, self.base_seconds * 2.0 ** min(failures - 1, 64))
        return ceiling * random


@dataclass(frozen=True)
class TryAgain:
    """Another attempt is due in `delay_seconds`."""

    delay_seconds: float


@dataclass(frozen=True)
class GiveUp:
    """No further attempt; `reason` is for people."""

    reason: str


@dataclass(frozen=True)
class History:
    """What a retry depends on."""

    attempt: int  #: Attempts used up, the present one included.
    max_attempts: int
    since_first_sent: timedelta | None = None  #: None while certainly nothing was executed.
    abandoned: int = 0  #: Attempts whose worker fell silent.
    rate_limited: int = 0  #: Rate-limited answers in a row, the present one included.
    rate_limited_for: timedelta = timedelta(0)  #: Since the first of that row.


def plan_retry(history: History, policy: RetryPolicy, random: float) -> TryAgain | GiveUp:
    """The next attempt after a transient failure or an abandoned attempt."""
    if history.abandoned >= MOST_ABANDONED:
        return GiveUp(f"{history.abandoned} attempts were abandoned by their workers")
    if history.attempt >= history.max_attempts:
        return GiveUp(f"all {history.max_attempts} attempts are used up")
    delay = policy.delay_seconds(history.attempt, random)
    return _within_window(history, policy, delay)


def plan_rate_limited(history: History, policy: RetryPolicy, random: float) -> TryAgain | GiveUp:
    """The next attempt after Stripe's limiter turned one away; it used up no attempt."""
    if history.rate_limited_for >= LONGEST_RATE_LIMITED:
        return GiveUp(f"rate-limited for {LONGEST_RATE_LIMITED.days} days")
    return _within_window(history, policy, policy.delay_seconds(history.rate_limited, random))


def _within_window(history: History, policy: RetryPolicy, delay_seconds: float) -> TryAgain | GiveUp:
    if policy.window is None or history.since_first_sent is None:
        return TryAgain(delay_seconds)
    left = (policy.window - history.since_first_sent).total_seconds()
    if left <= 0:
        return GiveUp(f"{policy.window} have passed since the first attempt")
    return TryAgain(min(delay_seconds, left))
