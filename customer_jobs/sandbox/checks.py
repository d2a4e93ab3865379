"""How Stripe judges one parameter, and what it says to a wrong one; which endpoint takes which stands elsewhere.

Source: https://docs.stripe.com/error-codes and https://docs.stripe.com/api/metadata
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from customer_jobs.sandbox.forms import Params
from customer_jobs.sandbox.refusals import Refusal, card_declined, unknown_parameters

#: Lengths in characters.
MAX_EMAIL, MAX_TEXT = 512, 5000
MAX_METADATA_KEYS, MAX_METADATA_KEY, MAX_METADATA_VALUE = 50, 40, 500
MAX_PAGE = 100
#: Stripe expands at most four levels. Source: https://docs.stripe.com/expand
MAX_EXPAND_LEVELS = 4

EMAIL = re.compile(r"[^@\s]+@[^@\s.]+(?:\.[^@\s.]+)+")
#: What Stripe shows only when asked, and `invoice_settings`, whose payment method it can.
EXPANDABLE = re.compile(
    r"(?:cash_balance|default_source|discount|invoice_credit_balance|sources|subscriptions|tax|tax_ids|test_clock"
    r"|invoice_settings\.default_payment_method)(?:\.\w+)*"
)

#: Takes the parameter's full name and what was sent; returns what is stored.
Check = Callable[[str, Any], Any]


def text(limit: int = MAX_TEXT) -> Check:
    """A string; an empty one unsets."""

    def check(param: str, value: Any) -> str | None:
        if not isinstance(value, str):
            raise Refusal(400, f"Invalid string: {value}", param=param)
        if len(value) > limit:
            raise Refusal(400, f"Invalid string: {value[:10]}...; must be at most {limit} characters", param=param)
        return value or None

    return check


def email(param: str, value: Any) -> str | None:
    """An e-mail address, stray blanks refused."""
    cleaned: str | None = text(MAX_EMAIL)(param, value)
    if cleaned is not None and not EMAIL.fullmatch(cleaned):
        raise Refusal(400, f"Invalid email address: {cleaned}", code="email_invalid", param=param)
    return cleaned


def integer(param: str, value: Any) -> int:
    if not isinstance(value, str) or not re.fullmatch(r"-?[0-9]{1,18}", value):
        raise Refusal(400, f"Invalid integer: {value}", code="parameter_invalid_integer", param=param)
    return int(value)


def boolean(param: str, value: Any) -> bool:
    if value not in ("true", "false"):
        raise Refusal(400, f"Invalid boolean: {value}", param=param)
    return bool(value == "true")


def choice(*known: str) -> Check:
    def check(param: str, value: Any) -> str | None:
        if value and value not in known:
            listed = ", ".join(known[:-1]) + f", or {known[-1]}"
            raise Refusal(400, f"Invalid {param}: must be one of {listed}", param=param)
        return value or None

    return check


def prefix(param: str, value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Z0-9]{1,12}", value):
        raise Refusal(400, "Invoice prefixes must be 1-12 uppercase letters or numbers.", param=param)
    return value


def members(checks: Mapping[str, Check], required: tuple[str, ...] = ()) -> Check:
    """An object with these members; an empty string unsets it."""

    def check(param: str, value: Any) -> dict[str, Any] | None:
        if value == "":
            return None
        if not isinstance(value, dict):
            raise Refusal(400, "Invalid object", param=param)
        for name in required:
            if name not in value:
                full = f"{param}[{name}]"
                raise Refusal(400, f"Missing required param: {full}.", code="parameter_missing", param=full)
        return checked(value, checks, param)

    return check


def list_of(item: Check) -> Check:
    def check(param: str, value: Any) -> list[Any]:
        if value == "":
            return []
        if not isinstance(value, list):
            raise Refusal(400, "Invalid array", param=param)
        return [item(f"{param}[{index}]", child) for index, child in enumerate(value)]

    return check


def metadata(param: str, value: Any) -> dict[str, str]:
    """Keys and values as sent; an empty value unsets its key, an empty string in place of the object all."""
    if not isinstance(value, dict):
        if value == "":
            return {}
        raise Refusal(400, "Invalid object", param=param)
    for key, child in value.items():
        full = f"{param}[{key}]"
        if not isinstance(child, str):
            raise Refusal(400, f"Invalid string: {child}", param=full)
        if len(key) > MAX_METADATA_KEY:
            message = f"Metadata keys can have up to {MAX_METADATA_KEY} characters, but you passed in a key that is "
            raise Refusal(400, f"{message}{len(key)} characters. Invalid key: {key}", param=param)
        if len(child) > MAX_METADATA_VALUE:
            message = f"Metadata values can have up to {MAX_METADATA_VALUE} characters, but you passed in a value that "
            raise Refusal(400, f"{message}is {len(child)} characters. Invalid value: {child}", param=full)
    return value


def count_metadata(keys: Mapping[str, str]) -> None:
    """Refuses more keys than Stripe keeps."""
    if len(keys) > MAX_METADATA_KEYS:
        message = f"Metadata can have up to {MAX_METADATA_KEYS} keys, but you've set {len(keys)}."
        raise Refusal(400, message, param="metadata")


def expansions(param: str, value: Any) -> list[str]:
    """The properties to expand, each one that Stripe can."""
    paths: list[str] = [] if value == "" else value
    if not isinstance(paths, list):
        raise Refusal(400, "Invalid array", param=param)
    for path in paths:
        if isinstance(path, str) and path.count(".") >= MAX_EXPAND_LEVELS:
            raise Refusal(400, f"You cannot expand more than {MAX_EXPAND_LEVELS} levels of a property", param=param)
        if not isinstance(path, str) or not EXPANDABLE.fullmatch(path):
            raise Refusal(400, f"This property cannot be expanded ({path}).", param=param)
    return paths


def list_expansions(param: str, value: Any) -> list[str]:
    """The properties of a list's items to expand, without their `data.`."""
    paths: list[str] = [] if value == "" else value
    if not isinstance(paths, list):
        raise Refusal(400, "Invalid array", param=param)
    for path in paths:
        if not isinstance(path, str) or not path.startswith("data."):
            hint = f" You may want to try expanding 'data.{path}' instead." if EXPANDABLE.fullmatch(str(path)) else ""
            raise Refusal(400, f"This property cannot be expanded ({path}).{hint}", param=param)
    return expansions(param, [path.removeprefix("data.") for path in paths])


def page_size(param: str, value: Any) -> int:
    limit = integer(param, value)
    if limit < 1:
        message = f"This value must be greater than or equal to 1 (it currently is '{limit}')."
        raise Refusal(400, message, code="parameter_invalid_integer", param=param)
    if limit > MAX_PAGE:
        message = f"This value must be less than or equal to {MAX_PAGE} (it currently is '{limit}')."
        raise Refusal(400, message, code="parameter_invalid_integer", param=param)
    return limit


def moment(param: str, value: Any) -> dict[str, int]:
    """A range of seconds since 1970; a single number is that very second."""
    if isinstance(value, dict):
        return checked(value, dict.fromkeys(("gt", "gte", "lt", "lte"), integer), param)
    second = integer(param, value)
    return {"gte": second, "lte": second}


def token(param: str, value: Any) -> str | None:
    """A payment source: Stripe's test names are taken, the declined one declines, all else does not exist.

    Source: https://docs.stripe.com/testing
    """
    if value in ("tok_chargeDeclined", "pm_card_chargeDeclined"):
        raise card_declined()
    if value and not re.fullmatch(r"tok_[a-z]+|pm_card_[a-z]+", str(value)):
        kind = "PaymentMethod" if param == "payment_method" else "token"
        raise Refusal(400, f"No such {kind}: '{value}'", code="resource_missing", param=param)
    return str(value) or None


def missing(kind: str) -> Check:
    """A reference to something the sandbox never has."""

    def check(param: str, value: Any) -> None:
        if value != "":
            raise Refusal(400, f"No such {kind}: '{value}'", code="resource_missing", param=param)

    return check


def checked(params: Params, checks: Mapping[str, Check], parent: str = "") -> dict[str, Any]:
    """The parameters as they are stored.

    Raises:
        Refusal: 400 for the unknown ones, all named at once; else for the first one that is wrong.
    """
    unknown = [f"{parent}[{name}]" if parent else name for name in params if name not in checks]
    if unknown:
        raise unknown_parameters(unknown)
    return {name: checks[name](f"{parent}[{name}]" if parent else name, value) for name, value in params.items()}
