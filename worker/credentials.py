"""What the table knows of Stripe keys: which mode and account a name is bound to, and which are paused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy import null, select, update

from customer_jobs.database import Transaction
from customer_jobs.errors import InvalidSetting
from customer_jobs.lifecycle import Claim
from customer_jobs.problems import Problem
from customer_jobs.schema import credentials
from customer_jobs.sql import now
from customer_jobs.vocabulary import KEY_REFUSED

#: Behind the account of a credential while the key seen last is another than the one it was told for: it is still the
#: only account that the name may stand for, but nobody knows that it is this key's.
OF_ANOTHER_KEY = "?"

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Key:
    """A key as a worker may show it."""

    credential: str
    fingerprint: str
    livemode: bool
    account_id: str | None  #: None where Stripe did not say: out of reach, or a restricted key.


def bind(transaction: Transaction, keys: Iterable[Key]) -> dict[str, str]:
    """The account of each credential, where it is known.

    Writes down keys seen for the first time; a new key of the same account lifts the pause that the old one caused.

    Raises InvalidSetting for a key of another mode or account than its name stood for: its jobs would meet customers
    of another world.
    """
    accounts: dict[str, str] = {}
    for key in keys:
        variable = "STRIPE_API_KEY" if key.credential == "default" else f"STRIPE_API_KEY_{key.credential.upper()}"
        values = {"livemode": key.livemode, "account_id": key.account_id, "key_fingerprint": key.fingerprint}
        statement = transaction.insert(credentials).values(name=key.credential, **values).on_conflict_do_nothing()
        transaction.change(statement)
        query = select(*credentials.c).where(credentials.c.name == key.credential).with_for_update()
        known = transaction.rows(query)[0]
        if known["livemode"] != key.livemode:
            was, now_is = ("live", "test") if known["livemode"] else ("test", "live")
            raise InvalidSetting(
                f"{variable} is a {now_is} key, but in this database credential {key.credential!r} stands for a {was} "
                f"key; use a {was} key, or give the {now_is} key a name of its own: STRIPE_API_KEY_<NAME>"
            )
        stands_for = known["account_id"] and known["account_id"].removesuffix(OF_ANOTHER_KEY)
        if None not in (stands_for, key.account_id) and stands_for != key.account_id:
            raise InvalidSetting(
                f"{variable} belongs to {key.account_id}, but in this database credential {key.credential!r} stands "
                f"for {stands_for}; use a key of that account, or give this one a name of its own: "
                "STRIPE_API_KEY_<NAME>"
            )
        account_id = key.account_id
        if account_id is None and known["key_fingerprint"] == key.fingerprint:
            account_id = known["account_id"]  # Stripe did not say this time; the same key speaks for the same account.
        elif account_id is None and stands_for is not None:
            account_id = stands_for + OF_ANOTHER_KEY
        if account_id is not None and not account_id.endswith(OF_ANOTHER_KEY):
            accounts[key.credential] = account_id
        changes: dict[str, Any] = {"account_id": account_id, "key_fingerprint": key.fingerprint}
        # A pause by hand has other reasons than the key.
        if known["key_fingerprint"] != key.fingerprint and (known["reason"] or "").startswith(KEY_REFUSED):
            changes |= {"paused_at": null(), "reason": null()}
        transaction.change(update(credentials).where(credentials.c.name == key.credential).values(**changes))
    return accounts


def pause(transaction: Transaction, held: Claim, problem: Problem) -> None:
    """Let the jobs of a credential wait whose key Stripe refused; a job sent with an older key pauses nothing."""
    name = held.job["credential"]
    reason = f"{KEY_REFUSED}: {problem.http_status} {problem.code or problem.type}"
    same_key = credentials.c.key_fingerprint == held.key_fingerprint
    statement = update(credentials).where(credentials.c.name == name, same_key, credentials.c.paused_at.is_(None))
    if transaction.change(statement.values(paused_at=now(), reason=reason)):
        log.error("credential paused", credential=name, reason=reason, remedy="start the workers with a valid key")


def has_to_wait(job: Mapping[str, Any], fingerprint: str, *, was_refused: bool) -> bool:
    """Whether a job just read must not be tried with this key: Stripe refused it, and nobody said to try again.

    The table knows of the pause of the key that was seen last; a worker that still holds an older one, which Stripe
    has refused, leaves the jobs to the others.
    """
    if job["key_fingerprint"] is None:
        return False
    return job["key_paused_at"] is not None or (was_refused and job["key_fingerprint"] != fingerprint)
