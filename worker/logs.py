"""How the worker logs: structured lines, one per attempt, without personal data, keys or payloads."""

from __future__ import annotations

import logging
import sys
import traceback

import structlog

from worker.messages import WithoutMessages

#: These log URLs with parameters, or bodies, below WARNING.
_TALKATIVE = ("stripe", "urllib3", "requests", "kombu", "amqp", "sqlalchemy", "redis", "asyncio", "psycopg", "alembic")

#: Celery's own lines on each task; ours say more. At DEBUG they show the arguments of messages.
_REPEATING = ("celery.app.trace", "celery.worker.strategy", "celery.pool", "celery.concurrency")


def frames(error: BaseException) -> str:
    """Where an error came from, without its message: a database's words may quote the row."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    return "".join(
        f"{type(each).__name__}:\n{''.join(traceback.format_tb(each.__traceback__))}" for each in reversed(causes)
    )


def configure_logging(level: str) -> None:
    """Send every log line of this process to standard error, ours and Celery's alike, as `key=value`."""
    before: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*before, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.LogfmtRenderer(
                    key_order=["timestamp", "level", "logger", "event"], bool_as_flag=False
                ),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _TALKATIVE + _REPEATING:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(level)))
    logging.getLogger("celery.worker.consumer.consumer").addFilter(WithoutMessages())
