"""An event as it came, snapshot or thin, read into what we need of it; pure.

Source: https://docs.stripe.com/api/events/object and https://docs.stripe.com/event-destinations#thin-events
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from customer_jobs.webhooks.errors import InvalidEvent

SNAPSHOT, THIN = "event", "v2.core.event"  #: Stripe's `object` of the two forms.

#: What fits its column and is fit to be logged.
_WORD = re.compile(r"[A-Za-z0-9_.:-]{1,255}")


@dataclass(frozen=True)
class Event:
    """What an event says beside its object."""

    id: str
    type: str
    created: datetime
    livemode: bool | None  #: None where it does not say.
    stripe_account: str | None  #: The connected account that it happened in.
    idempotency_key: str | None  #: Of the request that caused it.
    body: Mapping[str, Any]  #: The whole event.

    @property
    def object(self) -> Mapping[str, Any]:
        """The object that it is about, as of then; empty for a thin event."""
        return _mapping(_mapping(self.body.get("data")).get("object"))


def parsed(body: bytes) -> Any:
    """The JSON value of a body. Raises InvalidEvent."""
    try:
        return json.loads(body.decode("utf-8"))
    except RecursionError:
        raise InvalidEvent("the body is nested too deeply") from None
    except ValueError:
        # What the parser says may quote the body.
        raise InvalidEvent("the body is not JSON") from None


def read_event(event: Any) -> Event:
    """The event in a JSON object, or in an event object of the stripe library. Raises InvalidEvent."""
    body = _as_json(event)
    form = body.get("object")
    if form not in (SNAPSHOT, THIN):
        raise InvalidEvent("the body is no event: its object is neither 'event' nor 'v2.core.event'")
    livemode = body.get("livemode")
    if form == THIN:
        account, cause = body.get("context"), _mapping(body.get("reason")).get("request")
    else:
        account, cause = body.get("account"), body.get("request")
    return Event(
        id=_word(body, "id"),
        type=_word(body, "type"),
        created=_moment(body.get("created")),
        livemode=livemode if isinstance(livemode, bool) else None,
        # The context of an organization is a path that ends with the account.
        stripe_account=_word({"account": account.rpartition("/")[2]}, "account") if isinstance(account, str) else None,
        idempotency_key=_text(_mapping(cause).get("idempotency_key")),
        body=body,
    )


def _as_json(event: Any) -> Mapping[str, Any]:
    if isinstance(event, Mapping):
        return event
    if hasattr(event, "to_dict"):  # stripe.Event
        return _mapping(event.to_dict())
    if hasattr(event, "related_object"):  # what stripe's parse_event_notification returns
        names = ("id", "type", "created", "livemode")
        context = getattr(event, "context", None)
        request = getattr(getattr(event, "reason", None), "request", None)
        return {
            "object": THIN,
            **{name: getattr(event, name, None) for name in names},
            "context": None if context is None else str(context),
            "reason": {"request": vars(request) if request is not None else None},
            "related_object": vars(event.related_object) if event.related_object is not None else None,
        }
    raise InvalidEvent(f"the body is no event but {type(event).__name__}")


def _word(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise InvalidEvent(f"the body is no event: its {name} is missing or malformed")
    return value


def _moment(value: Any) -> datetime:
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC)
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        pass  # Told like any other value that is no time.
    raise InvalidEvent("the body is no event: its created is missing or malformed")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
