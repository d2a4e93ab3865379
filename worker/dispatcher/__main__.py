"""`python -m worker.dispatcher`: the dispatcher as a process of its own, for workers whose pool forks."""

from __future__ import annotations

import argparse
import signal
import socket
import sys
import threading
from collections.abc import Sequence

from customer_jobs.errors import CustomerJobsError
from worker import process
from worker.app import app, dispatcher
from worker.logs import configure_logging
from worker.settings import settings

HELP = """Dispatch due jobs, relay events, rescue and prune: what runs within every worker of threads, as a process.

Needed beside workers whose pool forks (celery -A worker.app worker --pool prefork): they make the attempts and
dispatch nothing. One process is enough; of several, one leads and the others stand by. It takes its settings from the
environment, the same as the workers', and ends on SIGTERM or SIGINT.
"""
INTERRUPTED = 130  #: 128 + SIGINT


def main(words: Sequence[str] | None = None) -> None:
    """Dispatch until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(
        prog="python -m worker.dispatcher", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(words)
    try:
        configure_logging(settings().log_level)
        # While it waits for the database nothing is under way, and a signal may end it at once.
        process.prepare()
    except CustomerJobsError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    app.loader.import_default_modules()  # The tasks say how abandoned attempts are retried.
    process.start(dispatcher(f"dispatcher@{socket.gethostname()}", slots=0, dispatches=True))
    stop.wait()
    process.stop()
    process.close()


if __name__ == "__main__":
    main()
