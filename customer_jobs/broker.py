"""The names under which Celery's messages lie in Redis; who sends and who takes them lives elsewhere."""

#: As Celery's own default spells it, and as our worker reads it. Source: kombu.transport.redis, `global_keyprefix`.
QUEUE = "customer-jobs"  # Never the default queue of an app that shares the Redis.
PREFIX = "customer-jobs:"
