"""How the sandbox's tests ask it: by Stripe's own library, with a clock they may move."""

from typing import Any

import pytest
import stripe

from customer_jobs.sandbox import Sandbox

stripe.enable_telemetry = False


class Clock:
    """Seconds since 1970, standing still until moved."""

    def __init__(self) -> None:
        self.now = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now


def client(sandbox: Sandbox, key: str = "sk_test_shop_0123456789") -> Any:
    return stripe.StripeClient(key, base_addresses={"api": sandbox.url}, max_network_retries=0).v1


def customers(sandbox: Sandbox, key: str = "sk_test_shop_0123456789") -> Any:
    return client(sandbox, key).customers


def create(sandbox: Sandbox, idempotency_key: str, **params: Any) -> Any:
    return customers(sandbox).create(params, {"idempotency_key": idempotency_key})


def seen(caught: pytest.ExceptionInfo[stripe.StripeError]) -> Any:
    """The error, whose members the library declares as perhaps missing."""
    return caught.value
