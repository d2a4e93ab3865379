"""WebhookReceiver: what an app's own view calls with a request of Stripe's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from customer_jobs.producer import CustomerJobs
from customer_jobs.webhooks.event import parsed
from customer_jobs.webhooks.intake import Intake, Receipt
from customer_jobs.webhooks.rules import RULES, Rule
from customer_jobs.webhooks.secrets import split_secrets
from customer_jobs.webhooks.signature import Signatures


class WebhookReceiver:
    """Takes in the events of one Stripe endpoint.

    `secrets` are its signing secrets, `whsec_…`: several while one is rolled, in one text with commas between or as a
    sequence. `credential` names the key that the customers are fetched with. `rules` say which events are about which
    customer, `priority` is that of the fetches.
    """

    def __init__(
        self,
        jobs: CustomerJobs,
        secrets: str | Iterable[str],
        credential: str = "default",
        rules: Sequence[Rule] = RULES,
        *,
        priority: str | int = "default",
    ) -> None:
        self._signatures = Signatures(split_secrets(secrets if isinstance(secrets, str) else ",".join(secrets)))
        self._intake = Intake(jobs, credential, rules, priority=priority)

    def receive(self, body: bytes, signature: str, *, session: Session | Connection | None = None) -> Receipt:
        """The receipt of a request's raw body with its `Stripe-Signature` header; answer 2xx once it is committed.

        With `session=` everything goes through it, and nothing is committed. Raises InvalidSignature or InvalidEvent,
        to be answered 400; Unavailable, 503: Stripe then tries again.

        Source: https://docs.stripe.com/webhooks
        """
        if not isinstance(body, bytes | bytearray):
            raise TypeError(f"body must be the bytes as they came, not {type(body).__name__}: they are what was signed")
        raw = bytes(body)
        self._signatures.check(raw, signature)
        return self.accept(parsed(raw), session=session)

    def accept(self, event: Any, *, session: Session | Connection | None = None) -> Receipt:
        """The receipt of an event that was verified elsewhere: a JSON object, or an event of the stripe library.

        With `session=` as above. Raises InvalidEvent.
        """
        return self._intake.accept(event, session=session)
