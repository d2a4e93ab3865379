"""Every fault the sandbox can show, and how one is written; which request meets it is chosen elsewhere.

A fault is written as its name, where it takes time followed by how long (`hang_2s`, `slow_250ms`), and where a
script repeats it followed by how often (`500x2` or `500*2`). Scripts are faults in a row, one per attempt, separated
by commas, blanks, dots or double underscores, so that they fit into metadata, an e-mail's plus-tag or a customer id:
`rate_limit*2, 500_after`. After the last one every attempt passes. A part that begins with `id` is skipped, which
makes customer ids with one script distinct: `cus_sandbox_500__id42`.
"""

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

#: Where a fault strikes. `refuse`: instead of the deed, nothing is saved under the idempotency key. `lose`: after the
#: deed, whose true answer is saved under the key but does not arrive. `freeze`: the error is saved and replayed.
#: `pass`: the request goes on.
Moment = Literal["refuse", "lose", "freeze", "freeze_after", "pass"]

#: What happens on the wire instead of, or to, a whole answer.
Wire = Literal["", "reset", "close", "hang", "cut", "drip"]

#: How often a script may repeat one fault; more is surely a mistake.
MAX_TIMES = 10_000
#: Longer than any client's timeout, so nobody waits for it by design.
MAX_SECONDS = 3600.0

_STEP = re.compile(r"(?P<name>[a-z0-9_]+?)(?:_(?P<amount>\d+)(?P<unit>ms|s))?(?:[*x](?P<times>\d+))?")
_SEPARATORS = re.compile(r"__|[,.\s]+")


class UnknownFaultError(ValueError):
    """The name is not in the vocabulary; the message lists it."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One entry of the vocabulary, `seconds` being its default."""

    name: str
    moment: Moment
    means: str
    status: int = 0
    reason: str | None = None  #: Stripe-Rate-Limited-Reason
    body: Literal["error", "html", "empty", "garbage", "no_error", "deleted", "true"] = "error"
    wire: Wire = ""
    seconds: float = 0.0


def _limits() -> list[Fault]:
    reasons = {
        "rate_limit": "endpoint-rate",
        "rate_limit_global": "global-rate",
        "rate_limit_concurrency": "endpoint-concurrency",
        "rate_limit_global_concurrency": "global-concurrency",
        "rate_limit_resource": "resource-specific",
    }
    return [
        Fault(name, "refuse", f"429 by the limiter, reason {reason}", 429, reason) for name, reason in reasons.items()
    ]


def _before_and_after() -> list[Fault]:
    """The faults that exist before the deed and, named `…_after`, after it."""
    pairs = [
        *(
            (str(status), f"{status} with Stripe's envelope", status, "error", "", 0.0)
            for status in (500, 502, 503, 504)
        ),
        ("html_502", "502 with an HTML page, as a proxy answers", 502, "html", "", 0.0),
        ("no_error", "500 with JSON that has no `error`", 500, "no_error", "", 0.0),
        ("reset", "the connection is reset (RST) without an answer", 0, "true", "reset", 0.0),
        ("close", "the connection is closed without an answer", 0, "true", "close", 0.0),
        ("hang", "no answer for that long (60 s), then the connection is closed", 0, "true", "hang", 60.0),
    ]
    faults = []
    for name, means, status, body, wire, seconds in pairs:
        before = Fault(name, "refuse", f"{means}; nothing is done", status, None, body, wire, seconds)  # type: ignore[arg-type]
        faults += [
            before,
            replace(before, name=f"{name}_after", moment="lose", means=f"{means}; the deed is done"),
        ]
    return faults


_ALL = [
    *_limits(),
    Fault("lock_timeout", "refuse", "429 by an object lock: code lock_timeout, no reason header", 429),
    Fault("html_429", "refuse", "429 with an HTML page instead of JSON", 429, body="html"),
    Fault("key_in_use", "refuse", "409 idempotency_key_in_use", 409),
    Fault("400", "refuse", "400 parameter_invalid_empty", 400),
    Fault("401", "refuse", "401 without a code, as for a revoked key", 401),
    Fault("401_expired", "refuse", "401 api_key_expired", 401),
    Fault("402", "refuse", "402 card_declined with a decline_code", 402),
    Fault("403", "refuse", "403 for a missing permission", 403),
    Fault("403_account", "refuse", "403 account_invalid", 403),
    Fault("404", "refuse", "404 resource_missing", 404),
    Fault("404_other_mode", "refuse", "404 with the sentence about the other mode", 404),
    Fault("424", "refuse", "424 external dependency failed", 424),
    *_before_and_after(),
    Fault("frozen_500", "freeze", "500, saved under the key and replayed; nothing is done", 500),
    Fault("frozen_500_after", "freeze_after", "500, saved under the key and replayed; the deed is done", 500),
    Fault("cut", "lose", "the true answer, cut off in the middle; the deed is done", body="true", wire="cut"),
    Fault(
        "drip",
        "lose",
        "the true answer byte by byte over that long (5 s)",
        body="true",
        wire="drip",
        seconds=5.0,
    ),
    Fault("html", "lose", "200 with an HTML page; the deed is done", 200, body="html"),
    Fault("empty", "lose", "200 with an empty body; the deed is done", 200, body="empty"),
    Fault("garbage", "lose", "200 with broken JSON; the deed is done", 200, body="garbage"),
    Fault("deleted", "refuse", "200 with what is left of a deleted customer", 200, body="deleted"),
    Fault("slow", "pass", "that long (1 s) on top of the latency", seconds=1.0),
    Fault("ok", "pass", "nothing: this attempt passes"),
]
#: The vocabulary by name.
FAULTS: dict[str, Fault] = {fault.name: fault for fault in _ALL}
#: Shorter names for what is typed most.
ALIASES = {"429": "rate_limit", "409": "key_in_use"}


@lru_cache(maxsize=4096)
def parse_script(text: str) -> tuple[tuple[Fault, int], ...]:
    """The faults in their order, each with how often.

    Raises:
        UnknownFaultError: for a name outside the vocabulary, or a number out of range.
    """
    return tuple(_step(part) for part in _SEPARATORS.split(text.strip().lower()) if part and not part.startswith("id"))


def parse_fault(text: str) -> tuple[Fault, int | None]:
    """A single fault and how often, None when not said."""
    steps = parse_script(text)
    if len(steps) != 1:
        raise UnknownFaultError(f"expected one fault, not {text!r}")
    return steps[0][0], steps[0][1] if re.search(r"[*x]\d+\s*$", text) else None


def parse_probabilities(text: str) -> list[tuple[Fault, float]]:
    """`500_after:0.05,reset_after:0.05` as faults with their share of all requests.

    Raises:
        ValueError: for an unknown fault, or shares that are not numbers from 0 to 1 with a sum of at most 1.
    """
    shares = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, share = part.partition(":")
        try:
            shares.append((parse_fault(name)[0], float(share)))
        except UnknownFaultError:
            raise
        except ValueError:
            raise ValueError(f"expected fault:probability, not {part!r}") from None
    if not all(0.0 <= share <= 1.0 for _, share in shares) or sum(share for _, share in shares) > 1.0 + 1e-9:
        raise ValueError(f"probabilities must be from 0 to 1 and add up to at most 1: {text!r}")
    return shares


def fault_at(script: tuple[tuple[Fault, int], ...], attempt: int) -> Fault | None:
    """The fault of that attempt, counted from 0; None once the script is over."""
    for fault, times in script:
        if attempt < times:
            return fault
        attempt -= times
    return None


def _step(part: str) -> tuple[Fault, int]:
    match = _STEP.fullmatch(part)
    name = match["name"] if match else part
    fault = FAULTS.get(ALIASES.get(name, name))
    if match is None or fault is None:
        known = ", ".join(sorted([*FAULTS, *ALIASES]))
        raise UnknownFaultError(f"unknown sandbox fault {part!r}; known: {known}")
    times = int(match["times"] or 1)
    if not 1 <= times <= MAX_TIMES:
        raise UnknownFaultError(f"a fault repeats 1 to {MAX_TIMES} times, not {part!r}")
    if match["amount"]:
        seconds = int(match["amount"]) / (1000 if match["unit"] == "ms" else 1)
        if not fault.seconds or seconds > MAX_SECONDS:
            raise UnknownFaultError(f"{fault.name} takes no time, or not so much: {part!r}")
        fault = replace(fault, seconds=seconds)
    return fault, times
