"""Stripe's events start jobs: verify one, store its id once, fetch the customer it is about.

Needs the extra `webhooks`; `import customer_jobs` does not come here.
"""

from customer_jobs.webhooks.errors import InvalidEvent, InvalidSignature
from customer_jobs.webhooks.event import Event
from customer_jobs.webhooks.intake import Receipt
from customer_jobs.webhooks.receiver import WebhookReceiver
from customer_jobs.webhooks.rules import RULES, Rule, customer_of_object, object_itself, related_customer
from customer_jobs.webhooks.secrets import webhook_secrets

__all__ = [
    "RULES",
    "Event",
    "InvalidEvent",
    "InvalidSignature",
    "Receipt",
    "Rule",
    "WebhookReceiver",
    "customer_of_object",
    "object_itself",
    "related_customer",
    "webhook_secrets",
]
