"""What many of these tests work on: Stripe's stand-in, a worker without Celery, a stream of their own."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
import redis
from sqlalchemy import Engine

from customer_jobs.sandbox import Sandbox
from customer_jobs.stream import connect
from tests.builders import Worker


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as running:
        yield running


@pytest.fixture
def worker(engine: Engine, sandbox: Sandbox) -> Worker:
    return Worker(engine, sandbox)


@pytest.fixture
def stream() -> str:
    return f"test:{uuid.uuid4().hex}"


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    made = connect(redis_url)
    yield made
    made.close()
