"""Which request meets which fault; what a fault does is not known here.

First the customer chooses: the metadata key `sandbox`, or for people who can only type an e-mail the plus-tag in
`jenny+sandbox.429x2@example.com`, names a script that runs per idempotency key; a customer id that begins with
`cus_sandbox_` names one for its fetches. Then the rules apply that a test or the control API added, first the oldest.
Then chance, by the probabilities given at the start.
"""

import random
import re
import threading
from collections.abc import Hashable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from customer_jobs.sandbox.customers import Json
from customer_jobs.sandbox.faults import Fault, fault_at, parse_fault, parse_probabilities, parse_script
from customer_jobs.sandbox.forms import Params

METADATA_KEY = "sandbox"
MAGIC_ID = "cus_sandbox_"
EMAIL_TAG = re.compile(r"\+sandbox\.([a-z0-9_.*]+)@", re.IGNORECASE)


@dataclass(slots=True)
class Rule:
    """A fault for the requests that match; None matches all, `times` counts down to nothing."""

    fault: Fault
    method: str | None = None
    path: str | None = None  #: with `*` as in /v1/customers/*
    account: str | None = None  #: `acct_…` acted for
    times: int | None = None
    probability: float = 1.0

    def matches(self, method: str, path: str, account: str) -> bool:
        return (
            self.method in (None, method)
            and (self.path is None or fnmatchcase(path, self.path))
            and self.account in (None, account)
        )

    def document(self) -> Json:
        return {
            "fault": self.fault.name,
            "seconds": self.fault.seconds,
            "method": self.method,
            "path": self.path,
            "account": self.account,
            "times": self.times,
            "probability": self.probability,
        }


class Faults:
    """The rules, the counts of scripts under way, and chance; safe to share between threads."""

    def __init__(self, probabilities: str = "", seed: int | None = None) -> None:
        self._chances = parse_probabilities(probabilities)
        self._random = random.Random(seed)  # noqa: S311  # chance for tests, repeatable by its seed
        self._rules: list[Rule] = []
        self._attempts: dict[Hashable, int] = {}
        self._lock = threading.Lock()

    def add(
        self,
        fault: str,
        *,
        method: str | None = None,
        path: str | None = None,
        account: str | None = None,
        times: int | None = None,
        probability: float = 1.0,
    ) -> Rule:
        """A rule that holds from now on, `times` times or until `clear`.

        Raises:
            ValueError: for an unknown fault, or numbers out of range.
        """
        parsed, repeated = parse_fault(fault)
        times = repeated if times is None else times
        if times is not None and times < 1:
            raise ValueError(f"times must be at least 1, not {times!r}")
        if not 0.0 <= probability <= 1.0:
            raise ValueError(f"probability must be from 0 to 1, not {probability!r}")
        rule = Rule(parsed, method.upper() if method else None, path, account, times, probability)
        with self._lock:
            self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """No rules and no chance any more; scripts of customers go on."""
        with self._lock:
            self._rules.clear()
            self._chances = []

    def forget_attempts(self) -> None:
        """Every script begins anew."""
        with self._lock:
            self._attempts.clear()

    def rules(self) -> list[Rule]:
        with self._lock:
            return list(self._rules)

    def choose(self, method: str, path: str, account: str, script: str | None, attempts_of: Hashable) -> Fault | None:
        """The fault this request meets.

        Raises:
            UnknownFaultError: the script names something outside the vocabulary.
        """
        if script is not None:
            steps = parse_script(script)
            with self._lock:
                attempt = self._attempts.get(attempts_of, 0)
                self._attempts[attempts_of] = attempt + 1
            return fault_at(steps, attempt)
        if not self._rules and not self._chances:
            return None
        with self._lock:
            return self._by_rule(method, path, account) or self._by_chance()

    def _by_rule(self, method: str, path: str, account: str) -> Fault | None:
        for rule in self._rules:
            if rule.matches(method, path, account) and (
                rule.probability >= 1.0 or self._random.random() < rule.probability
            ):
                if rule.times is not None:
                    rule.times -= 1
                    if rule.times == 0:
                        self._rules.remove(rule)
                return rule.fault
        return None

    def _by_chance(self) -> Fault | None:
        if not self._chances:
            return None
        drawn = self._random.random()
        for fault, share in self._chances:
            if drawn < share:
                return fault
            drawn -= share
        return None


def script_of(params: Params, customer_id: str | None) -> str | None:
    """The script a request carries with it, in its metadata, its e-mail or its customer id."""
    metadata = params.get("metadata")
    if isinstance(metadata, dict) and isinstance(metadata.get(METADATA_KEY), str):
        return metadata[METADATA_KEY] or None
    email = params.get("email")
    if isinstance(email, str) and "+sandbox." in email.lower():
        tag = EMAIL_TAG.search(email)
        return tag[1] if tag else None
    if customer_id is not None and customer_id.startswith(MAGIC_ID):
        return customer_id.removeprefix(MAGIC_ID)
    return None
