"""A worker that dies where DIE_AT says, `celery -A tests.chaos.doomed worker`, or a command, `python -m …`."""

import os
from pathlib import Path

from customer_jobs.cli import main
from tests.chaos.points import DIE_AT, LAST_WORDS, die_at
from worker.app import app

__all__ = ["app"]

die_at(os.environ[DIE_AT], Path(os.environ[LAST_WORDS]))

if __name__ == "__main__":
    main()
