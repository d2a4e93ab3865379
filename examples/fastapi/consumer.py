"""Reacts to what became of the jobs: run it beside the app, as often as you like."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from typing import Any

import redis.asyncio as redis
from app import User, engine
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

STREAM, GROUP = "customer-jobs:events", "shop"


async def events() -> AsyncIterator[dict[str, Any]]:
    """The events, each until it has been handled."""
    client = redis.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True, protocol=2)
    with contextlib.suppress(redis.ResponseError):  # The group exists already.
        await client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    after = "0"  # First what was handed to us and not acknowledged, …
    while True:
        answer: Any = await client.xreadgroup(GROUP, "one", {STREAM: after}, count=10, block=1000)
        entries = answer[0][1] if answer else []
        for entry_id, fields in entries:
            yield json.loads(fields["event"])
            await client.xack(STREAM, GROUP, entry_id)
        if not entries:
            after = ">"  # … then what is new.


async def handle(event: dict[str, Any]) -> None:
    """Handling an event twice changes nothing: it may be delivered twice."""
    data = event["data"]
    if event["type"] == "customer_jobs.customer.create.succeeded" and (data["external_id"] or "").startswith("user-"):
        user_id = int(data["external_id"].removeprefix("user-"))
        async with AsyncSession(engine) as session, session.begin():
            await session.execute(update(User).where(User.id == user_id).values(stripe_customer_id=data["customer_id"]))
        print(f"user {user_id} is {data['customer_id']}", flush=True)


async def main() -> None:
    async for event in events():
        await handle(event)


if __name__ == "__main__":
    asyncio.run(main())
