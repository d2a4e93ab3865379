"""The endpoint as a process of its own, or several, until a signal ends it: requests under way are still answered."""

from __future__ import annotations

import signal
import socket
import sys
from typing import Any

import uvicorn

from customer_jobs.database import database_url
from customer_jobs.environment import setting
from customer_jobs.errors import CustomerJobsError, InvalidSetting
from customer_jobs.webhooks.asgi import ANSWER_SECONDS, BODY_SECONDS
from customer_jobs.webhooks.secrets import webhook_secrets

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


def serve(host: str, port: int, workers: int) -> None:
    """Serve until SIGTERM or SIGINT. Raises InvalidSetting or CustomerJobsError before anything listens."""
    webhook_secrets()
    database_url()
    logging = _logging(_level())
    _require_free(host, port)
    # uvicorn drains and then raises the signal again, for whoever started it: that is a good end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    uvicorn.run(
        "customer_jobs.webhooks.asgi:app",
        host=host,
        port=port,
        workers=workers,
        lifespan="on",
        log_config=logging,
        access_log=False,  # One line for each event says more.
        server_header=False,
        timeout_graceful_shutdown=int(BODY_SECONDS + ANSWER_SECONDS),
    )


def _require_free(host: str, port: int) -> None:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise CustomerJobsError(
            f"--port: cannot listen on {host}:{port} ({error.strerror}); choose another, or 0 for a free one"
        ) from error


def _level() -> str:
    level = (setting("LOG_LEVEL") or "INFO").upper()
    if level not in LEVELS:
        raise InvalidSetting(f"LOG_LEVEL must be one of {', '.join(LEVELS)}, not {level!r}")
    return level


def _logging(level: str) -> dict[str, Any]:
    """Our lines and uvicorn's on standard error, in each process."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "loggers": {
            name: {"handlers": ["stderr"], "level": level, "propagate": False} for name in ("uvicorn", "customer_jobs")
        },
    }
