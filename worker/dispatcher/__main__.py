"""`python -m worker.dispatcher`: the dispatcher as a process of its own, for workers whose pool forks."""

from __future__ import annotations

import signal
import socket
import sys
import threading

from customer_jobs.errors import CustomerJobsError
from worker import process
from worker.app import app, dispatcher
from worker.logs import configure_logging
from worker.settings import settings


def main() -> None:
    """Dispatch until SIGTERM or SIGINT."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        configure_logging(settings().log_level)
        process.prepare()
    except CustomerJobsError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    app.loader.import_default_modules()  # The tasks say how abandoned attempts are retried.
    process.start(dispatcher(f"dispatcher@{socket.gethostname()}", slots=0, dispatches=True))
    stop.wait()
    process.stop()
    process.close()


if __name__ == "__main__":
    main()
