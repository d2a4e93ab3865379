"""How many requests an account may make; pure, the clock is passed in. Answers nothing itself.

Stripe limits each endpoint and the account as a whole, by rate and by requests under way, and says in
Stripe-Rate-Limited-Reason which of them was met.

Source: https://docs.stripe.com/rate-limits
"""

import threading
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Limits:
    """The allowances; None is unlimited."""

    rate: float | None = None  #: requests per second and endpoint
    account_rate: float | None = None  #: requests per second over all endpoints
    bucket_seconds: float = 1.0  #: how many seconds of the rate an idle caller may use at once
    concurrency: int | None = None  #: requests under way per endpoint
    account_concurrency: int | None = None  #: requests under way over all endpoints

    def __post_init__(self) -> None:
        for name in ("rate", "account_rate", "concurrency", "account_concurrency"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above zero or None, not {value!r}")
        if not self.bucket_seconds >= 0:
            raise ValueError(f"bucket_seconds must not be negative, not {self.bucket_seconds!r}")


@dataclass(slots=True)
class _Meter:
    tokens: float
    refilled_at: float
    under_way: int = 0

    def refill(self, rate: float, capacity: float, now: float) -> bool:
        """Whether a whole token is there now."""
        self.tokens = min(capacity, self.tokens + max(0.0, now - self.refilled_at) * rate)
        self.refilled_at = now
        return self.tokens >= 1.0


class Limiter:
    """Meters per account and endpoint; safe to share between threads."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._meters: dict[tuple[str, str], _Meter] = {}
        self._lock = threading.Lock()

    @property
    def limits(self) -> Limits:
        return self._limits

    def set(self, limits: Limits) -> None:
        """Change the allowances; every bucket starts full, what is under way stays counted."""
        with self._lock:
            self._limits = limits
            for (_, endpoint), meter in self._meters.items():
                meter.tokens = self._capacity(endpoint)

    def admit(self, account: str, endpoint: str, now: float) -> str | None:
        """None, and the request counts as under way; or the reason for the 429, and nothing was used up."""
        limits = self._limits
        with self._lock:
            local, overall = self._meter(account, endpoint, now), self._meter(account, "", now)
            if limits.account_concurrency is not None and overall.under_way >= limits.account_concurrency:
                return "global-concurrency"
            if limits.concurrency is not None and local.under_way >= limits.concurrency:
                return "endpoint-concurrency"
            if limits.account_rate is not None and not overall.refill(limits.account_rate, self._capacity(""), now):
                return "global-rate"
            if limits.rate is not None and not local.refill(limits.rate, self._capacity(endpoint), now):
                return "endpoint-rate"
            for meter in (local, overall):
                meter.tokens -= 1.0
                meter.under_way += 1
            return None

    def leave(self, account: str, endpoint: str) -> None:
        """The admitted request has been answered."""
        with self._lock:
            for name in (endpoint, ""):
                meter = self._meters.get((account, name))
                if meter is not None:
                    meter.under_way -= 1

    def _meter(self, account: str, endpoint: str, now: float) -> _Meter:
        meter = self._meters.get((account, endpoint))
        if meter is None:
            meter = self._meters[account, endpoint] = _Meter(self._capacity(endpoint), now)
        return meter

    def _capacity(self, endpoint: str) -> float:
        rate = self._limits.rate if endpoint else self._limits.account_rate
        return max(1.0, (rate or 0.0) * self._limits.bucket_seconds)


def changed(limits: Limits, changes: dict[str, object]) -> Limits:
    """The limits with some replaced.

    Raises:
        ValueError: for an unknown name or a value that is not a number.
    """
    for name, value in changes.items():
        if name not in Limits.__dataclass_fields__:
            raise ValueError(f"unknown limit {name!r}; known: {', '.join(Limits.__dataclass_fields__)}")
        if isinstance(value, bool) or not (value is None or isinstance(value, int | float)):
            raise ValueError(f"{name} must be a number or null, not {value!r}")
    return replace(limits, **changes)  # type: ignore[arg-type]  # checked above
