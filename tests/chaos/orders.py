"""What apps ask for during a soak, and how they ask through a database that comes and goes."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from customer_jobs import CustomerJobs, Unavailable
from tests.chaos.site import KEYS, Site

CONNECTED_ACCOUNT = "acct_connected"
PATIENCE_SECONDS = 60.0  #: With a database that is away; an app would rather answer "try again".
PAUSE_SECONDS = 0.2  #: Between two tries.
#: Shares of all orders.
FETCHES, MISSING, WITH_EXTERNAL_ID, TWICE, CONNECTED = 0.4, 0.03, 0.6, 0.5, 0.1
#: Of forty orders two are creates that Stripe refuses: an address that is none, a card that is declined.
FORTY, REFUSALS = 40, {0: 400, 20: 402}


@dataclass(frozen=True)
class Order:
    """One job wanted, perhaps by two at once."""

    number: int
    credential: str
    priority: str
    customer_id: str | None  #: To fetch; None for a create.
    external_id: str | None
    stripe_account: str | None
    twice: bool
    refusal: int | None  #: The status with which Stripe refuses it, for good.

    @property
    def is_refused_create(self) -> bool:
        return self.refusal is not None and self.customer_id is None

    @property
    def email(self) -> str:
        tail = {None: "@example.com", 400: "", 402: "+sandbox.402x99@example.com"}[self.refusal]
        return f"customer-{self.number}{tail}"


def orders(count: int, chance: random.Random) -> list[Order]:
    """So many orders of both kinds, for several credentials."""
    return [_order(number, chance) for number in range(count)]


def _order(number: int, chance: random.Random) -> Order:
    refusal = REFUSALS.get(number % FORTY)
    fetches = refusal is None and chance.random() < FETCHES
    is_missing = fetches and chance.random() < MISSING
    has_external_id = not fetches and chance.random() < WITH_EXTERNAL_ID
    return Order(
        number,
        credential=chance.choice(sorted(KEYS)),
        priority=chance.choice(["urgent", "default", "low", "bulk"]),
        customer_id=f"cus_{'missing' if is_missing else 'known'}{number}" if fetches else None,
        external_id=f"user-{number}" if has_external_id else None,
        stripe_account=CONNECTED_ACCOUNT if chance.random() < CONNECTED else None,
        # What was refused leaves its external_id: the second to ask would get another job.
        twice=has_external_id and refusal is None and chance.random() < TWICE,
        refusal=404 if is_missing else refusal,
    )


def stock(site: Site, wanted: Sequence[Order]) -> None:
    """Let Stripe have the customers that are to be fetched."""
    for order in wanted:
        if order.customer_id is not None and order.refusal is None:
            account = order.stripe_account or f"acct_{KEYS[order.credential].rpartition('_')[2]}"
            site.sandbox.add_customer(order.customer_id, account=account)


class Producers:
    """Two apps; an order that is wanted twice is enqueued by both, at about the same time."""

    def __init__(self, site: Site) -> None:
        # Through the proxy: they lose their connections, too.
        self._apps = [CustomerJobs(site.database_url) for _ in range(2)]
        self._threads = ThreadPoolExecutor(len(self._apps), thread_name_prefix="producer")
        self.ids: dict[int, set[str]] = defaultdict(set)  #: Of the jobs, by order.
        self.failures = 0  #: Calls that met a database that was away.

    def __enter__(self) -> Producers:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        for app in self._apps:
            app.engine.dispose()

    def begin(self, batch: Sequence[Order], after_seconds: float = 0.0) -> list[Future[None]]:
        """Let both begin to enqueue the batch, after that time; each result is there when its app has."""
        twice = [order for order in batch if order.twice]
        once = [order for order in batch if not order.twice]
        shares = (twice + once[::2], twice + once[1::2])
        pairs = zip(self._apps, shares, strict=True)
        return [self._threads.submit(self._work, app, share, after_seconds) for app, share in pairs]

    def _work(self, app: CustomerJobs, share: Sequence[Order], after_seconds: float) -> None:
        time.sleep(after_seconds)
        for order in share:
            self.ids[order.number].add(self._enqueue(app, order))

    def _enqueue(self, app: CustomerJobs, order: Order) -> str:
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        is_sure = True
        while True:
            try:
                return (None if is_sure else _find(app, order)) or _enqueue(app, order)
            except Unavailable:
                if time.monotonic() > give_up_at:
                    raise
                self.failures += 1
                is_sure = False
                time.sleep(PAUSE_SECONDS)


def _find(app: CustomerJobs, order: Order) -> str | None:
    """The job of an order whose COMMIT may have been lost or not: without an external_id, its context tells."""
    return next((job.id for job in app.list(limit=1000) if job.context == {"order": order.number}), None)


def _enqueue(app: CustomerJobs, order: Order) -> str:
    options: dict[str, Any] = {
        "credential": order.credential,
        "stripe_account": order.stripe_account,
        "priority": order.priority,
        "context": {"order": order.number},
    }
    if order.customer_id is not None:
        return app.fetch_customer(order.customer_id, **options).id
    return app.create_customer({"email": order.email}, external_id=order.external_id, **options).id
