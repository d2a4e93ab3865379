"""Everything on this machine until Ctrl-C: database, Redis, sandbox, worker, webhooks and Flower, looked after."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from customer_jobs import embedded
from customer_jobs.cli import checkout, show
from customer_jobs.cli.exits import without_secrets
from customer_jobs.cli.local import new_webhook_secret
from customer_jobs.cli.programs import Ended, Ending, Programs
from customer_jobs.cli.stream import Stream
from customer_jobs.database import open_engine, parse_url
from customer_jobs.embedded import LOOPBACK, EmbeddedError
from customer_jobs.environment import setting
from customer_jobs.errors import CustomerJobsError
from customer_jobs.events import DEFAULT_STREAM
from customer_jobs.migrate import migrate

STATE = ".customer-jobs"  #: In the checkout, unless --data says otherwise.
TEST_MODE_RATE = 25.0  #: Calls per second and endpoint, as with a test key. Source: https://docs.stripe.com/rate-limits
#: The same from day to day where they are free, so that what was exported in another terminal stays right.
USUAL_PORTS = {"redis": 6390, "sandbox": 12111, "flower": 5555, "webhooks": 8000}


@dataclass(frozen=True)
class Ports:
    """Where to listen; None is the usual port, or any other if that is taken."""

    redis: int | None = None
    sandbox: int | None = None
    flower: int | None = None
    webhooks: int | None = None


def run(data: Path | None, ports: Ports) -> None:
    """Run everything until somebody asks to end."""
    root = checkout.root()
    directory = (data or root / STATE).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    if data is None:
        (directory / ".gitignore").write_text("*\n")
    with _alone(directory), Ending() as ending, Programs(ending, _say) as programs, contextlib.suppress(Ended):
        _start(programs, directory, ports)
        programs.watch()


def _start(programs: Programs, directory: Path, ports: Ports) -> None:
    logs = directory / "logs"
    shutil.rmtree(logs, ignore_errors=True)
    given_database, given_redis = setting("DATABASE_URL"), setting("REDIS_URL")
    database_url = given_database or f"sqlite:///{directory / 'customer-jobs.sqlite3'}"
    parse_url(database_url)
    uses_sandbox = setting("STRIPE_API_KEY") is None

    redis_url = given_redis
    if redis_url is None:
        port = _port("redis", ports.redis)
        programs.begin(checkout.redis(logs, port))
        redis_url = f"redis://{LOOPBACK}:{port}/0"
    settings = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
    stripe = setting("STRIPE_API_BASE") or "https://api.stripe.com"
    webhook = _webhook(ports.webhooks, uses_sandbox=uses_sandbox)
    secret = {} if webhook is None else {"STRIPE_WEBHOOK_SECRET": webhook.secret}
    env = checkout.environment(settings | secret)
    if uses_sandbox:
        port = _port("sandbox", ports.sandbox)
        programs.begin(checkout.sandbox(logs / "sandbox.log", port, rate_limit=TEST_MODE_RATE, webhook=webhook))
        stripe = f"http://{LOOPBACK}:{port}"
        env = checkout.for_the_sandbox(stripe, settings | secret)

    _say(f"database   {_migrate(database_url)}")
    _ping(redis_url)
    _say("redis      ready")
    flower_port = _port("flower", ports.flower)
    programs.begin(checkout.flower(logs / "flower.log", flower_port, env))
    if webhook is not None:
        programs.begin(checkout.webhooks(logs / "webhooks.log", urlsplit(webhook.url).port or 0, env))
    name = f"dev-{os.getpid()}@{socket.gethostname()}"
    programs.begin(checkout.worker(logs / "worker.log", name, env))
    started = (
        (["sandbox"] if uses_sandbox else []) + ["worker"] + ([] if webhook is None else ["webhooks"]) + ["flower"]
    )
    for each in started:
        _say(f"{each:<9}  ready after {show.span(programs.await_ready(each))}")

    print("\ncustomer-jobs is running; Ctrl-C ends it.\n")
    facts = [
        ("database", without_secrets(database_url)),
        ("redis", without_secrets(redis_url)),
        ("Stripe", f"{stripe}  {'the sandbox; it keeps nothing' if uses_sandbox else 'with your key'}"),
        ("webhooks", _about(webhook, uses_sandbox=uses_sandbox)),
        ("Flower", f"http://{LOOPBACK}:{flower_port}"),
        ("logs", str(logs)),
    ]
    show.put(show.facts(facts))
    _print_what_next(settings, uses_sandbox=uses_sandbox, by_environment=bool(given_database and given_redis))


def _webhook(given: int | None, *, uses_sandbox: bool) -> checkout.Webhook | None:
    """The endpoint; None where Stripe's events could not be told from anybody's."""
    secret = setting("STRIPE_WEBHOOK_SECRET") or (new_webhook_secret() if uses_sandbox else None)
    if secret is None:
        return None
    return checkout.Webhook(f"http://{LOOPBACK}:{_port('webhooks', given)}/webhooks/stripe", secret)


def _about(webhook: checkout.Webhook | None, *, uses_sandbox: bool) -> str:
    if webhook is None:
        return "none; set STRIPE_WEBHOOK_SECRET to what `stripe listen` prints"
    told = "the sandbox tells it of every change" if uses_sandbox else "for `stripe listen --forward-to`"
    return f"{webhook.url}  {told}"


def _print_what_next(settings: dict[str, str], *, uses_sandbox: bool, by_environment: bool) -> None:
    command = command_line()
    commands = [
        ("create --email jenny.rosen@example.com --wait 10", "a customer is made"),
        ("fetch cus_nope --wait 10", "a job that fails, and what to do about it"),
        ("list", "the latest jobs"),
        ("events --follow", "events as they arrive: what your own software would consume"),
    ]
    if uses_sandbox:
        commands.insert(
            1, ("create --email jenny+sandbox.429x2@example.com --wait 30", "another, after Stripe has said 429 twice")
        )
    print("\nIn a second terminal:\n")
    if not by_environment:
        for name, value in settings.items():
            print(f"  export {name}={shlex.quote(value)}")
        print()
    show.commands([(f"{command} {words}", does) for words, does in commands])
    print(flush=True)


def command_line() -> str:
    """What to type for `customer-jobs`, here and now."""
    script = Path(sys.executable).with_name("customer-jobs")
    found = shutil.which("customer-jobs")
    if found is not None and Path(found).resolve() == script.resolve():
        return "customer-jobs"
    with contextlib.suppress(ValueError):
        return str(script.relative_to(Path.cwd()))
    return str(script)


def _migrate(database_url: str) -> str:
    engine = open_engine(database_url)
    try:
        applied = migrate(engine)
    finally:
        engine.dispose()
    return f"migrated: {', '.join(applied)}" if applied else "up to date"


def _ping(redis_url: str) -> None:
    stream = Stream(redis_url, setting("EVENT_STREAM") or DEFAULT_STREAM)
    try:
        stream.ping()
    finally:
        stream.close()


def _port(name: str, given: int | None) -> int:
    if given:
        embedded.require_free(given)
        return given
    try:
        embedded.require_free(USUAL_PORTS[name])
    except EmbeddedError:
        return embedded.free_port()
    return USUAL_PORTS[name]


def _say(text: str) -> None:
    # The terminal may be gone by now; what is stopped must be stopped all the same.
    with contextlib.suppress(OSError):
        print(without_secrets(text), flush=True)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CustomerJobsError(
                f"another `customer-jobs dev` uses {str(directory)!r}; stop it, or give this one --data DIR"
            ) from None
        yield
