"""The sandbox as a process of its own, until a signal ends it; prints nothing."""

import signal
import threading
from collections.abc import Callable

from customer_jobs.sandbox.pace import Latency
from customer_jobs.sandbox.server import Sandbox
from customer_jobs.sandbox.webhooks import Endpoint


def serve(
    port: int,
    *,
    latency_seconds: Latency = 0.0,
    rate_limit: float | None = None,
    account_rate_limit: float | None = None,
    rate_bucket_seconds: float = 1.0,
    concurrency_limit: int | None = None,
    account_concurrency_limit: int | None = None,
    faults: str = "",
    seed: int | None = None,
    webhooks: tuple[Endpoint, ...] = (),
    on_ready: Callable[[Sandbox], None] = lambda _: None,
) -> None:
    """Run a sandbox until SIGTERM or SIGINT; `on_ready` is called once it listens.

    Must be called in the main thread, where signals arrive. The handlers before are put back.
    """
    ended = threading.Event()
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with Sandbox(
            port,
            latency_seconds=latency_seconds,
            rate_limit=rate_limit,
            account_rate_limit=account_rate_limit,
            rate_bucket_seconds=rate_bucket_seconds,
            concurrency_limit=concurrency_limit,
            account_concurrency_limit=account_concurrency_limit,
            faults=faults,
            seed=seed,
            webhooks=webhooks,
        ) as sandbox:
            on_ready(sandbox)
            ended.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
