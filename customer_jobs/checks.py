"""What `health` and `doctor` find out, one check each, and how several are asked at once; no question lives here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import redis

from customer_jobs.errors import Unavailable


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"  #: Works, but not as it should in production.
    FAIL = "fail"  #: Does not work.
    OUT_OF_REACH = "out of reach"  #: Could not be asked.


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    level: Level
    detail: str  #: What was found; no secret and nothing of a customer's.
    remedy: str | None = None  #: One sentence for whoever is to mend it.

    @property
    def bad(self) -> bool:
        return self.level in {Level.FAIL, Level.OUT_OF_REACH}

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def ok(name: str, detail: str) -> Check:
    return Check(name, Level.OK, detail)


def warn(name: str, detail: str, remedy: str) -> Check:
    return Check(name, Level.WARN, detail, remedy)


def fail(name: str, detail: str, remedy: str) -> Check:
    return Check(name, Level.FAIL, detail, remedy)


def out_of_reach(name: str, error: Exception) -> Check:
    """What cannot be asked: the database or Redis."""
    detail = str(error) if isinstance(error, Unavailable | TimeoutError) else f"{type(error).__name__}: {error}"
    return Check(name, Level.OUT_OF_REACH, detail, "see that it runs, and that the setting names it")


def refused_by_redis(name: str, error: redis.ResponseError) -> Check:
    """What Redis answers to a command that it does not want to execute."""
    match error:
        case redis.OutOfMemoryError():
            return fail(name, f"Redis is full: {error}", "give Redis more memory, or remove what fills it")
        case redis.ReadOnlyError():
            return fail(name, f"Redis is a replica: {error}", "let REDIS_URL name the primary")
        case redis.exceptions.NoPermissionError():
            return fail(name, f"Redis refuses us: {error}", "give the user of REDIS_URL the rights it lacks")
        case _ if str(error).startswith("MISCONF"):
            return fail(name, f"Redis cannot save: {error}", "give its disk room, and see its log")
        case _:
            return fail(name, f"Redis refuses: {error}", "see the log of Redis")


def is_good(checks: Iterable[Check]) -> bool:
    """Whether none of them is bad."""
    return not any(check.bad for check in checks)


def at_once(calls: Mapping[str, Callable[[], Any]], *, seconds: float) -> dict[str, Any]:
    """What each call returned or raised by then, all made at the same time; a TimeoutError for one that hangs."""
    ended: dict[str, Any] = {}

    def make(name: str, call: Callable[[], Any]) -> None:
        try:
            ended[name] = call()
        except Exception as error:  # noqa: BLE001 - whoever asked gets it
            ended[name] = error

    deadline = time.monotonic() + seconds
    # Daemons: one that hangs must not keep the process.
    threads = [threading.Thread(target=make, args=each, daemon=True) for each in calls.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = TimeoutError(f"no answer within {seconds:g} s")
    return {name: ended.get(name, late) for name in calls}
