"""What becomes of one request to /v1: who asks, may they, which fault, done before, the deed, the answer.

The order is Stripe's as far as it is documented: authentication, permissions, limits, idempotency, parameters, deed.
Nothing here touches a socket.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

from customer_jobs.sandbox import parameters
from customer_jobs.sandbox.choosing import MAGIC_ID, Faults, script_of
from customer_jobs.sandbox.customers import Json, deleted_customer, expanded, new_id
from customer_jobs.sandbox.faults import Fault, UnknownFaultError, Wire
from customer_jobs.sandbox.forms import Params, decode
from customer_jobs.sandbox.idempotency import IdempotencyKeys, Saved, Scope
from customer_jobs.sandbox.journal import Journal, Request
from customer_jobs.sandbox.keys import Caller, bearer, identify, lacks_permission, mask
from customer_jobs.sandbox.limits import Limiter
from customer_jobs.sandbox.pace import Pace
from customer_jobs.sandbox.refusals import Refusal, rate_limited, server_error, unrecognized_url
from customer_jobs.sandbox.spoiling import instead, spoiled
from customer_jobs.sandbox.store import API_VERSION, Store

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


@dataclass(frozen=True, slots=True)
class Call:
    """A request as it came over the wire; header names in lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(slots=True)
class Answer:
    """What is sent back, and what the wire does to it."""

    status: int
    body: bytes
    content_type: str = "application/json"
    error_code: str | None = None
    rate_limited_reason: str | None = None
    should_retry: bool | None = None
    original_request: str | None = None  #: the request whose saved answer this is
    wire: Wire = ""
    wire_seconds: float = 0.0
    headers: list[tuple[str, str]] = field(default_factory=list)


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


class Api:
    """Stripe's customers endpoint over a store."""

    def __init__(
        self,
        *,
        store: Store,
        keys: IdempotencyKeys,
        limiter: Limiter,
        faults: Faults,
        journal: Journal,
        pace: Pace,
        clock: Callable[[], float],
        publish: Callable[[Json, Caller], None],
    ) -> None:
        self._store = store
        self._keys = keys
        self._limiter = limiter
        self._faults = faults
        self._journal = journal
        self._pace = pace
        self._clock = clock
        self._publish = publish

    def handle(self, call: Call) -> Answer:
        """The answer, logged before it is returned."""
        headers = call.headers
        request_id = new_id("req_")
        endpoint, item_id = route(call.method, call.path)
        key = bearer(headers.get("authorization"))
        params: Params = {}
        caller: Caller | None = None
        complaint: Refusal | None = None
        try:
            caller = identify(key, headers.get("stripe-account"))
            params = understand(call)
        except Refusal as refusal:
            complaint = refusal
        request = self._journal.begin(
            method=call.method,
            path=call.path,
            endpoint=endpoint,
            params=params,
            key=mask(key) if key else "",
            mode=caller.mode if caller else "",
            account=caller.acting_for if caller else "",
            stripe_account=headers.get("stripe-account"),
            idempotency_key=headers.get("idempotency-key") if call.method == "POST" else None,
            stripe_version=headers.get("stripe-version"),
            request_id=request_id,
        )
        fault: Fault | None = None
        if complaint is not None or caller is None or endpoint is None:
            answer = refused(complaint or unrecognized_url(call.method, call.path), request)
        else:
            fingerprint = hashlib.blake2b(json.dumps(params, sort_keys=True).encode(), digest_size=16).digest()
            answer, fault = self._answer(Work(request, endpoint, item_id, params, caller, fingerprint))
        self._journal.finish(
            request,
            None if answer.wire in ("reset", "close", "hang") else answer.status,
            error_code=answer.error_code,
            rate_limited_reason=answer.rate_limited_reason,
            replayed=answer.original_request is not None,
            fault=fault.name if fault else None,
        )
        answer.headers = answer_headers(request, answer)
        return answer

    def _answer(self, work: Work) -> tuple[Answer, Fault | None]:
        restriction, permission = PERMISSIONS[work.endpoint]
        if restriction in work.caller.denied:
            return refused(lacks_permission(work.caller, permission), work.request), None
        limited_as = f"{work.caller.acting_for} {work.caller.mode}"
        reason = self._limiter.admit(limited_as, work.endpoint, time.monotonic())
        if reason is not None:
            return refused(rate_limited(reason), work.request), None
        try:
            try:
                fault = self._choose(work)
            except UnknownFaultError as error:
                refusal = Refusal(400, str(error), code="parameter_invalid", param="metadata[sandbox]")
                return refused(refusal, work.request), None
            if fault is not None and fault.moment == "refuse":
                return self._instead(work, fault), fault
            answer = self._once(work, fault)
            if fault is not None and fault.moment == "lose":
                answer = self._spoiled(work, answer, fault)
            return answer, fault
        finally:
            self._limiter.leave(limited_as, work.endpoint)

    def _choose(self, work: Work) -> Fault | None:
        request = work.request
        script = script_of(work.params, work.item_id if work.endpoint == "retrieve" else None)
        if request.method != "POST" and work.endpoint != "retrieve":
            script = None
        attempts_of = (work.world, request.path, request.idempotency_key or work.fingerprint)
        return self._faults.choose(request.method, request.path, work.caller.acting_for, script, attempts_of)

    def _instead(self, work: Work, fault: Fault) -> Answer:
        if fault.body == "deleted":
            return Answer(200, dump(deleted_customer(work.item_id)))
        if fault.body == "error":
            return refused(instead(fault, work.caller, work.item_id, work.request.idempotency_key), work.request)
        return self._spoiled(work, Answer(0, b""), fault)

    def _spoiled(self, work: Work, answer: Answer, fault: Fault) -> Answer:
        if fault.body == "error":
            return refused(server_error(fault.status), work.request)
        if fault.body == "true":
            answer.wire, answer.wire_seconds = fault.wire, fault.seconds
            return answer
        content_type, body = spoiled(fault, answer.body)
        return Answer(fault.status, body, content_type)

    def _once(self, work: Work, fault: Fault | None) -> Answer:
        """The answer that the idempotency key brings back, or that of the deed."""
        key = work.request.idempotency_key
        if not key:
            try:
                return self._perform(work, fault)
            except Refusal as refusal:
                return refused(refusal, work.request)
        try:
            saved = self._keys.begin(work.world, key, work.request.path, work.fingerprint, self._clock())
        except Refusal as refusal:
            return refused(refusal, work.request)
        if saved is not None:
            return replayed(saved)
        remembered = False
        try:
            try:
                answer = self._perform(work, fault)
                remembered = True
            except Refusal as refusal:
                answer = refused(refusal, work.request)
                remembered = refusal.saved
            if remembered:
                self._keys.save(work.world, key, Saved(answer.status, answer.body, work.request.request_id))
            return answer
        finally:
            if not remembered:
                self._keys.abandon(work.world, key)

    def _perform(self, work: Work, fault: Fault | None) -> Answer:
        moment = fault.moment if fault else "pass"
        extra_seconds = fault.seconds if fault and moment == "pass" else 0.0
        params = parameters.checked(work.params, CHECKS[work.endpoint])
        self._pace.before_deed(work.request, extra_seconds)
        if moment != "freeze":
            answer = Answer(200, dump(self._deed(work, params)))
        self._pace.after_deed(work.request)
        if moment in ("freeze", "freeze_after"):
            answer = refused(server_error(500), work.request)
            answer.should_retry = False
        return answer

    def _deed(self, work: Work, params: Params) -> Json:
        store, caller = self._store, work.caller
        account, mode = caller.acting_for, caller.mode
        match work.endpoint:
            case "create":
                item, event = store.create(account, mode, params, work.cause)
            case "update":
                item, event = store.update(account, mode, work.item_id, params, work.cause)
            case "delete":
                item, event = store.delete(account, mode, work.item_id, work.cause)
            case "retrieve":
                if work.item_id.startswith(MAGIC_ID):
                    store.ensure(account, mode, work.item_id)
                return expanded(store.retrieve(account, mode, work.item_id), params.get("expand", []))
            case "list":
                page, more = store.list_customers(account, mode, params)
                return listed("/v1/customers", [expanded(item, params.get("expand", [])) for item in page], more)
            case "events":
                return listed("/v1/events", *store.list_events(account, mode, params))
            case "event":
                return store.event(account, mode, work.item_id)
            case "account":
                return account_object(account)
            case _:
                return {"object": "balance", "available": [], "livemode": caller.livemode, "pending": []}
        self._publish(event, caller)
        return expanded(item, params.get("expand", []))


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


def dump(item: Json) -> bytes:
    return json.dumps(item).encode()


def listed(url: str, page: list[Json], has_more: bool) -> Json:
    return {"object": "list", "data": page, "has_more": has_more, "url": url}


def refused(refusal: Refusal, request: Request) -> Answer:
    return Answer(
        refusal.status,
        refusal.body(request.request_id, livemode=request.mode == "live"),
        error_code=refusal.code,
        rate_limited_reason=refusal.rate_limited_reason,
        should_retry=refusal.should_retry,
    )


def replayed(saved: Saved) -> Answer:
    """The saved answer; Stripe advises against retrying a saved error, it would only come back again."""
    should_retry = False if saved.status >= 400 else None
    return Answer(saved.status, saved.body, should_retry=should_retry, original_request=saved.request_id)


def answer_headers(request: Request, answer: Answer) -> list[tuple[str, str]]:
    """Stripe's headers; the empty page of a proxy has none of them."""
    headers = [("Content-Type", answer.content_type)]
    if answer.content_type != "application/json":
        return headers
    headers += [("Request-Id", request.request_id), ("Stripe-Version", request.stripe_version or API_VERSION)]
    optional = {
        "Idempotency-Key": request.idempotency_key,
        "Original-Request": answer.original_request or (request.request_id if request.idempotency_key else None),
        "Idempotent-Replayed": "true" if answer.original_request else None,
        "Stripe-Account": request.stripe_account,
        "Stripe-Rate-Limited-Reason": answer.rate_limited_reason,
        "Stripe-Should-Retry": None if answer.should_retry is None else str(answer.should_retry).lower(),
    }
    return headers + [(name, value) for name, value in optional.items() if value]


def account_object(account: str) -> Json:
    """The parts of an account that an application looks at.

    Source: https://docs.stripe.com/api/accounts/object
    """
    return {
        "id": account,
        "object": "account",
        "business_profile": {"name": account.removeprefix("acct_"), "url": None},
        "charges_enabled": True,
        "country": "US",
        "default_currency": "usd",
        "details_submitted": True,
        "email": None,
        "metadata": {},
        "payouts_enabled": True,
        "type": "standard",
    }
