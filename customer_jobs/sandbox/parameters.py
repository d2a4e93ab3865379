"""Which parameters each endpoint takes; how one is judged stands in `checks`.

Source: https://docs.stripe.com/api/customers/create, https://docs.stripe.com/api/customers/update,
https://docs.stripe.com/api/customers/list and https://docs.stripe.com/api/events/list
"""

from customer_jobs.sandbox.checks import (
    MAX_EMAIL,
    MAX_TEXT,
    Check,
    boolean,
    choice,
    email,
    expansions,
    integer,
    list_expansions,
    list_of,
    members,
    metadata,
    missing,
    moment,
    page_size,
    prefix,
    text,
    token,
)

#: Lengths in characters.
MAX_NAME, MAX_BUSINESS_NAME, MAX_PHONE = 256, 150, 20
#: Objects on a page when the caller does not say.
DEFAULT_PAGE = 10

ADDRESS = members({part: text() for part in ("city", "country", "line1", "line2", "postal_code", "state")})
INVOICE_SETTINGS = members(
    {
        "custom_fields": list_of(members({"name": text(40), "value": text(140)}, required=("name", "value"))),
        "default_payment_method": missing("PaymentMethod"),
        "footer": text(),
        "rendering_options": members(
            {
                "amount_tax_display": choice("exclude_tax", "include_inclusive_tax"),
                "template": missing("invoice rendering template"),
            }
        ),
    }
)
SHIPPING = members({"address": ADDRESS, "name": text(), "phone": text(MAX_PHONE)}, required=("address", "name"))
CASH_BALANCE = members(
    {"settings": members({"reconciliation_mode": choice("automatic", "manual", "merchant_default")})}
)
TAX = members({"ip_address": text(), "validate_location": choice("auto", "deferred", "immediately")})

_BOTH: dict[str, Check] = {
    "address": ADDRESS,
    "balance": integer,
    "business_name": text(MAX_BUSINESS_NAME),
    "cash_balance": CASH_BALANCE,
    "description": text(MAX_TEXT),
    "email": email,
    "expand": expansions,
    "individual_name": text(MAX_BUSINESS_NAME),
    "invoice_prefix": prefix,
    "invoice_settings": INVOICE_SETTINGS,
    "metadata": metadata,
    "name": text(MAX_NAME),
    "next_invoice_sequence": integer,
    "phone": text(MAX_PHONE),
    "preferred_locales": list_of(text()),
    "shipping": SHIPPING,
    "source": token,
    "tax": TAX,
    "tax_exempt": choice("exempt", "none", "reverse"),
    "validate": boolean,
}
CREATE: dict[str, Check] = _BOTH | {
    "payment_method": token,
    "tax_id_data": list_of(members({"type": text(), "value": text()}, required=("type", "value"))),
    "test_clock": missing("test clock"),
}
UPDATE: dict[str, Check] = _BOTH | {"default_source": missing("source")}
RETRIEVE: dict[str, Check] = {"expand": expansions}
NONE: dict[str, Check] = {}
_PAGE: dict[str, Check] = {
    "created": moment,
    "ending_before": text(),
    "limit": page_size,
    "starting_after": text(),
}
LIST: dict[str, Check] = _PAGE | {
    "email": text(MAX_EMAIL),
    "expand": list_expansions,
    "test_clock": missing("test clock"),
}
LIST_EVENTS: dict[str, Check] = _PAGE | {
    "delivery_success": boolean,
    "expand": list_expansions,
    "type": text(),
    "types": list_of(text()),
}
