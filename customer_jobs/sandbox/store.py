"""Customers and events per account and mode, in memory; the clock is passed in, HTTP is unknown here."""

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from typing import Any

from customer_jobs.sandbox.customers import (
    Json,
    changed_customer,
    deleted_customer,
    differences,
    new_customer,
    new_id,
)
from customer_jobs.sandbox.keys import Mode
from customer_jobs.sandbox.parameters import DEFAULT_PAGE
from customer_jobs.sandbox.refusals import Refusal, no_such_customer

#: The version that the stripe library of today pins; a request may ask for another.
API_VERSION = "2026-10-28.endive"


class Shelf:
    """Objects in the order of their creation, paged newest first in time that does not grow with them."""

    def __init__(self) -> None:
        self.live: dict[str, Json] = {}
        self._ids: list[str] = []
        self._created: list[int] = []
        self._positions: dict[str, int] = {}
        self._by_email: dict[str, dict[int, None]] = {}

    def add(self, item: Json) -> None:
        position = self._positions[item["id"]] = len(self._ids)
        self._ids.append(item["id"])
        self._created.append(item["created"])
        self.live[item["id"]] = item
        if item.get("email"):
            self._by_email.setdefault(item["email"], {})[position] = None

    def replace(self, item: Json) -> None:
        old, position = self.live[item["id"]], self._positions[item["id"]]
        if old.get("email") != item.get("email"):
            self._by_email.get(old.get("email") or "", {}).pop(position, None)
            if item.get("email"):
                self._by_email.setdefault(item["email"], {})[position] = None
        self.live[item["id"]] = item

    def remove(self, item_id: str) -> Json:
        item = self.live.pop(item_id)
        self._by_email.get(item.get("email") or "", {}).pop(self._positions[item_id], None)
        return item

    def knows(self, item_id: str) -> bool:
        """Whether it is here or once was."""
        return item_id in self._positions

    def page(self, params: Json, keep: Callable[[Json], bool] = lambda _: True) -> tuple[list[Json], bool]:
        """A page and whether there are more; params are the checked ones of a list."""
        low, high = self._range(params.get("created") or {})
        after, before = params.get("starting_after"), params.get("ending_before")
        for cursor, name in ((after, "starting_after"), (before, "ending_before")):
            if cursor is not None and cursor not in self._positions:
                raise no_such_customer(cursor, param=name)
        if after is not None:
            high = min(high, self._positions[after])
        if before is not None:
            low = max(low, self._positions[before] + 1)
        positions: Iterable[int] = range(low, high)
        if params.get("email") is not None:
            positions = sorted(p for p in self._by_email.get(params["email"], ()) if low <= p < high)
        backwards = before is not None
        limit = params.get("limit", DEFAULT_PAGE)
        found: list[Json] = []
        for position in positions if backwards else reversed(positions):  # type: ignore[call-overload]
            item = self.live.get(self._ids[position])
            if item is not None and keep(item):
                found.append(item)
                if len(found) > limit:
                    break
        page = found[:limit]
        return (page[::-1] if backwards else page), len(found) > limit

    def _range(self, created: dict[str, int]) -> tuple[int, int]:
        low, high = 0, len(self._created)
        for bound, value in created.items():
            if bound == "gte":
                low = max(low, bisect_left(self._created, value))
            elif bound == "gt":
                low = max(low, bisect_right(self._created, value))
            elif bound == "lte":
                high = min(high, bisect_right(self._created, value))
            else:
                high = min(high, bisect_left(self._created, value))
        return low, high


class Store:
    """All accounts in both modes; safe to share between threads."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._customers: dict[tuple[str, Mode], Shelf] = {}
        self._events: dict[tuple[str, Mode], Shelf] = {}

    def create(self, account: str, mode: Mode, params: Json, cause: Json) -> tuple[Json, Json]:
        """The new customer and its event; cause is the event's `request`."""
        with self._lock:
            created = int(self._clock())
            customer = new_customer(new_id("cus_"), created, livemode=mode == "live", params=params)
            self._shelf(account, mode).add(customer)
            return customer, self.add_event(account, mode, "customer.created", customer, cause)

    def ensure(self, account: str, mode: Mode, customer_id: str) -> None:
        """A customer with this very id is there; nobody is told of it."""
        with self._lock:
            if not self._shelf(account, mode).knows(customer_id):
                self.add(account, mode, customer_id, {"email": f"{customer_id}@example.com", "name": "Sandbox"})

    def add(self, account: str, mode: Mode, customer_id: str, params: Json) -> Json:
        """A new customer with this very id; nobody is told of it.

        Raises:
            ValueError: it is there already, or was.
        """
        with self._lock:
            shelf = self._shelf(account, mode)
            if shelf.knows(customer_id):
                raise ValueError(f"{customer_id!r} is taken")
            customer = new_customer(customer_id, int(self._clock()), livemode=mode == "live", params=params)
            shelf.add(customer)
            return customer

    def retrieve(self, account: str, mode: Mode, customer_id: str) -> Json:
        """The customer, or what is left of a deleted one.

        Raises:
            Refusal: 404, saying so when the other mode has it.
        """
        shelf = self._shelf(account, mode)
        customer = shelf.live.get(customer_id)
        if customer is not None:
            return customer
        if shelf.knows(customer_id):
            return deleted_customer(customer_id)
        raise self._missing(account, mode, customer_id)

    def update(self, account: str, mode: Mode, customer_id: str, params: Json, cause: Json) -> tuple[Json, Json]:
        """The changed customer and its event."""
        with self._lock:
            shelf = self._shelf(account, mode)
            before = shelf.live.get(customer_id)
            if before is None:
                raise self._missing(account, mode, customer_id)
            after = changed_customer(before, params)
            shelf.replace(after)
            previous = differences(before, after)
            return after, self.add_event(account, mode, "customer.updated", after, cause, previous)

    def delete(self, account: str, mode: Mode, customer_id: str, cause: Json) -> tuple[Json, Json]:
        """What is left of the customer and the event, which shows it whole."""
        with self._lock:
            shelf = self._shelf(account, mode)
            if customer_id not in shelf.live:
                raise self._missing(account, mode, customer_id)
            customer = shelf.remove(customer_id)
            event = self.add_event(account, mode, "customer.deleted", customer, cause)
            return deleted_customer(customer_id), event

    def list_customers(self, account: str, mode: Mode, params: Json) -> tuple[list[Json], bool]:
        with self._lock:
            return self._shelf(account, mode).page(params)

    def list_events(self, account: str, mode: Mode, params: Json) -> tuple[list[Json], bool]:
        patterns = [*params.get("types", ()), *([params["type"]] if params.get("type") else ())]
        with self._lock:
            return self._event_shelf(account, mode).page(params, lambda event: _matches(event["type"], patterns))

    def event(self, account: str, mode: Mode, event_id: str) -> Json:
        event = self._event_shelf(account, mode).live.get(event_id)
        if event is None:
            raise Refusal(404, f"No such event: '{event_id}'", code="resource_missing", param="id")
        return event

    def add_event(
        self, account: str, mode: Mode, type_: str, item: Json, cause: Json, previous: Json | None = None
    ) -> Json:
        """The event, kept for GET /v1/events.

        Source: https://docs.stripe.com/api/events/object
        """
        data: Json = {"object": item}
        if previous is not None:
            data["previous_attributes"] = previous
        event: Json = {
            "id": new_id("evt_", 24),
            "object": "event",
            "api_version": API_VERSION,
            "created": int(self._clock()),
            "data": data,
            "livemode": mode == "live",
            "pending_webhooks": 0,
            "request": cause,
            "type": type_,
        }
        with self._lock:
            self._event_shelf(account, mode).add(event)
        return event

    def accounts(self) -> list[tuple[str, Mode]]:
        """Every account and mode that has been asked for customers."""
        with self._lock:
            return list(self._customers)

    def all_customers(self, account: str, mode: Mode) -> list[Json]:
        """The live customers, oldest first."""
        with self._lock:
            return list(self._shelf(account, mode).live.values())

    def find(self, customer_id: str) -> tuple[str, Mode]:
        """The account and mode of a live customer.

        Raises:
            KeyError: nobody has it.
        """
        with self._lock:
            for world, shelf in self._customers.items():
                if customer_id in shelf.live:
                    return world
        raise KeyError(customer_id)

    def clear(self) -> None:
        with self._lock:
            self._customers.clear()
            self._events.clear()

    def _missing(self, account: str, mode: Mode, customer_id: str) -> Refusal:
        other: Mode = "test" if mode == "live" else "live"
        there = self._shelf(account, other).live
        return no_such_customer(customer_id, other_mode=other if customer_id in there else None)

    def _shelf(self, account: str, mode: Mode) -> Shelf:
        with self._lock:
            return self._customers.setdefault((account, mode), Shelf())

    def _event_shelf(self, account: str, mode: Mode) -> Shelf:
        with self._lock:
            return self._events.setdefault((account, mode), Shelf())


def _matches(type_: str, patterns: list[Any]) -> bool:
    """Whether an event's type is asked for; `customer.*` asks for a whole family."""
    if not patterns:
        return True
    return any(type_ == p or (p.endswith(".*") and type_.startswith(p[:-1])) for p in patterns)
