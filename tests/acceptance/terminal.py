"""What a person does in a terminal: commands that end, commands that stay up, and a look at a page."""

from __future__ import annotations

import base64
import http.client
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from customer_jobs import embedded
from customer_jobs.embedded import Program
from tests.acceptance.stack import CHECKOUT, environment

COMMAND_SECONDS = 60.0
PROGRAMS = str(Path(sys.executable).parent)


def in_terminal(settings: Mapping[str, str]) -> dict[str, str]:
    """The environment of somebody who has activated the virtual environment and exported the settings."""
    plain = environment(settings)
    return plain | {"PATH": f"{PROGRAMS}{os.pathsep}{plain['PATH']}"}


def run(command: str, settings: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", command],
        capture_output=True,
        text=True,
        cwd=CHECKOUT,
        env=in_terminal(settings),
        timeout=COMMAND_SECONDS,
    )


@contextmanager
def up(
    command: str, settings: Mapping[str, str], directory: Path, *, stop_signal: signal.Signals = signal.SIGINT
) -> Iterator[Program]:
    """A command that goes on until it is stopped, in good order."""
    env, words = in_terminal(settings), shlex.split(command)
    started = embedded.start(words[0], words, log=directory / "log", env=env, cwd=CHECKOUT, stop_signal=stop_signal)
    with started:
        yield started
        assert started.stop() == 0, started.log_tail()


def status(port: int, path: str, user: str | None = None) -> int | None:
    headers = {} if user is None else {"Authorization": f"Basic {base64.b64encode(user.encode()).decode()}"}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status
    except OSError:
        return None
    finally:
        connection.close()
