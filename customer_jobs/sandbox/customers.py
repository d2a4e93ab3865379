"""The customer object as Stripe shows it, made and changed; never mutated, so a snapshot is a reference.

Source: https://docs.stripe.com/api/customers/object
"""

import secrets
import string
from typing import Any

from customer_jobs.sandbox.checks import count_metadata

Json = dict[str, Any]

_ALPHABET = (string.ascii_letters + string.digits).encode()
#: Every byte onto a letter or digit, so one system call makes an id.
_LETTERS = bytes(_ALPHABET[byte % len(_ALPHABET)] for byte in range(256))
_CAPITALS = bytes((string.ascii_uppercase + string.digits).encode()[byte % 36] for byte in range(256))

#: What a new customer has before its parameters are applied.
_INVOICE_SETTINGS = {
    "custom_fields": None,
    "default_payment_method": None,
    "footer": None,
    "rendering_options": None,
}
_ADDRESS = dict.fromkeys(("city", "country", "line1", "line2", "postal_code", "state"))


def new_id(prefix: str, length: int = 14) -> str:
    """An id such as `cus_NffrFeUfNV2Hib`."""
    return prefix + secrets.token_bytes(length).translate(_LETTERS).decode()


def new_customer(customer_id: str, created: int, *, livemode: bool, params: Json) -> Json:
    """A customer with every field Stripe documents; params are the checked ones."""
    customer: Json = {
        "id": customer_id,
        "object": "customer",
        "address": None,
        "balance": 0,
        "created": created,
        "currency": None,
        "default_source": new_id("card_", 24) if params.get("source") else None,
        "delinquent": False,
        "description": None,
        "discount": None,
        "email": None,
        "invoice_prefix": secrets.token_bytes(8).translate(_CAPITALS).decode(),
        "invoice_settings": _INVOICE_SETTINGS,
        "livemode": livemode,
        "metadata": {},
        "name": None,
        "next_invoice_sequence": 1,
        "phone": None,
        "preferred_locales": [],
        "shipping": None,
        "tax_exempt": "none",
        "test_clock": None,
    }
    return changed_customer(customer, params)


def changed_customer(customer: Json, params: Json) -> Json:
    """The customer with the checked params applied.

    Raises:
        Refusal: 400 when it would end with more metadata keys than Stripe keeps.
    """
    changed = dict(customer)
    for name, value in params.items():
        if name in ("expand", "source", "payment_method", "tax", "tax_id_data", "validate", "cash_balance"):
            continue
        if name == "metadata":
            merged = {**customer["metadata"], **value} if value else {}
            changed["metadata"] = {key: child for key, child in merged.items() if child != ""}
            count_metadata(changed["metadata"])
        elif name == "address":
            changed["address"] = None if value is None else _ADDRESS | (customer["address"] or {}) | value
        elif name == "shipping":
            changed["shipping"] = None if value is None else _shipping(value)
        elif name == "invoice_settings":
            changed["invoice_settings"] = customer["invoice_settings"] | (value or {})
        elif name == "tax_exempt":
            changed["tax_exempt"] = value or "none"
        else:
            changed[name] = value
    return changed


def differences(before: Json, after: Json) -> Json:
    """`previous_attributes` of an update: the old values, metadata by key."""
    previous: Json = {name: before.get(name) for name in after if before.get(name) != after[name]}
    if "metadata" in previous:
        old, new = before["metadata"], after["metadata"]
        previous["metadata"] = {
            key: old.get(key) for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)
        }
    return previous


def expanded(customer: Json, paths: list[str]) -> Json:
    """The customer with what Stripe shows only when asked; the sandbox has none of it and shows it empty."""
    if not paths or customer.get("deleted"):
        return customer
    url = f"/v1/customers/{customer['id']}"
    extras: Json = {
        "cash_balance": None,
        "invoice_credit_balance": {},
        "sources": _empty_list(f"{url}/sources"),
        "subscriptions": _empty_list(f"{url}/subscriptions"),
        "tax": {
            "automatic_tax": "unrecognized_location",
            "ip_address": None,
            "location": None,
            "provider": "stripe",
        },
        "tax_ids": _empty_list(f"{url}/tax_ids"),
    }
    wanted = {path.partition(".")[0] for path in paths}
    return customer | {name: value for name, value in extras.items() if name in wanted}


def deleted_customer(customer_id: str) -> Json:
    """What is left of a deleted customer: a 200 without its fields."""
    return {"id": customer_id, "object": "customer", "deleted": True}


def _shipping(value: Json) -> Json:
    return {
        "address": _ADDRESS | (value["address"] or {}),
        "name": value["name"],
        "phone": value.get("phone"),
    }


def _empty_list(url: str) -> Json:
    return {"object": "list", "data": [], "has_more": False, "total_count": 0, "url": url}
