"""What a fault answers instead of the truth; when and to whom is decided elsewhere."""

from collections.abc import Callable

from customer_jobs.sandbox import refusals
from customer_jobs.sandbox.faults import Fault
from customer_jobs.sandbox.keys import Caller, lacks_permission, no_access
from customer_jobs.sandbox.refusals import Refusal

HTML_PAGE = b"<html><head><title>Bad Gateway</title></head><body><h1>The server is on a break</h1></body></html>"
EMPTY_PARAMETER = (
    "You passed an empty string for 'sandbox'. We assume empty values are an attempt to unset a parameter; "
    "however 'sandbox' cannot be unset. You should remove 'sandbox' from your request or supply a value."
)
EXTERNAL_FAILURE = "The request couldn't be completed due to a failure in a dependency external to Stripe."


def instead(fault: Fault, caller: Caller, item_id: str, idempotency_key: str | None) -> Refusal:
    """The error in Stripe's envelope that a fault answers before the deed."""
    if fault.reason is not None:
        return refusals.rate_limited(fault.reason)
    key = caller.masked_key
    other_mode = "test" if caller.livemode else "live"
    answers: dict[str, Callable[[], Refusal]] = {
        "lock_timeout": refusals.lock_timeout,
        "key_in_use": lambda: refusals.key_in_use(idempotency_key or ""),
        "400": lambda: Refusal(400, EMPTY_PARAMETER, code="parameter_invalid_empty", param="sandbox"),
        "401": lambda: Refusal(401, f"Invalid API Key provided: {key}"),
        "401_expired": lambda: Refusal(401, f"Expired API Key provided: {key}", code="api_key_expired"),
        "402": refusals.card_declined,
        "403": lambda: lacks_permission(caller, "rak_customer_write"),
        "403_account": lambda: no_access(key, caller.acting_for),
        "404": lambda: refusals.no_such_customer(item_id),
        "404_other_mode": lambda: refusals.no_such_customer(item_id, other_mode=other_mode),
        "424": lambda: Refusal(424, EXTERNAL_FAILURE, type_="api_error"),
    }
    return answers.get(fault.name, lambda: refusals.server_error(fault.status))()


def spoiled(fault: Fault, body: bytes) -> tuple[str, bytes]:
    """Content type and body of an answer that is not Stripe's."""
    match fault.body:
        case "html":
            return "text/html", HTML_PAGE
        case "empty":
            return "application/json", b""
        case "garbage":
            return "application/json", body[: len(body) // 2] + b'"\x00'
        case _:
            return "application/json", b'{"message": "something went wrong"}'
