"""What the sandbox's log of arrivals says about limits; all figures come from here, none from our tables."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.parts import Json, Stage

RATE = 25.0  #: Calls per second and endpoint. Source: https://docs.stripe.com/rate-limits
ENOUGH_SECONDS = 300.0  #: No row takes longer, or something is broken.


def let_through(log: Sequence[Json], endpoint: str) -> list[Json]:
    """The calls of an endpoint that the limiter admitted."""
    return [request for request in log if request["endpoint"] == endpoint and request["status"] != 429]


def turned_away(log: Sequence[Json], endpoint: str = "create") -> float:
    """The share of the calls of an endpoint that were answered 429."""
    statuses = [request["status"] for request in log if request["endpoint"] == endpoint]
    return statuses.count(429) / len(statuses)


def used(
    log: Sequence[Json], endpoint: str = "create", changes: Sequence[tuple[float, float]] = ((0.0, RATE),)
) -> float:
    """The share of what was allowed; changes: from when (seconds since 1970) there were so many calls per second."""
    arrived: list[float] = sorted(request["arrived_at"] for request in let_through(log, endpoint))
    until = [*(at for at, _ in changes[1:]), arrived[-1]]
    spans = [max(min(end, arrived[-1]) - max(at, arrived[0]), 0.0) for (at, _), end in zip(changes, until, strict=True)]
    return (len(arrived) - 1) / sum(rate * seconds for (_, rate), seconds in zip(changes, spans, strict=True))


def answered(stage: Stage, count: int, endpoint: str = "create") -> list[Json]:
    """The log, once so many calls of an endpoint have been let through and answered."""
    return stage.stripe.wait_until(lambda log: len(let_through(log, endpoint)) >= count, ENOUGH_SECONDS)


def speed(log: Sequence[Json]) -> float:
    """Calls per second."""
    arrived: list[float] = [request["arrived_at"] for request in let_through(log, "create")]
    return (len(arrived) - 1) / (max(arrived) - min(arrived))


def first_of(log: Sequence[Json], keys: dict[str, float]) -> dict[str, Json]:
    """The first request under each of these idempotency keys that is in the log."""
    return {request["idempotency_key"]: request for request in reversed(log) if request["idempotency_key"] in keys}
