"""A worker's connection to its broker comes back soon after the broker does, however long that was away."""

from __future__ import annotations

import logging

import pytest
from kombu.exceptions import OperationalError

from customer_jobs.embedded import free_port
from worker.app import app
from worker.broker import RECONNECT_SECONDS, PromptConsumer


def test_the_pauses_between_two_tries_do_not_grow(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nobody = f"redis://127.0.0.1:{free_port()}/0"
    monkeypatch.setenv("REDIS_URL", nobody)
    monkeypatch.setitem(app.conf, "broker_connection_max_retries", 3)
    consumer = PromptConsumer.__new__(PromptConsumer)
    consumer.app, consumer.first_connection_attempt = app, True

    with caplog.at_level(logging.ERROR), pytest.raises(OperationalError):
        consumer.ensure_connected(app.connection_for_read(nobody))

    pauses = [line.partition("Trying again in ")[2].partition(" seconds")[0] for line in caplog.messages]
    assert pauses == [f"{RECONNECT_SECONDS:.2f}"] * 3
