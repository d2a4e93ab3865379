"""Everything that a soak runs on: real servers, each behind a proxy, and a local Stripe; does no harm itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import redis
from sqlalchemy import Engine

from customer_jobs.database import open_engine
from customer_jobs.migrate import migrate
from customer_jobs.sandbox import Sandbox
from tests import servers
from tests.proxy import Proxy
from tests.servers import Server

#: By credential; the account of each is `acct_` and the key's third part.
KEYS = {"default": "sk_test_shop", "eu": "sk_test_eu", "us": "sk_test_us"}
#: Out of the way: limits are another subject, and thousands of jobs would take minutes at Stripe's 25 a second.
RATE = "200"


@dataclass(frozen=True)
class Site:
    """The servers, as they are reached past the proxies, and the proxies through which workers and apps reach them."""

    directory: Path
    sandbox: Sandbox
    to_stripe: Proxy
    redis_server: Server
    to_redis: Proxy
    postgres_server: Server | None  #: None on SQLite.
    to_postgres: Proxy | None
    engine: Engine  #: Past the proxy.
    database_url: str  #: Through the proxy, like the next.
    redis_url: str

    @property
    def settings(self) -> dict[str, str]:
        """Of a worker."""
        keys = {f"STRIPE_API_KEY_{name.upper()}": key for name, key in KEYS.items() if name != "default"}
        rates = {f"RATE_LIMIT_{what}": RATE for what in ("CREATE", "FETCH", "ACCOUNT")}
        return {
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "STRIPE_API_KEY": KEYS["default"],
            "STRIPE_API_BASE": self.to_stripe.through(self.sandbox.url),
            **keys,
            **rates,
        }

    @contextlib.contextmanager
    def asking_redis(self) -> Iterator[redis.Redis]:
        """A client past the proxy."""
        with redis.Redis.from_url(self.redis_server.url, decode_responses=True, socket_timeout=5, protocol=2) as client:
            yield client

    def heal(self) -> None:
        """Everything works again from now on."""
        self.sandbox.faults.clear()
        for proxy in (self.to_stripe, self.to_redis, self.to_postgres):
            if proxy is not None:
                proxy.go_on()
                proxy.accept()


@contextlib.contextmanager
def site(
    directory: Path, database: str, *, latency_seconds: tuple[float, float] = (0.0, 0.0), seed: int | None = None
) -> Iterator[Site]:
    """A site with a migrated database of the kind, `sqlite` or `postgresql`, until the block ends."""
    directory.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as running:
        postgres = to_postgres = None
        if database == "postgresql":
            postgres = running.enter_context(servers.start_postgres(directory / "postgres"))
            url = servers.create_database(postgres.url, "chaos")
            to_postgres = running.enter_context(Proxy.before(url))
            through = to_postgres.through(url)
        else:
            through = url = f"sqlite:///{directory / 'jobs.sqlite3'}"
        engine = open_engine(url)
        running.callback(engine.dispose)
        migrate(engine)
        server = running.enter_context(servers.start_redis(directory / "redis"))
        to_redis = running.enter_context(Proxy.before(server.url))
        sandbox = running.enter_context(Sandbox(latency_seconds=latency_seconds, seed=seed))
        to_stripe = running.enter_context(Proxy.before(sandbox.url))
        yield Site(
            directory,
            sandbox,
            to_stripe,
            server,
            to_redis,
            postgres,
            to_postgres,
            engine,
            through,
            to_redis.through(server.url),
        )
