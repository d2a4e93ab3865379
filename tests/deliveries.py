"""Sends events as Stripe does: signed, over HTTP, again until they are acknowledged, from processes of its own."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from customer_jobs.sandbox.webhooks import sign

SECRET = "whsec_test"
PAUSE_SECONDS = 0.05  # before a delivery is tried again
TIMEOUT_SECONDS = 15.0

Json = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What became of one request."""

    event_id: str
    status: int | None  #: None without an answer.
    document: Any = None

    @property
    def acknowledged(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


def post(url: str, body: bytes, signature: str | None = None, *, secret: str = SECRET) -> tuple[int, Any]:
    """The status and the JSON document of one request."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_SECONDS)
    try:
        header = sign(body, secret) if signature is None else signature
        connection.request("POST", parts.path, body, {"Stripe-Signature": header})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def deliver(url: str, events: Sequence[Json], for_seconds: float = 0) -> list[Answer]:
    """Every answer to the events, one after the other; what is not acknowledged is tried again for so long."""
    answers = []
    for event in events:
        give_up_at = time.monotonic() + for_seconds
        while True:
            try:
                answer = Answer(event["id"], *post(url, json.dumps(event).encode()))
            except (OSError, http.client.HTTPException):
                answer = Answer(event["id"], None)
            answers.append(answer)
            if answer.acknowledged or time.monotonic() > give_up_at:
                break
            time.sleep(PAUSE_SECONDS)
    return answers


def deliver_all(senders: int, url: str, events: Sequence[Json], for_seconds: float = 0) -> list[Answer]:
    """Every answer, the events being shared out among so many processes."""

    def send(number: int) -> list[Answer]:
        order = json.dumps([url, events[number::senders], for_seconds])
        command = [sys.executable, "-m", __spec__.name]
        told = subprocess.run(command, input=order, stdout=subprocess.PIPE, text=True, check=True).stdout
        return [Answer(*answer) for answer in json.loads(told)]

    with ThreadPoolExecutor(senders) as threads:
        return [answer for share in threads.map(send, range(senders)) for answer in share]


if __name__ == "__main__":
    print(json.dumps([[each.event_id, each.status, each.document] for each in deliver(*json.load(sys.stdin))]))
