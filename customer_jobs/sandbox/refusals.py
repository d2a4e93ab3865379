"""Stripe's error envelope and the sentences it refuses with; who is refused is decided elsewhere.

Source: https://docs.stripe.com/api/errors and https://docs.stripe.com/error-codes
"""

import json
import time

INVALID_REQUEST = "invalid_request_error"
DOCS = "Please see https://stripe.com/docs or we can help at https://support.stripe.com/."


class Refusal(Exception):  # it is an answer, not a failure of the sandbox
    """The request ends here with this error; `saved` says execution had begun, so a key remembers it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        type_: str = INVALID_REQUEST,
        decline_code: str | None = None,
        rate_limited_reason: str | None = None,
        should_retry: bool | None = None,
        saved: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.type = type_
        self.decline_code = decline_code
        self.rate_limited_reason = rate_limited_reason
        self.should_retry = should_retry
        self.saved = saved

    def body(self, request_id: str, *, livemode: bool = False) -> bytes:
        """The envelope as JSON, with the members that Stripe leaves out left out."""
        mode = "" if livemode else "test/"
        members = {
            "code": self.code,
            "decline_code": self.decline_code,
            "doc_url": f"https://stripe.com/docs/error-codes/{self.code.replace('_', '-')}" if self.code else None,
            "message": self.message,
            "param": self.param,
            "request_log_url": f"https://dashboard.stripe.com/{mode}logs/{request_id}?t={int(time.time())}",
            "type": self.type,
        }
        return json.dumps({"error": {name: value for name, value in members.items() if value is not None}}).encode()


def unknown_parameters(names: list[str]) -> Refusal:
    plural = "s" if len(names) > 1 else ""
    message = f"Received unknown parameter{plural}: {', '.join(names)}"
    return Refusal(400, message, code="parameter_unknown", param=names[0])


def no_such_customer(customer_id: str, *, other_mode: str | None = None, param: str = "id") -> Refusal:
    """404 for the id in the path, 400 for one in a parameter; `other_mode` is where a similar one exists."""
    message = f"No such customer: '{customer_id}'"
    if other_mode is not None:
        used = "test" if other_mode == "live" else "live"
        message += (
            f"; a similar object exists in {other_mode} mode, but a {used} mode key was used to make this request."
        )
    status = 404 if param == "id" else 400
    return Refusal(status, message, code="resource_missing", param=param, saved=param == "id")


def unrecognized_url(method: str, path: str) -> Refusal:
    hint = ""
    if path != "/" and path.endswith("/"):
        hint = (
            "If you are trying to list objects, remove the trailing slash. If you are trying to retrieve an object, "
            "make sure you passed a valid (non-empty) identifier in your code. "
        )
    return Refusal(404, f"Unrecognized request URL ({method}: {path}). {hint}{DOCS}")


def rate_limited(reason: str) -> Refusal:
    """429 by the limiter.

    Source: https://docs.stripe.com/rate-limits
    """
    message = "Request rate limit exceeded. Learn more about rate limits here: https://stripe.com/docs/rate-limits."
    return Refusal(429, message, code="rate_limit", rate_limited_reason=reason, should_retry=False)


def lock_timeout() -> Refusal:
    """429 by a lock on the object, which is not the limiter: there is no reason header.

    Source: https://docs.stripe.com/rate-limits#object-lock-timeouts
    """
    message = (
        "This object cannot be accessed right now because another API request or Stripe process is currently "
        "accessing it. If you see this error intermittently, retry the request. If you see this error frequently and "
        "are making multiple concurrent requests to a single object, make your requests serially or at a lower rate. "
        "For more details, see https://stripe.com/docs/rate-limits#object-lock-timeouts."
    )
    return Refusal(429, message, code="lock_timeout", should_retry=True)


def key_in_use(idempotency_key: str) -> Refusal:
    message = (
        "There is currently another in-progress request using this Idempotent Key (that probably means you submitted "
        f"twice, and the other request is still going through): {idempotency_key}. Please try again later."
    )
    return Refusal(409, message, code="idempotency_key_in_use", should_retry=True)


def card_declined() -> Refusal:
    return Refusal(
        402,
        "Your card was declined.",
        code="card_declined",
        type_="card_error",
        decline_code="generic_decline",
        saved=True,
    )


def server_error(status: int) -> Refusal:
    return Refusal(status, "An error occurred while processing your request. Try again.", type_="api_error")
