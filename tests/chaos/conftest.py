"""What the acceptance tests run on serves here too."""

from tests.acceptance.conftest import own_stack, redis

__all__ = ["own_stack", "redis"]
