"""Where the worker speaks to Stripe: clients, calls, and what an answer means; nothing of stripe's leaves it."""

from __future__ import annotations

import hashlib
import re
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from typing import Any

import stripe
import urllib3

from customer_jobs import __version__
from customer_jobs.problems import NO_ANSWER, TOO_LATE, UNREADABLE_ANSWER, Problem, problem_of
from customer_jobs.sql import is_storable
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
from worker.transport import Heard, Transport

CONNECT_TIMEOUT_SECONDS = 5  #: Stripe accepts connections at once or is out of reach.
READ_TIMEOUT_SECONDS = 30  #: For the whole answer; Stripe's slowest creates take seconds.

ACCOUNT_TIMEOUT_SECONDS = 3  #: Asked while a worker starts, which does not depend on the answer.

_PERMISSION = re.compile(r"'(rak_\w+)' permission")  # What a 403 says that the key lacks.
_CUSTOMERS = "rak_customer_"  #: The permissions without which no job of ours can succeed.

_JSON = dict[str, Any]


def fingerprint(key: str) -> str:
    """Names a key without revealing it: two workers can see that they hold the same one."""
    return "key_" + hashlib.sha256(key.encode()).hexdigest()[:24]


def _is_customer(body: Any) -> bool:
    return isinstance(body, dict) and isinstance(body.get("id"), str) and body.get("object") == "customer"


def _is_list(body: Any) -> bool:
    return isinstance(body, dict) and isinstance(body.get("data"), list) and all(map(_is_customer, body["data"]))


class Gateway:
    """Calls Stripe with the key of a credential.

    A client holds connections that must not be shared with a forked process: build one gateway in each process.
    Source: https://github.com/stripe/stripe-python/issues/1124
    """

    def __init__(self, settings: Settings, *, read_timeout_seconds: float = READ_TIMEOUT_SECONDS) -> None:
        self._settings = settings
        self._timeouts = (CONNECT_TIMEOUT_SECONDS, read_timeout_seconds)
        self._transport = Transport(settings.stripe_api_base, answer_seconds=read_timeout_seconds)
        self._clients: dict[str, stripe.StripeClient] = {}
        self._accounts: dict[str, str] = {}
        self._pace = Pace()
        self._lock = threading.Lock()
        self._too_late: Callable[[], bool] = lambda: False
        stripe.enable_telemetry = False  # It writes a file under HOME, and fails where there is none.
        stripe.log = None  # With STRIPE_LOG=debug, meant for an app, it prints customers' data.
        stripe._util.STRIPE_LOG = None  # noqa: SLF001 - read once, when it is imported
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

    def unless(self, too_late: Callable[[], bool]) -> Gateway:
        """This gateway for one attempt: it sends no create any more once that is too late."""
        for_attempt = copy(self)
        for_attempt._too_late = too_late  # noqa: SLF001 - its own
        return for_attempt

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
        client = self._client(credential)
        self._pace.wait(("create", credential, stripe_account), self._settings.rate_limit_create)
        # Asked last of all. Stripe may have forgotten the key while this process did not run, or a person had the
        # create made anew: it would be a second customer. What only reads may come late.
        if self._too_late():
            return Transient(Problem("api_error", TOO_LATE, "the attempt was held up for too long; nothing was sent"))
        return self._call(lambda: client.v1.customers.create(params, options), creates=True)  # type: ignore[arg-type]

    def fetch_customer(
        self, customer_id: str, *, expand: Sequence[str] = (), credential: str, stripe_account: str | None
    ) -> Answer:
        """GET /v1/customers/{id}. Source: https://docs.stripe.com/api/customers/retrieve"""
        params = {"expand": list(expand)} if expand else {}
        client = self._client(credential)
        options = _options(stripe_account)
        self._pace.wait(("fetch", credential, stripe_account), self._settings.rate_limit_fetch)
        return self._call(lambda: client.v1.customers.retrieve(customer_id, params, options), creates=False)  # type: ignore[arg-type]

    def list_customers(self, params: Mapping[str, Any], *, credential: str, stripe_account: str | None) -> Answer:
        """GET /v1/customers, one page. Source: https://docs.stripe.com/api/customers/list"""
        client = self._client(credential)
        options = _options(stripe_account)
        self._pace.wait(("list", credential, stripe_account), self._settings.rate_limit_fetch)
        return self._call(lambda: client.v1.customers.list(params, options), creates=False, expected=_is_list)  # type: ignore[arg-type]

    def _call(
        self, call: Callable[[], Any], *, creates: bool, expected: Callable[[Any], bool] = _is_customer
    ) -> Answer:
        heard = self._transport.listen()
        try:
            response = call().last_response
        except stripe.APIConnectionError as error:
            return _lost(error, heard(), creates=creates)
        except stripe.StripeError as error:
            return _refusal(error, heard(), creates=creates)
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            # The library could not make an object of what came back.
            return _spoiled(_unreadable(heard(), type(error).__name__), heard(), creates=creates)
        body = response.data
        if not expected(body) or not is_storable(body):
            return _spoiled(_unreadable(heard(), "no customer"), heard(), creates=creates)
        headers = dict(response.headers)
        return Answered(body, headers, response.code, response.request_id, replayed=_is_replay(headers))

    def close(self) -> None:
        """Close the connections to Stripe."""
        self._transport.close()

    def _account_of(self, credential: str) -> str | None:
        if credential not in self._accounts:
            impatient = Transport(self._settings.stripe_api_base, answer_seconds=ACCOUNT_TIMEOUT_SECONDS)
            client = self._new_client(credential, impatient, ACCOUNT_TIMEOUT_SECONDS)
            try:
                account = client.v1.accounts.retrieve_current()
            except (stripe.StripeError, AttributeError, KeyError, RecursionError, TypeError, ValueError):
                return None  # Out of reach, or a restricted key that may not ask: the fingerprint stands in.
            finally:
                impatient.close()
            if isinstance(account.id, str):
                self._accounts[credential] = account.id
        return self._accounts.get(credential)

    def _client(self, credential: str) -> stripe.StripeClient:
        with self._lock:
            if credential not in self._clients:
                self._clients[credential] = self._new_client(credential, self._transport, self._timeouts)
            return self._clients[credential]

    def _new_client(
        self, credential: str, transport: Transport, timeouts: float | tuple[float, float]
    ) -> stripe.StripeClient:
        return stripe.StripeClient(
            self._settings.stripe_api_keys[credential].get_secret_value(),
            base_addresses={"api": self._settings.stripe_api_base},
            max_network_retries=0,  # The job table is the only layer that retries.
            http_client=stripe.RequestsClient(timeout=timeouts, session=transport.session),
        )


def _options(stripe_account: str | None) -> _JSON:
    return {"stripe_account": stripe_account} if stripe_account else {}


def _refusal(error: stripe.StripeError, heard: Heard, *, creates: bool) -> Answer:
    """What an error of Stripe's means; judged on status and body, since `error.code` is None on most classes."""
    headers = heard.headers
    status = error.http_status
    reason = _header(headers, "stripe-rate-limited-reason")
    body = error.json_body if isinstance(error.json_body, dict) else None
    details = body.get("error") if body is not None else None
    if not isinstance(details, dict):
        problem = _unreadable(heard, "no error object")
        return _spoiled(problem, heard, body, creates=creates)
    problem = problem_of(details, http_status=status, request_id=_header(headers, "request-id"))
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
        case 403 if _concerns_the_key(problem):
            return KeyRefused(problem, headers, body)
        case _:
            return Rejected(problem, headers, body, replayed)


def _concerns_the_key(problem: Problem) -> bool:
    """Whether a 403 would meet every job of the key, and not only those for one account or with one expansion."""
    lacking = _PERMISSION.search(problem.message or "")
    return problem.code != "account_invalid" and (lacking is None or lacking[1].startswith(_CUSTOMERS))


def _lost(error: stripe.APIConnectionError, heard: Heard, *, creates: bool) -> Answer:
    """What no answer means, or one that broke off."""
    if heard.http_status is None:
        problem = Problem(type="api_connection_error", code=NO_ANSWER, message=_network_error(error))
        return Transient(problem, ambiguous=creates and not _was_never_sent(error))
    return _spoiled(_unreadable(heard, "it broke off"), heard, creates=creates)


def _spoiled(problem: Problem, heard: Heard, body: Any = None, *, creates: bool) -> Answer:
    """What an answer means that has a head and no body to read."""
    reason = _header(heard.headers, "stripe-rate-limited-reason")
    if heard.http_status == 429 and reason:
        return RateLimited(problem, heard.headers, body, reason=reason)
    replayed = _is_replay(heard.headers)
    if (heard.http_status or 0) >= 500 and replayed and creates:
        return Frozen(problem, heard.headers, body, replayed)
    return Transient(problem, heard.headers, body, replayed, ambiguous=creates)


def _unreadable(heard: Heard, why: str) -> Problem:
    message = f"the answer cannot be read ({why})"
    request_id = _header(heard.headers, "request-id")
    return Problem("api_error", UNREADABLE_ANSWER, message, request_id=request_id, http_status=heard.http_status)


def _network_error(error: stripe.APIConnectionError) -> str:
    """The kind of network error; the library's text may hold the URL with its parameters."""
    cause = error.__cause__
    return f"no answer from Stripe ({type(cause or error).__name__})"


def _was_never_sent(error: stripe.APIConnectionError) -> bool:
    """Whether the connection itself did not come about: no host, no proxy, no trust."""
    return any(
        isinstance(
            each,
            urllib3.exceptions.NewConnectionError
            | urllib3.exceptions.ConnectTimeoutError
            | urllib3.exceptions.ProxyError
            | ssl.SSLCertVerificationError,
        )
        for each in _reasons(error.__cause__)
    )


def _reasons(error: object) -> Iterator[object]:
    """The errors inside one another, as requests and urllib3 pack them."""
    for _ in range(5):
        if not isinstance(error, BaseException):
            return
        yield error
        error = getattr(error, "reason", None) or next(iter(error.args), None)


def _is_replay(headers: Mapping[str, str]) -> bool:
    return _header(headers, "idempotent-replayed") == "true"


def _header(headers: Mapping[str, str], name: str) -> str | None:
    return next((value for key, value in headers.items() if key.lower() == name), None)
