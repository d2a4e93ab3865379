"""What may be asked of Stripe: every check of what a producer hands in, made at enqueue and again at claim; pure."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from customer_jobs.errors import InvalidJob
from customer_jobs.sql import Unreadable
from customer_jobs.vocabulary import Kind, Priority

MAX_PAYLOAD_BYTES = 64 * 1024  #: A customer is a few kilobytes; anything near this is a mistake or an attack.
MAX_CONTEXT_BYTES = 32 * 1024  #: It travels in events, which stay under 64 KiB as a whole.
MAX_AGE_SECONDS = 10**9  #: Thirty years; a larger number overflows a database's interval.
#: What both databases and Python can hold, whatever the zone.
EARLIEST, LATEST = datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)
MAX_DEPTH = 8  #: Stripe's deepest parameter, invoice_settings[rendering_options][…], has three levels.

#: Source: https://docs.stripe.com/metadata#data-limits; two of the fifty keys are ours.
MAX_METADATA_KEYS = 48
MAX_METADATA_KEY_LENGTH = 40
MAX_METADATA_VALUE_LENGTH = 500

#: Ours in `metadata`: how a customer is found again. They win over a producer's.
METADATA_JOB_ID = "customer_jobs_id"
METADATA_EXTERNAL_ID = "external_id"

#: Options of the request, not of the customer. Inside a body, the older calling style of the stripe library lifts them
#: out of it, so that whoever chooses the body would choose key and account.
REFUSED_PARAMETERS = frozenset(
    {
        "api_key",
        "content_type",
        "headers",
        "id",
        "idempotency_key",
        "max_network_retries",
        "stripe_account",
        "stripe_context",
        "stripe_version",
    }
)

#: The prefix is no contract of Stripe's; the alphabet keeps an id from being another path of the API.
_CUSTOMER_ID = re.compile(r"[A-Za-z0-9_-]{1,255}")
_STRIPE_ACCOUNT = re.compile(r"acct_[A-Za-z0-9_]{1,250}")
_CREDENTIAL = re.compile(r"[a-z0-9_]{1,64}")
_SECRET = re.compile(r"(?<![A-Za-z0-9])([sr]k_(test|live)|whsec)_", re.IGNORECASE)
_EXPAND = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+){0,3}")  # Source: https://docs.stripe.com/expand (at most four levels)


def check_create(body: Any, external_id: str | None = None) -> dict[str, Any]:
    """The payload of a `customer.create`; the e-mail stripped, everything else as it was."""
    clean = _json_object("body", body)
    for name in sorted(REFUSED_PARAMETERS & clean.keys()):
        raise InvalidJob(name, "is not a parameter of a customer; leave it out of the body")
    if isinstance(email := clean.get("email"), str):
        clean["email"] = email.strip()
    elif email is not None:
        raise InvalidJob("email", f"must be text, not {_type(email)}")
    _check_metadata(clean.get("metadata"))
    check_external_id(external_id)
    return {"body": clean}


def check_fetch(customer_id: Any, expand: Any = (), max_age_seconds: Any = None) -> dict[str, Any]:
    """The payload of a `customer.fetch`; `expand` without repetitions, in its order."""
    if not isinstance(customer_id, str) or not _CUSTOMER_ID.fullmatch(customer_id) or _SECRET.match(customer_id):
        raise InvalidJob("customer_id", f"must be an id such as 'cus_Jh3d8yZi678c2', not {_shown(customer_id)}")
    if isinstance(expand, str) or not isinstance(expand, Sequence):
        raise InvalidJob("expand", f"must be a list of field names, not {_shown(expand)}")
    for each in expand:
        if not isinstance(each, str) or not _EXPAND.fullmatch(each) or _SECRET.match(each):
            raise InvalidJob("expand", f"must name fields such as 'default_source', not {_shown(each)}")
    payload: dict[str, Any] = {"customer_id": customer_id, "expand": list(dict.fromkeys(expand))}
    if max_age_seconds is not None:
        if (
            not isinstance(max_age_seconds, int | float)
            or isinstance(max_age_seconds, bool)
            or not 0 <= max_age_seconds <= MAX_AGE_SECONDS
        ):
            raise InvalidJob(
                "max_age_seconds",
                f"must be a number of seconds from 0 to {MAX_AGE_SECONDS:,}, not {_shown(max_age_seconds)}",
            )
        payload["max_age_seconds"] = max_age_seconds
    _carried("expand", payload, MAX_PAYLOAD_BYTES)
    return payload


def check_payload(kind: Any, payload: Any) -> dict[str, Any]:
    """The same checks on a payload that is already a row, which plain SQL may have written."""
    if isinstance(payload, Unreadable):
        raise InvalidJob("payload", payload.problem)
    if not isinstance(payload, dict):
        raise InvalidJob("payload", f"must be a JSON object, not {_type(payload)}")
    match kind:
        case Kind.CUSTOMER_CREATE:
            _only("payload", payload, {"body"})
            if "body" not in payload:
                raise InvalidJob("payload", 'must hold "body", the parameters of the customer')
            return check_create(payload["body"])
        case Kind.CUSTOMER_FETCH:
            _only("payload", payload, {"customer_id", "expand", "max_age_seconds"})
            expand = payload.get("expand")
            return check_fetch(
                payload.get("customer_id"), () if expand is None else expand, payload.get("max_age_seconds")
            )
        case _:
            raise InvalidJob("kind", f"unknown kind {_shown(kind)}; known are {', '.join(Kind)}")


def payload_digest(checked: Any) -> str:
    """SHA-256 of a payload, the same for the same parameters in any order."""
    canonical = json.dumps(checked, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


def check_context(context: Any) -> Any:
    """The producer's own JSON value."""
    _check_json("context", context, brackets_refused=False)
    return _carried("context", context, MAX_CONTEXT_BYTES)


def check_external_id(external_id: Any) -> str | None:
    if external_id is None:
        return None
    if not isinstance(external_id, str) or not external_id.strip() or len(external_id) > 255:
        raise InvalidJob("external_id", f"must be text of 1 to 255 characters, not {_shown(external_id)}")
    _check_text("external_id", external_id)
    return external_id


def check_credential(credential: Any) -> str:
    if not isinstance(credential, str) or not _CREDENTIAL.fullmatch(credential) or _SECRET.match(credential):
        # A key pasted by mistake must not come back in a message.
        raise InvalidJob("credential", "must be the name of a credential such as 'default' or 'eu' (a-z, 0-9, _)")
    return credential


def check_stripe_account(stripe_account: Any) -> str | None:
    if stripe_account is None:
        return None
    if not isinstance(stripe_account, str) or not _STRIPE_ACCOUNT.fullmatch(stripe_account):
        raise InvalidJob("stripe_account", f"must be a connected account, 'acct_…', not {_shown(stripe_account)}")
    return stripe_account


def names_of(job: Mapping[str, Any]) -> dict[str, str | None]:
    """`credential` and `stripe_account` of a row, as logs and events may show them.

    Plain SQL takes anything for a name; what is none may be a key.
    """
    checks = {"credential": check_credential, "stripe_account": check_stripe_account}
    return {name: _unless_invalid(check, job[name] or None) for name, check in checks.items()}


def _unless_invalid(check: Callable[[Any], str | None], name: Any) -> str | None:
    try:
        return check(name)
    except InvalidJob:
        return "…"


def check_priority(priority: Any) -> int:
    """1 to 4, from the number or the name."""
    names = {member.name.lower(): member.value for member in Priority}
    if isinstance(priority, str) and priority.lower() in names:
        return names[priority.lower()]
    if isinstance(priority, int) and not isinstance(priority, bool) and priority in names.values():
        return int(priority)
    raise InvalidJob("priority", f"must be one of {', '.join(names)} or 1 to 4, not {_shown(priority)}")


def check_due_at(due_at: Any) -> datetime:
    """The moment in UTC."""
    if isinstance(due_at, datetime) and due_at.tzinfo is not None:
        try:
            moment = due_at.astimezone(UTC)
        except OverflowError:
            moment = LATEST
        if not EARLIEST <= moment < LATEST:
            raise InvalidJob("due_at", "must be from the year 1 to 9999")
        return moment
    raise InvalidJob("due_at", f"must be a datetime with a zone, not {_shown(due_at)}")


def _check_metadata(metadata: Any) -> None:
    # An empty string is Stripe's way to unset all metadata; on a create it means none.
    if metadata is None or metadata == "":
        return
    if not isinstance(metadata, dict):
        raise InvalidJob("metadata", f"must be a JSON object, not {_type(metadata)}")
    foreign = metadata.keys() - {METADATA_JOB_ID, METADATA_EXTERNAL_ID}
    if len(foreign) > MAX_METADATA_KEYS:
        raise InvalidJob(
            "metadata", f"has {len(foreign)} keys; Stripe takes 50 and two are ours: {MAX_METADATA_KEYS} at most"
        )
    for key, value in metadata.items():
        if not key or len(key) > MAX_METADATA_KEY_LENGTH:
            raise InvalidJob("metadata", f"key {_shown(key)} must have 1 to {MAX_METADATA_KEY_LENGTH} characters")
        if isinstance(value, dict | list):
            raise InvalidJob(_inside("metadata", key), f"must be text or a number, not {_type(value)}")
        if len(str(value)) > MAX_METADATA_VALUE_LENGTH:
            raise InvalidJob(_inside("metadata", key), f"is longer than {MAX_METADATA_VALUE_LENGTH} characters")


def _json_object(field: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidJob(field, f"must be a JSON object, not {_type(value)}")
    _check_json(field, value, brackets_refused=True)
    clean: dict[str, Any] = _carried(field, value, MAX_PAYLOAD_BYTES)
    return clean


def _check_json(field: str, value: Any, *, brackets_refused: bool, depth: int = 0) -> None:
    """Refuse what JSON, the form encoding or PostgreSQL cannot carry unchanged."""
    if depth > MAX_DEPTH:
        raise InvalidJob(field, f"is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        for key, each in value.items():
            _check_key(field, key, brackets_refused=brackets_refused)
            _check_json(_inside(field, key), each, brackets_refused=brackets_refused, depth=depth + 1)
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            _check_json(f"{field}[{index}]", each, brackets_refused=brackets_refused, depth=depth + 1)
    elif isinstance(value, str):
        _check_text(field, value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InvalidJob(field, f"must be a finite number, not {value!r}")
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise InvalidJob(field, "must be a number of at most 64 bits")
    elif value is not None and not isinstance(value, bool | int | float):
        raise InvalidJob(field, f"must be a JSON value, not {_type(value)}")


def _check_key(field: str, key: Any, *, brackets_refused: bool) -> None:
    if not isinstance(key, str):
        raise InvalidJob(field, f"key {_shown(key)} must be text")
    _check_text(field, key)
    if brackets_refused and not key:
        # Within an object it would become `name[]`, an element of a list.
        raise InvalidJob(field, "must not have a key without a name: Stripe would read another parameter")
    if brackets_refused and ("[" in key or "]" in key):
        raise InvalidJob(field, f"key {_shown(key)} must not hold brackets: Stripe would read another parameter")


def _check_text(field: str, text: str) -> None:
    if "\x00" in text:
        raise InvalidJob(field, "must not hold the character NUL")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidJob(field, "is not valid Unicode (a lone surrogate)") from None


def _carried(field: str, value: Any, limit_bytes: int) -> Any:
    """A checked value as it comes back from the table: plain objects and lists."""
    text = json.dumps(value, ensure_ascii=False, default=dict)
    if (size := len(text.encode())) > limit_bytes:
        raise InvalidJob(field, f"has {size:,} bytes of JSON; {limit_bytes:,} at most")
    return json.loads(text)


def _only(field: str, value: Mapping[str, Any], known: Iterable[str]) -> None:
    for name in sorted(value.keys() - set(known), key=repr):
        raise InvalidJob(field, f"has an unknown member {_shown(name)}")


def _inside(field: str, key: str) -> str:
    """The name of a member as an error may show it, in the form's spelling: `metadata[plan]`."""
    shown = "…" if _SECRET.search(key) else _cut(key)
    return shown if field == "body" else f"{field}[{shown}]"


def _shown(value: Any) -> str:
    """A value as an error may show it: its repr, cut; nothing that looks like a Stripe key."""
    try:
        shown = repr(value)
    except (ValueError, RecursionError):
        return "that"  # A number of thousands of digits, or thousands of levels.
    return "something that looks like a secret" if _SECRET.search(shown) else _cut(shown)


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "…"


def _type(value: Any) -> str:
    names = {dict: "an object", list: "a list", tuple: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
