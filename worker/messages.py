"""What Celery may show of the messages it takes, in its events, in Flower and in its log: ids, never what they hold."""

from __future__ import annotations

import logging
import re
from typing import Any

from celery.worker.request import Request

#: A job's id, alone, as Celery writes a task's arguments.
_JOB_ID = re.compile(r"\('[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}',\)")
_NOTHING = {"()", "{}", "[]", ""}
HIDDEN = "…"

#: How the lines begin with which Celery quotes a message that it cannot use, and what to say instead.
_QUOTING = {
    "Received unregistered task": "a message for a task that is not ours was discarded; an app sends customer.enqueue",
    "Received and deleted unknown message": "a message that is no task was discarded",
    "Received invalid task message": "a message that breaks Celery's protocol was discarded",
    "Can't decode message body": "a message that is not JSON was discarded",
}


class Message(Request):
    """A task's message that shows its arguments only where they are a job's id."""

    _argsrepr: str
    _kwargsrepr: str

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The sender wrote them, for others to read: they may be anybody's data.
        self._argsrepr = _shown(self._argsrepr)
        self._kwargsrepr = _shown(self._kwargsrepr)

    def info(self, safe: bool = False) -> dict[str, Any]:  # noqa: ARG002 - Celery's signature
        """What `inspect active` and Flower's page of a worker show of it while it runs."""
        shown: dict[str, Any] = super().info(safe=True)
        return shown


class WithoutMessages(logging.Filter):
    """Says in a line that a message was discarded, where Celery would quote all of it."""

    def filter(self, record: logging.LogRecord) -> bool:
        for beginning, instead in _QUOTING.items():
            if str(record.msg).startswith(beginning):
                record.msg, record.args = instead, ()
                record.exc_info = record.exc_text = None
        return True


def _shown(representation: Any) -> str:
    text = str(representation or "")
    return text if text in _NOTHING or _JOB_ID.fullmatch(text) else HIDDEN
