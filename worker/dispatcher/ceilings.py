"""How many jobs may be in flight at once after Stripe said that too many were; pure, and no rate is kept here."""

from __future__ import annotations

from collections.abc import Mapping

from customer_jobs.lanes import Endpoint, Lane

RECOVERY_PER_SECOND = 1.0  #: Jobs in flight that are regained; Stripe publishes no number, so it is felt for.
LOWEST = 1  #: One job at a time finds out that the limit has gone.


class Ceilings:
    """The ceilings of endpoints and of whole accounts; there is none until Stripe has shown one."""

    def __init__(self, most: int) -> None:
        self._most = most  #: What the settings allow: a ceiling as high as that is none.
        self._ceilings: dict[Endpoint, float] = {}

    def recover(self, elapsed_seconds: float) -> None:
        """Let a few more be in flight."""
        raised = {key: each + RECOVERY_PER_SECOND * elapsed_seconds for key, each in self._ceilings.items()}
        self._ceilings = {key: each for key, each in raised.items() if each < self._most}

    def lower(self, key: Endpoint, flying: Mapping[Endpoint, int]) -> None:
        """Let half as many be in flight as there are."""
        self._ceilings[key] = max(flying.get(key, 0) // 2, LOWEST)

    def any(self) -> bool:
        """Whether Stripe has shown one that still holds."""
        return bool(self._ceilings)

    def concern(self, lane: Lane) -> bool:
        """Whether what is in flight may keep the lane's next job waiting."""
        return lane.endpoint in self._ceilings or lane.account in self._ceilings

    def room(self, lane: Lane, flying: Mapping[Endpoint, int]) -> int:
        """How many more jobs of a lane may be in flight."""
        rooms = (self._ceilings.get(key, self._most) - flying.get(key, 0) for key in (lane.endpoint, lane.account))
        return max(int(min(rooms)), 0)
