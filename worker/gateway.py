"""Where the worker speaks to Stripe: clients, calls, and what an answer means; nothing of stripe's leaves it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import requests
import stripe
import urllib3

from customer_jobs import __version__
from customer_jobs.problems import NO_ANSWER, UNREADABLE_ANSWER, Problem, problem_of
from worker.answers import (
    Answer,
    Answered,
    Frozen,
    KeyRefused,
    KeyReused,
    RateLimited,
    Rejected,
    Transient,
)
from worker.credentials import Key
from worker.pace import Pace
from worker.settings import Settings

CONNECT_TIMEOUT_SECONDS = 5  #: Stripe accepts connections at once or is out of reach.
READ_TIMEOUT_SECONDS = 30  #: For each read; Stripe's slowest creates take seconds. The library's default is 80.

ACCOUNT_TIMEOUT_SECONDS = 3  #: Asked while a worker starts, which does not depend on the answer.

_JSON = dict[str, Any]


def fingerprint(key: str) -> str:
    """Names a key without revealing it: two workers can see that they hold the same one."""
    return "key_" + hashlib.sha256(key.encode()).hexdigest()[:24]


class Gateway:
    """Calls Stripe with the key of a credential.

    A client holds connections that must not be shared with a forked process: build one gateway in each process.
    Source: https://github.com/stripe/stripe-python/issues/1124
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clients: dict[str, stripe.StripeClient] = {}
        self._accounts: dict[str, str] = {}
        self._pace = Pace()
        self._lock = threading.Lock()
        stripe.enable_telemetry = False  # It writes a file under HOME, and fails where there is none.
        stripe.set_app_info("customer-jobs", version=__version__)

    def knows(self, credential: str) -> bool:
        """Whether this worker has the key of a credential."""
        return credential in self._settings.stripe_api_keys

    def is_live(self, credential: str) -> bool:
        """Whether that key works on live data."""
        return self._settings.is_live(credential)

    def fingerprint(self, credential: str) -> str:
        """Names that key."""
        return fingerprint(self._settings.stripe_api_keys[credential].get_secret_value())

    def identities(self, credential: str) -> tuple[str, ...]:
        """What says whom that key speaks for, the surest first: the account once it is known, the key itself."""
        account_id = self._accounts.get(credential)
        return (self.fingerprint(credential),) if account_id is None else (account_id, self.fingerprint(credential))

    def keys(self) -> list[Key]:
        """What may be shown of the keys; asks Stripe once for the account of each."""
        return [
            Key(name, self.fingerprint(name), self.is_live(name), self._account_of(name))
            for name in sorted(self._settings.stripe_api_keys)
        ]

    def trust(self, accounts: Mapping[str, str]) -> None:
        """Take over the accounts of credentials that the table knows."""
        self._accounts.update(accounts)

    def create_customer(
        self, params: Mapping[str, Any], *, credential: str, stripe_account: str | None, idempotency_key: str
    ) -> Answer:
        """POST /v1/customers. Source: https://docs.stripe.com/api/customers/create"""
        options = _options(stripe_account) | {"idempotency_key": idempotency_key}
        self._pace.wait(("create", credential, stripe_account), self._settings.rate_limit_create)
        client = self._client(credential)
        return _call(lambda: client.v1.customers.create(params, options), creates=True)  # type: ignore[arg-type]

    def fetch_customer(
        self, customer_id: str, *, expand: Sequence[str] = (), credential: str, stripe_account: str | None
    ) -> Answer:
        """GET /v1/customers/{id}. Source: https://docs.stripe.com/api/customers/retrieve"""
        params = {"expand": list(expand)} if expand else {}
        client = self._client(credential)
        options = _options(stripe_account)
        self._pace.wait(("fetch", credential, stripe_account), self._settings.rate_limit_fetch)
        return _call(lambda: client.v1.customers.retrieve(customer_id, params, options), creates=False)  # type: ignore[arg-type]

    def list_customers(self, params: Mapping[str, Any], *, credential: str, stripe_account: str | None) -> Answer:
        """GET /v1/customers, one page. Source: https://docs.stripe.com/api/customers/list"""
        client = self._client(credential)
        options = _options(stripe_account)
        self._pace.wait(("list", credential, stripe_account), self._settings.rate_limit_fetch)
        return _call(lambda: client.v1.customers.list(params, options), creates=False, expected=_is_list)  # type: ignore[arg-type]

    def close(self) -> None:
        """Close the connections of the calling thread."""
        for client in self._clients.values():
            client._requestor._client.close()  # type: ignore[union-attr]  # noqa: SLF001 - no public way to close one

    def _account_of(self, credential: str) -> str | None:
        if credential not in self._accounts:
            patience = stripe.RequestsClient(timeout=ACCOUNT_TIMEOUT_SECONDS)
            try:
                account = self._new_client(credential, patience).v1.accounts.retrieve_current()
            except (stripe.StripeError, AttributeError, KeyError, TypeError, ValueError):
                return None  # Out of reach, or a restricted key that may not ask: the fingerprint stands in.
            if isinstance(account.id, str):
                self._accounts[credential] = account.id
        return self._accounts.get(credential)

    def _client(self, credential: str) -> stripe.StripeClient:
        with self._lock:
            if credential not in self._clients:
                transport = stripe.RequestsClient(timeout=(CONNECT_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS))
                self._clients[credential] = self._new_client(credential, transport)
            return self._clients[credential]

    def _new_client(self, credential: str, transport: stripe.HTTPClient) -> stripe.StripeClient:
        return stripe.StripeClient(
            self._settings.stripe_api_keys[credential].get_secret_value(),
            base_addresses={"api": self._settings.stripe_api_base},
            max_network_retries=0,  # The job table is the only layer that retries.
            http_client=transport,
        )


def _options(stripe_account: str | None) -> _JSON:
    return {"stripe_account": stripe_account} if stripe_account else {}


def _is_customer(body: Any) -> bool:
    return isinstance(body, dict) and isinstance(body.get("id"), str) and body.get("object") == "customer"


def _is_list(body: Any) -> bool:
    return isinstance(body, dict) and isinstance(body.get("data"), list) and all(map(_is_customer, body["data"]))


def _call(call: Callable[[], Any], *, creates: bool, expected: Callable[[Any], bool] = _is_customer) -> Answer:
    try:
        response = call().last_response
    except stripe.APIConnectionError as error:
        problem = Problem(type="api_connection_error", code=NO_ANSWER, message=_network_error(error))
        return Transient(problem, ambiguous=creates and not _was_never_sent(error))
    except stripe.StripeError as error:
        return _refusal(error, creates=creates)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        # The library could not make an object of what came back.
        return Transient(_unreadable(None, None, type(error).__name__), ambiguous=creates)
    body = response.data
    if not expected(body):
        return Transient(_unreadable(response.code, response.request_id, "no customer"), ambiguous=creates)
    headers = dict(response.headers)
    return Answered(body, headers, response.code, response.request_id, replayed=_is_replay(headers))


def _refusal(error: stripe.StripeError, *, creates: bool) -> Answer:
    """What an error of Stripe's means; judged on status and body, since `error.code` is None on most classes."""
    headers = {**(error.headers or {})}
    status = error.http_status
    reason = _header(headers, "stripe-rate-limited-reason")
    body = error.json_body if isinstance(error.json_body, dict) else None
    details = body.get("error") if body is not None else None
    if not isinstance(details, dict):
        problem = _unreadable(status, error.request_id, "no error object")
        if status == 429 and reason:
            return RateLimited(problem, headers, body, reason=reason)
        return Transient(problem, headers, body, ambiguous=creates)
    problem = problem_of(details, http_status=status, request_id=error.request_id)
    replayed = _is_replay(headers)
    match status:
        case 429 if reason or problem.code == "rate_limit":
            return RateLimited(problem, headers, body, reason=reason)
        case 408 | 409 | 424 | 425 | 429:
            return Transient(problem, headers, body, replayed)
        case int() if status >= 500 and replayed and creates:
            return Frozen(problem, headers, body, replayed)
        case int() if status >= 500 or status < 400:
            return Transient(problem, headers, body, replayed, ambiguous=creates)
        case 400 if problem.type == "idempotency_error":
            return KeyReused(problem, headers, body)
        case 401:
            return KeyRefused(problem, headers, body)
        case 403 if problem.code != "account_invalid":
            return KeyRefused(problem, headers, body)
        case _:
            return Rejected(problem, headers, body, replayed)


def _unreadable(status: int | None, request_id: str | None, why: str) -> Problem:
    message = f"the answer cannot be read ({why})"
    return Problem("api_error", UNREADABLE_ANSWER, message, request_id=request_id, http_status=status)


def _network_error(error: stripe.APIConnectionError) -> str:
    """The kind of network error; the library's text may hold the URL with its parameters."""
    cause = error.__cause__
    return f"no answer from Stripe ({type(cause or error).__name__})"


def _was_never_sent(error: stripe.APIConnectionError) -> bool:
    cause = error.__cause__
    if isinstance(cause, requests.exceptions.ConnectTimeout):
        return True
    reason = (
        getattr(cause.args[0], "reason", None) if isinstance(cause, requests.ConnectionError) and cause.args else None
    )
    return isinstance(reason, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ConnectTimeoutError)


def _is_replay(headers: Mapping[str, str]) -> bool:
    return _header(headers, "idempotent-replayed") == "true"


def _header(headers: Mapping[str, str], name: str) -> str | None:
    return next((value for key, value in headers.items() if key.lower() == name), None)
