"""Which events are about a customer, and about which one: a table that an app may extend; pure.

Source: https://docs.stripe.com/api/events/types
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from customer_jobs.webhooks.event import Event

MOST_TYPES = 20  #: In one question to Stripe. Source: https://docs.stripe.com/api/events/list#list_events-types


def object_itself(event: Event) -> str | None:
    """The id of the event's object."""
    return _id_of(event.object)


def customer_of_object(event: Event) -> str | None:
    """The id in the object's `customer`, expanded or not."""
    return _id_of(event.object.get("customer"))


def related_customer(event: Event) -> str | None:
    """The id of the object that a thin event points at."""
    return _id_of(event.body.get("related_object"))


@dataclass(frozen=True)
class Rule:
    """Events of these types are about that customer."""

    types: str  #: A type; `*` stands for any part of it.
    customer_of: Callable[[Event], str | None]  #: None: not about a customer after all.


#: The first rule that finds a customer decides. Put one of your own before them, or name only those that you want.
RULES = (
    Rule("customer.created", object_itself),
    Rule("customer.updated", object_itself),
    Rule("customer.deleted", object_itself),
    Rule("v1.customer.created", related_customer),
    Rule("v1.customer.updated", related_customer),
    Rule("v1.customer.deleted", related_customer),
    # Invoices, charges, subscriptions, checkout sessions, payment intents and whatever else has a customer.
    Rule("*", customer_of_object),
)


def customer_of(event: Event, rules: Sequence[Rule]) -> str | None:
    """The id of the customer that an event is about, or None."""
    for rule in rules:
        if fnmatchcase(event.type, rule.types) and (found := rule.customer_of(event)):
            return found
    return None


def listing_types(rules: Sequence[Rule]) -> list[str]:
    """The types to ask Stripe for so that nothing is missed; empty asks for all of them."""
    # Stripe lists snapshots; a thin event's type is that of its snapshot after `v1.`.
    types = list(dict.fromkeys(rule.types.removeprefix("v1.") for rule in rules))
    exact = not any(wild in each for each in types for wild in "*?[")
    return types if exact and len(types) <= MOST_TYPES else []


def _id_of(value: Any) -> str | None:
    found = value.get("id") if isinstance(value, Mapping) else value
    return found if isinstance(found, str) and found else None
