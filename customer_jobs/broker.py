"""Where Celery's messages lie in Redis, by which names and URLs; who sends and who takes them lives elsewhere."""

from customer_jobs.errors import InvalidSetting

#: As Celery's own default spells it, and as our worker reads it. Source: kombu.transport.redis, `global_keyprefix`.
QUEUE = "customer-jobs"  # Never the default queue of an app that shares the Redis.
PREFIX = "customer-jobs:"


def require_understood(url: str) -> None:
    """Return if Celery, which must be installed, understands the URL of a Redis; raises InvalidSetting."""
    from kombu.connection import Connection

    try:
        Connection(url)  # type: ignore[no-untyped-call]
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidSetting(
            "REDIS_URL is none that Celery understands; it looks like redis://localhost:6379/0 "
            "or rediss://localhost:6379/0?ssl_cert_reqs=required"
        ) from error
