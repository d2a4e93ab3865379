"""What was missed: Stripe's list of events since a moment, each taken in like a delivery.

Stripe keeps events for 30 days. Source: https://docs.stripe.com/api/events
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import stripe

from customer_jobs import __version__
from customer_jobs.environment import setting
from customer_jobs.errors import CustomerJobsError, InvalidSetting, Unavailable
from customer_jobs.producer import CustomerJobs
from customer_jobs.webhooks.event import read_event
from customer_jobs.webhooks.intake import Intake
from customer_jobs.webhooks.rules import RULES, Rule, customer_of, listing_types
from customer_jobs.webhooks.secrets import KEY, api_key

PAGE_SIZE = 100  #: Stripe's largest page. Source: https://docs.stripe.com/api/pagination
READ_TIMEOUT_SECONDS = 30
TRIES = 8  #: Of one page: workers use the same allowance, so being turned away is to be expected.
FIRST_PAUSE_SECONDS = 0.5  #: Before a page is asked for again, doubled each time up to …
LAST_PAUSE_SECONDS = 8.0
#: There may be thousands, and nobody waits for one of them.
PRIORITY = "low"


@dataclass
class CaughtUp:
    """What came of it."""

    listed: int = 0  #: Events that Stripe listed.
    known: int = 0  #: About a customer, and taken in before.
    missed: int = 0  #: About a customer, and taken in now.
    jobs: int = 0  #: Fetches of those customers.


def catch_up(
    jobs: CustomerJobs,
    since: datetime,
    *,
    credential: str = "default",
    stripe_account: str | None = None,
    rules: Sequence[Rule] = RULES,
    pause: Callable[[float], None] = time.sleep,
) -> CaughtUp:
    """Take in the events since then that never arrived. Broken off, it may be run again.

    The key is STRIPE_API_KEY, or that of the credential; with a connected account, the events of that account.
    Raises InvalidSetting, CustomerJobsError where Stripe refuses, Unavailable.
    """
    intake = Intake(jobs, credential, rules, priority=PRIORITY)
    params: dict[str, Any] = {"created": {"gte": int(since.timestamp())}, "limit": PAGE_SIZE}
    if types := listing_types(rules):
        params["types"] = types
    result = CaughtUp()
    found = set()
    for event in _events(_client(credential), params, stripe_account, credential, pause):
        result.listed += 1
        if stripe_account is not None:
            event["account"] = stripe_account  # In its own list an account goes without saying.
        if customer_of(read_event(event), rules) is None:
            continue
        receipt = intake.accept(event)
        if receipt.duplicate:
            result.known += 1
        else:
            result.missed += 1
            found.add(receipt.job_id)
    result.jobs = len(found - {None})
    return result


def _events(
    client: stripe.StripeClient,
    params: dict[str, Any],
    stripe_account: str | None,
    credential: str,
    pause: Callable[[float], None],
) -> Iterator[dict[str, Any]]:
    options = {"stripe_account": stripe_account} if stripe_account else {}
    while True:
        page = _page(client, params, options, credential, pause)
        yield from page["data"]
        if not page["has_more"] or not page["data"]:
            return
        params = {**params, "starting_after": page["data"][-1]["id"]}


def _page(
    client: stripe.StripeClient,
    params: dict[str, Any],
    options: dict[str, Any],
    credential: str,
    pause: Callable[[float], None],
) -> Any:
    for number in range(TRIES):
        try:
            return client.v1.events.list(params, options).last_response.data  # type: ignore[arg-type,union-attr]
        except stripe.StripeError as error:
            transient = isinstance(error, stripe.APIConnectionError | stripe.RateLimitError)
            if not transient and (error.http_status or 500) < 500:
                raise _refusal(error, credential) from error
            if number == TRIES - 1:
                raise Unavailable(f"Stripe gives no list of events ({type(error).__name__})") from error
        pause(min(FIRST_PAUSE_SECONDS * 2**number, LAST_PAUSE_SECONDS))
    raise AssertionError("the last try returns or raises")


def _refusal(error: stripe.StripeError, credential: str) -> CustomerJobsError:
    if error.http_status == 403:
        remedy = "the key may not read events: allow it to, or use another"
    elif error.http_status == 401:
        remedy = f"the key of credential {credential!r} is not valid"
    else:
        remedy = "it cannot be asked like that"
    return CustomerJobsError(f"Stripe refused to list events (HTTP {error.http_status}): {remedy}")


def _client(credential: str) -> stripe.StripeClient:
    key = api_key(credential)
    if key is None:
        name = KEY if credential == "default" else f"{KEY}_{credential.upper()}"
        raise InvalidSetting(f"{name} is not set; for example: export {name}=rk_test_…")
    stripe.enable_telemetry = False  # It writes a file under HOME, and fails where there is none.
    stripe.set_app_info("customer-jobs", version=__version__)
    return stripe.StripeClient(
        key,
        base_addresses={"api": setting("STRIPE_API_BASE") or "https://api.stripe.com"},
        max_network_retries=0,
        http_client=stripe.RequestsClient(timeout=READ_TIMEOUT_SECONDS),
    )
