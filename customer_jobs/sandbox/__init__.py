"""A local Stripe for customers: HTTP on 127.0.0.1, stateful, faults on demand; standard library only."""

from customer_jobs.sandbox.faults import FAULTS, Fault, UnknownFaultError
from customer_jobs.sandbox.journal import Request
from customer_jobs.sandbox.limits import Limits
from customer_jobs.sandbox.server import Sandbox
from customer_jobs.sandbox.standalone import serve
from customer_jobs.sandbox.webhooks import Delivery, Endpoint, sign

__all__ = [
    "FAULTS",
    "Delivery",
    "Endpoint",
    "Fault",
    "Limits",
    "Request",
    "Sandbox",
    "UnknownFaultError",
    "serve",
    "sign",
]
