"""Whether a body comes from Stripe, and was signed just now; nothing of it is believed before that."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from customer_jobs.errors import InvalidSetting
from customer_jobs.webhooks.errors import InvalidSignature

try:
    import stripe
except ImportError as error:
    raise ImportError(
        "customer_jobs.webhooks needs the stripe library: pip install 'customer-jobs[webhooks]'"
    ) from error

#: How far Stripe's clock and ours may be apart, either way: an old delivery may be a replay, and one from the future
#: could be replayed for longer. Source: https://docs.stripe.com/webhooks#replay-attacks
TOLERANCE_SECONDS = 300


class Signatures:
    """Checks `Stripe-Signature` headers against the secrets of one endpoint: several while one is rolled."""

    def __init__(self, secrets: Iterable[str], clock: Callable[[], float] = time.time) -> None:
        self._secrets = tuple(secrets)
        self._clock = clock
        if not self._secrets:
            raise InvalidSetting("a webhook endpoint needs a signing secret, whsec_…")

    def check(self, body: bytes, header: str) -> None:
        """Return if one of the secrets signed these very bytes, within the tolerance. Raises InvalidSignature."""
        # Characters that no signature has would make the comparison itself fail.
        if not header or not header.isascii():
            raise InvalidSignature("the Stripe-Signature header is missing or garbled")
        if not any(_signed(body, header, secret) for secret in self._secrets):
            raise InvalidSignature("no signature in the Stripe-Signature header fits the body and a secret")
        moment, now = _timestamp(header), self._clock()
        if moment < now - TOLERANCE_SECONDS:
            raise InvalidSignature(f"signed more than {TOLERANCE_SECONDS} s ago")
        if moment > now + TOLERANCE_SECONDS:  # The library looks at the age only.
            raise InvalidSignature(f"signed more than {TOLERANCE_SECONDS} s from now; check this machine's clock")


def _signed(body: bytes, header: str, secret: str) -> bool:
    try:
        return bool(stripe.WebhookSignature.verify_header(body, header, secret))
    except (stripe.SignatureVerificationError, UnicodeDecodeError):
        return False  # Stripe signs UTF-8 only.


def _timestamp(header: str) -> int:
    """The first `t=`, which is the one that the signature covers."""
    stamp = next(part for part in header.split(",") if part.startswith("t="))
    return int(stamp.split("=", 2)[1])
