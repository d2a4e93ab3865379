"""What a target says of itself, past the proxy or through it, as proof that it was harmed; harms nothing."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

import psycopg
import redis
from sqlalchemy import select

from customer_jobs.database import reading
from customer_jobs.embedded import LOOPBACK, wait_until
from customer_jobs.errors import Unavailable
from customer_jobs.schema import leases
from customer_jobs.sql import now
from tests import servers
from tests.chaos.site import Site

LEADS_SECONDS = 60.0  #: Until somebody leads, though everything goes wrong.
TRIED_SECONDS = 0.5  #: After so long without an answer a server counts as silent.


class NotDone(AssertionError):
    """The harm did not happen."""


def require(happened: bool, otherwise: str) -> None:
    if not happened:
        raise NotDone(otherwise)


def redis_answers(site: Site) -> Callable[[], bool]:
    def answers() -> bool:
        client = redis.Redis.from_url(
            site.redis_url, socket_timeout=TRIED_SECONDS, socket_connect_timeout=TRIED_SECONDS, retry=None
        )
        with client, contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
            return bool(client.ping())
        return False

    return answers


def postgres_answers(site: Site) -> Callable[[], bool]:
    assert site.to_postgres is not None
    port = site.to_postgres.port

    def answers() -> bool:
        # psycopg waits for two seconds at least.
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(host=LOOPBACK, port=port, user="app", dbname="chaos", connect_timeout=2).close()
            return True
        return False

    return answers


def takes_connections(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port), timeout=TRIED_SECONDS).close()
    except OSError:
        return False
    return True


def run_id(site: Site) -> str:
    with site.asking_redis() as client:
        info: dict[str, str] = client.info("server")
    return info["run_id"]


def asking_postgres(site: Site) -> psycopg.Connection:
    """A connection past the proxy."""
    return servers.connect(site.engine.url.render_as_string(hide_password=False))


def started_at(site: Site) -> object:
    with asking_postgres(site) as connection:
        return connection.execute("SELECT pg_postmaster_start_time()").fetchone()


def leader(site: Site) -> str:
    """The holder of the lead, once somebody has it."""
    found: str | None = None

    def is_known() -> bool:
        nonlocal found
        found = holder(site)
        return found is not None

    wait_until(is_known, LEADS_SECONDS, "a worker leads")
    assert found is not None
    return found


def holder(site: Site) -> str | None:
    """Who leads, as the table has it, if anybody does."""
    query = select(leases.c.holder).where(leases.c.expires_at > now())
    with contextlib.suppress(Unavailable), reading(site.engine) as transaction:
        return next((row["holder"] for row in transaction.rows(query)), None)
    return None  # Nobody can know.


def next_leader(site: Site, before: str) -> str:
    """The name of the worker that leads, once it is another holder than before."""
    wait_until(lambda: holder(site) not in {None, before}, LEADS_SECONDS, "another leads")
    return leader(site).partition("@")[0]
