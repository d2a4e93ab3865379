"""The commands that run programs on this machine: sandbox, dev, demo."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from customer_jobs.cli.exits import examples

if TYPE_CHECKING:
    from customer_jobs.sandbox import Sandbox

SANDBOX_PORT = 12111  #: That of stripe-mock, which many have in their settings already.
SANDBOX_KEY = "sk_test_sandbox"

commands = typer.Typer()

PerSecond = Annotated[float | None, typer.Option(metavar="N", help="Requests per second and endpoint; 25 at Stripe.")]
Port = Annotated[int | None, typer.Option(metavar="N", min=0, max=65535, help="Any free one if left out.")]


@commands.command(
    epilog=examples(
        "customer-jobs sandbox",
        "customer-jobs sandbox --port 0 --latency 100ms-400ms --rate-limit 25",
        "customer-jobs sandbox --faults 500_after:0.05,reset_after:0.05",
        "customer-jobs sandbox --webhook http://127.0.0.1:8000/webhooks/stripe",
    )
)
def sandbox(
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0 takes a free one.")] = SANDBOX_PORT,
    latency: Annotated[
        str | None, typer.Option(metavar="TIME|LEAST-MOST", help="How long an answer takes: 0.2, 200ms, 100ms-400ms.")
    ] = None,
    rate_limit: PerSecond = None,
    account_rate_limit: Annotated[
        float | None,
        typer.Option(metavar="N", help="Requests per second of an account; 100 at Stripe, 25 in test mode."),
    ] = None,
    concurrency_limit: Annotated[
        int | None, typer.Option(metavar="N", help="Requests under way at once and per endpoint.")
    ] = None,
    account_concurrency_limit: Annotated[
        int | None, typer.Option(metavar="N", help="Requests under way at once of an account.")
    ] = None,
    faults: Annotated[
        str, typer.Option(metavar="FAULT:SHARE,…", help="What goes wrong by chance, as in 500_after:0.05.")
    ] = "",
    list_faults: Annotated[bool, typer.Option("--list-faults", help="Say what each fault does, and exit.")] = False,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Makes chance repeatable.")] = None,
    webhook: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Tell this endpoint of every change, signed with STRIPE_WEBHOOK_SECRET."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document once it listens.")] = False,
) -> None:
    """Run a local Stripe for customers, until Ctrl-C.

    It listens on 127.0.0.1 only, takes any test key, keeps customers in memory and forgets them when it ends. It
    checks parameters, replays idempotency keys, limits rates and, on demand, fails in every way that Stripe can.
    """
    from customer_jobs.cli import arguments
    from customer_jobs.environment import setting
    from customer_jobs.errors import CustomerJobsError
    from customer_jobs.sandbox import Endpoint, serve

    if list_faults:
        _print_faults()
        return

    secret = setting("STRIPE_WEBHOOK_SECRET") or new_webhook_secret()

    def ready(started: Sandbox) -> None:
        _print_sandbox(started, None if webhook is None else secret, as_json=as_json)

    try:
        serve(
            port,
            latency_seconds=0.0 if latency is None else arguments.latency("--latency", latency),
            rate_limit=rate_limit,
            account_rate_limit=account_rate_limit,
            concurrency_limit=concurrency_limit,
            account_concurrency_limit=account_concurrency_limit,
            faults=faults,
            seed=seed,
            webhooks=() if webhook is None else (Endpoint(webhook, secret),),
            on_ready=ready,
        )
    except OSError as error:
        raise CustomerJobsError(
            f"--port: cannot listen on 127.0.0.1:{port} ({error.strerror}); choose another, or 0 for a free one"
        ) from error
    except ValueError as error:
        raise CustomerJobsError(f"the sandbox cannot be run like that: {error}") from error


@commands.command(
    epilog=examples(
        "customer-jobs dev",
        "STRIPE_API_KEY=sk_test_… customer-jobs dev",
        "DATABASE_URL=postgresql://app@localhost/app customer-jobs dev --flower-port 5000",
    )
)
def dev(
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the database and logs are kept.  [default: .customer-jobs]"),
    ] = None,
    redis_port: Port = None,
    sandbox_port: Port = None,
    flower_port: Port = None,
    webhooks_port: Port = None,
) -> None:
    """Run everything on this machine, until Ctrl-C.

    A SQLite database, Valkey, the sandbox, a worker, the webhook endpoint and Flower, in the checkout and with nothing
    installed but its virtual environment. DATABASE_URL, REDIS_URL and STRIPE_API_KEY take the place of what they name.
    A program that ends is started again; none is left behind, however this command ends.
    """
    from customer_jobs.cli.dev import Ports, run

    run(data, Ports(redis_port, sandbox_port, flower_port, webhooks_port))


@commands.command(epilog=examples("customer-jobs demo", "STRIPE_API_KEY=sk_test_… customer-jobs demo"))
def demo() -> None:
    """Tell the whole story in a few seconds.

    Starts a database, Valkey, the sandbox and a worker in a temporary directory, creates and fetches customers, lets
    a job fail and another one meet Stripe's rate limit, and shows what the job table, the event stream and the
    sandbox's log say of it. Nothing is left behind. With STRIPE_API_KEY, a test key, it talks to Stripe itself. Exit
    code 1: something came out otherwise than told.
    """
    from customer_jobs.cli.demo import run

    raise typer.Exit(run())


def new_webhook_secret() -> str:
    """A signing secret that nobody else has."""
    import secrets

    return f"whsec_{secrets.token_hex(16)}"


def _print_sandbox(started: Sandbox, webhook_secret: str | None, *, as_json: bool) -> None:
    from customer_jobs.cli import show

    env = {"STRIPE_API_BASE": started.url, "STRIPE_API_KEY": SANDBOX_KEY}
    if webhook_secret is not None:
        env["STRIPE_WEBHOOK_SECRET"] = webhook_secret
    if as_json:
        show.json_line({"url": started.url, "port": started.port, "env": env})
        return
    from customer_jobs.sandbox import FAULTS

    print(f"The sandbox listens on {started.url}; Ctrl-C ends it, and it forgets everything.\n")
    for name, value in env.items():
        print(f"  export {name}={value}")
    print("\nWhat goes wrong is chosen by the customer, or from outside:\n")
    ways = [
        ("customer-jobs create --email jenny+sandbox.429x2@example.com", "429 twice, then it passes"),
        ("customer-jobs create --name Jenny --metadata sandbox=500_after,slow_2s", "made, but answered 500; then slow"),
        ("customer-jobs fetch cus_sandbox_reset", "the connection breaks once, then there is no such customer"),
        (
            f'curl {started.url}/_sandbox/faults -d \'{{"fault": "401x3"}}\'',
            "the next three requests find the key revoked",
        ),
        (f"curl {started.url}/_sandbox/requests", "what has arrived"),
    ]
    show.commands(ways)
    names = textwrap.fill(f"Faults: {', '.join(FAULTS)}.", width=min(show.console().width, 100))
    print(f"\n{names}\n\nWhat each one does: customer-jobs sandbox --list-faults", flush=True)


def _print_faults() -> None:
    from customer_jobs.cli import show
    from customer_jobs.sandbox import FAULTS

    show.put(show.pairs([(fault.name, fault.means) for fault in FAULTS.values()]))
