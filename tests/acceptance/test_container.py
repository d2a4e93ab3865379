"""The health checks of docker-compose.yml, asked of real programs: fine while they work, not fine once they do not."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from customer_jobs import embedded
from customer_jobs.embedded import wait_until
from tests.acceptance.stack import CHECKOUT, READY_SECONDS, Stack
from tests.acceptance.terminal import run, status, up

pytestmark = pytest.mark.slow


def health_check(service: str) -> str:
    """What Docker runs, as a shell takes it."""
    services: Any = yaml.safe_load((CHECKOUT / "docker-compose.yml").read_text())["services"]
    kind, *words = services[service]["healthcheck"]["test"]
    return words[0].replace("$$", "$") if kind == "CMD-SHELL" else shlex.join(words)


@pytest.mark.slow
def test_a_worker_is_healthy_while_it_takes_messages(stack: Stack, tmp_path: Path) -> None:
    with up("celery -A worker.app worker", stack.settings, tmp_path, stop_signal=signal.SIGTERM) as program:
        wait_until(lambda: " ready" in program.log.read_text(), READY_SECONDS, "it is ready", program=program)
        healthy = run(health_check("worker"), stack.settings)

        program.send(signal.SIGSTOP)
        hung = run(health_check("worker"), stack.settings)
        program.send(signal.SIGCONT)

    assert healthy.returncode == 0, healthy.stdout + healthy.stderr
    assert hung.returncode != 0


@pytest.mark.slow
def test_flower_is_healthy_while_it_answers(stack: Stack, tmp_path: Path) -> None:
    port = embedded.free_port()
    check = health_check("flower").replace(":5555/", f":{port}/")
    settings = stack.settings | {"FLOWER_BASIC_AUTH": "operator:letters", "FLOWER_READ_ONLY": "true"}
    with up(f"celery -A worker.app flower --port={port}", settings, tmp_path) as program:
        wait_until(lambda: status(port, "/healthcheck") == 200, READY_SECONDS, "it answers", program=program)
        healthy = run(check, {})
        stranger, operator = status(port, "/"), status(port, "/", "operator:letters")

    assert healthy.returncode == 0, healthy.stderr
    assert (stranger, operator) == (401, 200)
    assert run(check, {}).returncode != 0
