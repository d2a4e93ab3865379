"""The ready endpoint, `customer_jobs.webhooks.asgi:app`, for any ASGI server; answers 2xx only after the commit.

Nothing happens at import: settings are read and the engine is made when the server starts the app.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio
from sqlalchemy import select
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from customer_jobs.database import database_url, open_engine, reading
from customer_jobs.errors import Unavailable
from customer_jobs.producer import CustomerJobs
from customer_jobs.schema import webhook_events
from customer_jobs.webhooks.errors import InvalidEvent, InvalidSignature
from customer_jobs.webhooks.receiver import WebhookReceiver
from customer_jobs.webhooks.rules import RULES, Rule
from customer_jobs.webhooks.secrets import webhook_secrets

MAX_BODY_BYTES = 1024 * 1024  #: Stripe's events are far below; a body is read before its signature can be checked.
BODY_SECONDS = 10.0  #: To receive it in; whoever is slower occupies a connection for nothing.
ANSWER_SECONDS = 10.0  #: To store it in. A hanging database must be told as 503, or Stripe learns nothing.
THREADS = 8  #: Transactions at once in one process; more only wait for one another in the database.

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class TooLarge(Exception):
    """The body has more bytes than an event ever has."""


def make_app(rules: Sequence[Rule] = RULES) -> Starlette:
    """The endpoint with rules of your own; its settings come from the environment when it starts."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        secrets = webhook_secrets()
        engine = open_engine(database_url(), pool_size=THREADS)
        jobs = CustomerJobs(engine)
        app.state.engine = engine
        app.state.receivers = {name: WebhookReceiver(jobs, own, name, rules) for name, own in secrets.items()}
        app.state.threads = anyio.CapacityLimiter(THREADS)
        yield
        engine.dispose()

    app = Starlette(
        routes=[
            Route("/webhooks/stripe", webhook, methods=["POST"]),
            Route("/webhooks/stripe/{credential}", webhook, methods=["POST"]),
            Route("/health", health, methods=["GET"]),
        ],
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # Stripe takes a redirect for a failure.
    return app


async def webhook(request: Request) -> Response:
    """One delivery."""
    credential = request.path_params.get("credential", "default")
    receiver: WebhookReceiver | None = request.app.state.receivers.get(credential)
    if receiver is None:
        return _refused(404, "there is no such endpoint")
    try:
        with anyio.fail_after(BODY_SECONDS):
            body = await _body(request)
    except TooLarge:
        return _refused(413, f"the body has more than {MAX_BODY_BYTES:,} bytes")
    except TimeoutError:
        return _refused(408, f"the body was not here within {BODY_SECONDS:g} s")
    except ClientDisconnect:
        return _refused(400, "the body was cut off")
    signature = request.headers.get("stripe-signature", "")
    try:
        receipt = await _in_a_thread(request, lambda: receiver.receive(body, signature))
    except (InvalidSignature, InvalidEvent) as error:
        return _refused(400, str(error))
    except (Unavailable, TimeoutError) as error:
        log.error("not stored: the database is out of reach error=%s", type(error).__name__)  # noqa: TRY400 - no news in where
        return _refused(503, "not stored: try again")
    except Exception as error:  # noqa: BLE001 - the outermost loop
        # Where, and not the message: a database's words may quote the row.
        log.error("not stored error=%s\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))  # noqa: TRY400
        return _refused(500, "not stored: try again")
    return JSONResponse({"event_id": receipt.event_id, "job_id": receipt.job_id, "duplicate": receipt.duplicate})


async def health(request: Request) -> Response:
    """Whether an event could be stored now: the database answers and has our tables."""

    def look() -> None:
        with reading(request.app.state.engine) as transaction:
            transaction.rows(select(webhook_events.c.id).limit(1))

    try:
        await _in_a_thread(request, look)
    except Exception as error:  # noqa: BLE001 - whatever it is, this process is not fit
        log.warning("not healthy error=%s", type(error).__name__)
        return JSONResponse({"status": "unavailable"}, 503)
    return JSONResponse({"status": "ok"})


async def _body(request: Request) -> bytes:
    """The body, or TooLarge as soon as that is certain, whether its length was announced or not."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > MAX_BODY_BYTES:
        raise TooLarge
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise TooLarge
    return bytes(body)


async def _in_a_thread(request: Request, work: Callable[[], Result]) -> Result:
    """What the work returns, done beside the loop; TimeoutError if it takes too long, though it may still be done."""
    with anyio.fail_after(ANSWER_SECONDS):
        return await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=request.app.state.threads)


def _refused(status: int, why: str) -> Response:
    if status < 500:
        log.warning("refused status=%s why=%s", status, why)
    # What is left of a body must not be taken for the next request.
    headers = {"Connection": "close"} if status in {408, 413} else None
    return JSONResponse({"error": why}, status, headers)


app = make_app()
