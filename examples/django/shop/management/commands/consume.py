"""`manage.py consume` reacts to what became of the jobs: run it beside the app."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

import redis
from django.core.management.base import BaseCommand

from shop.models import User

STREAM, GROUP = "customer-jobs:events", "shop"


def events() -> Iterator[dict[str, Any]]:
    """The events, each until it has been handled."""
    client = redis.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True, protocol=2)
    with contextlib.suppress(redis.ResponseError):  # The group exists already.
        client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    after = "0"  # First what was handed to us and not acknowledged, …
    while True:
        answer: Any = client.xreadgroup(GROUP, "one", {STREAM: after}, count=10, block=1000)
        entries = answer[0][1] if answer else []
        for entry_id, fields in entries:
            yield json.loads(fields["event"])
            client.xack(STREAM, GROUP, entry_id)
        if not entries:
            after = ">"  # … then what is new.


def handle(event: dict[str, Any]) -> None:
    """Handling an event twice changes nothing: it may be delivered twice."""
    data = event["data"]
    if event["type"] == "customer_jobs.customer.create.succeeded" and (data["external_id"] or "").startswith("user-"):
        user_id = int(data["external_id"].removeprefix("user-"))
        User.objects.filter(pk=user_id).update(stripe_customer_id=data["customer_id"])
        print(f"user {user_id} is {data['customer_id']}", flush=True)


class Command(BaseCommand):
    help = "Note the customers' ids as they come."

    def handle(self, *_: Any, **__: Any) -> None:
        for event in events():
            handle(event)
