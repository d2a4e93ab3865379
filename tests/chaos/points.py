"""The moments at which a process is killed, and how it dies at one: it watches its own calls, nobody else knows."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import unwrap
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Literal, cast

from kombu.transport.redis import PublishBatch

import worker.app
from customer_jobs import lifecycle
from customer_jobs.database import alone
from customer_jobs.lifecycle import Claim
from customer_jobs.producer import CustomerJobs
from worker import process
from worker.dispatcher import Dispatcher, prune, upkeep
from worker.dispatcher.relay import Relay
from worker.gateway import Gateway
from worker.leases import LeaseKeeper
from worker.runner import Runner
from worker.transport import Transport, _Adapter

DIE_AT = "DIE_AT"  #: The environment's name for the point.
LAST_WORDS = "LAST_WORDS"  #: And for the file that says that it was reached.

Function = Callable[..., object]


@dataclass(frozen=True)
class Point:
    """A function is called, or has returned something that is true."""

    moment: Literal["before", "after"]
    function: Function
    within: tuple[Function, ...] = ()  #: Only where all of these are under way.
    occurrence: int = 1

    def is_here(self, frame: FrameType, event: str, result: object) -> bool:
        """Whether a call or a return, as Python tells of it, is this point."""
        if frame.f_code is not self.code or event != ("call" if self.moment == "before" else "return"):
            return False
        if self.moment == "after" and not result:
            return False
        under_way = {each.f_code for each in _stack(frame)}
        return all(_code(each) in under_way for each in self.within)

    @property
    def code(self) -> CodeType:
        return _code(self.function)


#: In a task's thread.
IN_A_TASK = {
    "claimed": Point("after", lifecycle.claim),
    "claim committed": Point("before", LeaseKeeper.holding),
    "before the call": Point("before", Gateway.create_customer),
    "request sent": Point("before", _Adapter._response, within=(Gateway.create_customer,)),
    "Stripe did it": Point("before", Transport._hear, within=(Gateway.create_customer,)),
    "answer read": Point("before", Runner._until_recorded),
    "recorded": Point("after", lifecycle.succeed),
    "record committed": Point("before", process.wake),
}
#: While a message of another app becomes a job.
AT_THE_DOOR = {
    "before the INSERT": Point("before", CustomerJobs.enqueue),
    "INSERT committed": Point("after", CustomerJobs.enqueue),
}
#: In the dispatcher that leads; the first job that it dispatches is there to warm up, the others are published in two
#: round trips.
IN_THE_DISPATCHER = {
    "marked, not committed": Point("after", lifecycle.mark_dispatched, occurrence=2),
    "marks committed": Point("before", worker.app.publish, occurrence=2),
    "some published": Point("before", PublishBatch.flush, occurrence=3),
    "between XADD and the mark": Point("before", alone, within=(Relay.run_once,)),
    "rescuing": Point("after", upkeep._end_abandoned),
    "pruning": Point("after", prune._empty_jobs),
    "relaying at the end": Point("before", alone, within=(Relay.run_once, Dispatcher._hand_over)),
}
#: In a person's or an app's process.
IN_A_PRODUCER = {
    "cancelled, not committed": Point("after", lifecycle.cancel),
    "cancel committed": Point("after", CustomerJobs.cancel),
}
POINTS = IN_A_TASK | AT_THE_DOOR | IN_THE_DISPATCHER | IN_A_PRODUCER
#: In the thread that the process began with; watching it in vain would make every start take twice as long.
IN_THE_MAIN_THREAD = {*IN_A_PRODUCER}


def die_at(name: str, last_words: Path) -> None:
    """Let this process kill itself at a point, as SIGKILL does, once it has written down where."""
    point, lock = POINTS[name], threading.Lock()
    reached = 0

    def watch(frame: FrameType, event: str, result: Any) -> None:
        nonlocal reached
        if frame.f_code is code and point.is_here(frame, event, result):
            with lock:
                reached += 1
                if reached == point.occurrence:
                    last_words.write_text(f"{name}\n{_job_id(frame) or ''}\n")
                    os.kill(os.getpid(), signal.SIGKILL)

    code = point.code
    if name in IN_THE_MAIN_THREAD:
        sys.setprofile(watch)
    else:
        threading.setprofile(watch)


def _code(function: Function) -> CodeType:
    return cast("CodeType", getattr(unwrap(function), "__code__"))  # noqa: B009 - mypy knows only some functions as such


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _job_id(frame: FrameType) -> str | None:
    """Whose turn it was, if it was one job's."""
    for each in _stack(frame):
        if isinstance(job_id := each.f_locals.get("job_id"), str):
            return job_id
        if isinstance(held := each.f_locals.get("held"), Claim):
            return str(held.job["id"])
    return None
