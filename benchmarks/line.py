"""The lines of a table that a benchmark prints; measures nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """One figure and what it should be."""

    what: str
    count: int  #: Calls, jobs or looks it comes of.
    figure: float
    unit: str
    turned_away: float | None  #: The share of calls answered 429; None where there is none to speak of.
    target: str = ""
    reached: bool | None = None  #: None for what has no target.

    @classmethod
    def of_allowance(
        cls,
        what: str,
        count: int,
        used: float,
        turned_away: float,
        least: float | None = None,
        most_turned_away: float = 1.0,
    ) -> Line:
        """A share of an allowance; without a least share it is a peer's."""
        if least is None:
            return cls(what, count, used * 100, "% used", turned_away)
        target = f">= {least:.0%} used, <= {most_turned_away:.1%} 429"
        reached = used >= least and turned_away <= most_turned_away
        return cls(what, count, used * 100, "% used", turned_away, target, reached)

    @property
    def cells(self) -> tuple[str, ...]:
        places = 1 if self.figure >= 10 else 2
        figure = f"{self.figure:,.{places}f} {self.unit}"
        away = "" if self.turned_away is None else f"{self.turned_away:.2%}"
        said = {None: "", True: "yes", False: "no"}[self.reached]
        return self.what, f"{self.count:,}", figure, away, self.target, said


HEAD = ("what", "N", "figure", "429", "target", "reached")
TO_THE_RIGHT = {1, 2, 3}


def table(lines: Sequence[Line]) -> str:
    """All lines under a head, in columns."""
    cells = [HEAD, *(line.cells for line in lines)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            text.rjust(width) if place in TO_THE_RIGHT else text.ljust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )
