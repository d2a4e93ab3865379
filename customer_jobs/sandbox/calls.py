"""A request understood: which endpoint it means, with which parameters; executes nothing."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from customer_jobs.sandbox import parameters
from customer_jobs.sandbox.customers import Json
from customer_jobs.sandbox.forms import Params, decode
from customer_jobs.sandbox.idempotency import Scope
from customer_jobs.sandbox.journal import Request
from customer_jobs.sandbox.keys import Caller
from customer_jobs.sandbox.refusals import Refusal

VERSION = re.compile(r"\d{4}-\d{2}-\d{2}(\.[a-z]+)?(;.*)?")

#: Endpoint by method and path; the limits count per endpoint.
ROUTES = (
    ("create", "POST", re.compile(r"/v1/customers")),
    ("list", "GET", re.compile(r"/v1/customers")),
    ("retrieve", "GET", re.compile(r"/v1/customers/([^/]+)")),
    ("update", "POST", re.compile(r"/v1/customers/([^/]+)")),
    ("delete", "DELETE", re.compile(r"/v1/customers/([^/]+)")),
    ("account", "GET", re.compile(r"/v1/account")),
    ("balance", "GET", re.compile(r"/v1/balance")),
    ("events", "GET", re.compile(r"/v1/events")),
    ("event", "GET", re.compile(r"/v1/events/([^/]+)")),
)
#: The restriction that takes an endpoint from a restricted key, and the permission its message names.
PERMISSIONS = {
    "create": ("nowrite", "rak_customer_write"),
    "update": ("nowrite", "rak_customer_write"),
    "delete": ("nowrite", "rak_customer_write"),
    "retrieve": ("noread", "rak_customer_read"),
    "list": ("noread", "rak_customer_read"),
    "events": ("noread", "rak_event_read"),
    "event": ("noread", "rak_event_read"),
    "account": ("noaccount", "rak_accounts_kyc_basic_read"),
    "balance": ("noaccount", "rak_balance_read"),
}
#: The parameters an endpoint takes.
CHECKS = {
    "create": parameters.CREATE,
    "update": parameters.UPDATE,
    "retrieve": parameters.RETRIEVE,
    "list": parameters.LIST,
    "events": parameters.LIST_EVENTS,
    "delete": parameters.NONE,
    "event": parameters.NONE,
    "account": parameters.NONE,
    "balance": parameters.NONE,
}


@dataclass(frozen=True, slots=True)
class Call:
    """A request as it came over the wire; header names in lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Work:
    """A request that was understood."""

    request: Request
    endpoint: str
    item_id: str
    params: Params
    caller: Caller
    fingerprint: bytes

    @property
    def world(self) -> Scope:
        return self.caller.account, self.caller.acting_for, self.caller.mode

    @property
    def cause(self) -> Json:
        """The `request` of an event."""
        return {"id": self.request.request_id, "idempotency_key": self.request.idempotency_key}


def route(method: str, path: str) -> tuple[str | None, str]:
    """The endpoint and the id in the path; no endpoint for what Stripe does not know either."""
    for endpoint, wanted, pattern in ROUTES:
        if method == wanted:
            match = pattern.fullmatch(path)
            if match is not None:
                return endpoint, unquote(match[1]) if match.groups() else ""
    return None, ""


def understand(call: Call) -> Params:
    """The parameters of query and form.

    Raises:
        Refusal: 400 when they are not form-encoded, or the version header is not a version.
    """
    version = call.headers.get("stripe-version")
    if version is not None and not VERSION.fullmatch(version):
        raise Refusal(400, f"Invalid Stripe API version: {version}")
    content_type = call.headers.get("content-type", "").partition(";")[0].strip().lower()
    if call.body and content_type not in ("", "application/x-www-form-urlencoded"):
        raise Refusal(400, "Invalid request: check that the content type is application/x-www-form-urlencoded.")
    return decode(call.query.encode("utf-8", "replace") + b"&" + call.body if call.query else call.body)
