"""What a target says of itself, past the proxy or through it, as proof that it was harmed; harms nothing."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass

import psycopg
import redis
from sqlalchemy import select

from customer_jobs.database import reading
from customer_jobs.embedded import LOOPBACK, wait_until
from customer_jobs.errors import Unavailable
from customer_jobs.schema import leases
from customer_jobs.sql import now
from customer_jobs.vocabulary import Lease
from tests import servers
from tests.chaos.crew import Crew
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


@dataclass(frozen=True)
class Leader:
    """The process that leads."""

    holder: str  #: As the table has it: name@host/pid/nonce.

    @property
    def name(self) -> str:
        """Of the worker; a killed one passes it on to the process that is started in its place."""
        return self.holder.partition("@")[0]

    @property
    def pid(self) -> int:
        return int(self.holder.split("/")[1])


def leader(site: Site, crew: Crew) -> Leader:
    """Who leads, once that is a worker that runs: one that was killed keeps the lead until its lease runs out."""
    found: list[Leader] = []

    def runs() -> bool:
        found[:] = [Leader(by) for by in [holder(site)] if by is not None]
        return any(each.pid == crew.program(each.name).pid for each in found)

    wait_until(runs, LEADS_SECONDS, "a worker that runs leads")
    return found[0]


def holder(site: Site) -> str | None:
    """Who leads, as the table has it, if anybody does."""
    query = select(leases.c.holder).where(leases.c.name == Lease.LEAD, leases.c.expires_at > now())
    with contextlib.suppress(Unavailable), reading(site.engine) as transaction:
        return next((row["holder"] for row in transaction.rows(query)), None)
    return None  # Nobody can know.


def next_leader(site: Site, before: Leader) -> Leader:
    """Who leads, once it is another process than before."""
    found: list[str | None] = []

    def is_another() -> bool:
        found[:] = [holder(site)]
        return found[0] not in {None, before.holder}

    wait_until(is_another, LEADS_SECONDS, "another leads")
    (by,) = found
    assert by is not None
    return Leader(by)
