"""The HTTP door for tests and benchmarks in other processes, under /_sandbox/; Stripe has nothing like it."""

import dataclasses
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from customer_jobs.sandbox.calls import Call
from customer_jobs.sandbox.journal import Request
from customer_jobs.sandbox.webhooks import Endpoint

if TYPE_CHECKING:
    from customer_jobs.sandbox.server import Sandbox

Json = dict[str, Any]
Door = Callable[["Sandbox", Json], Any]


def answer(sandbox: "Sandbox", call: Call) -> tuple[int, Any]:
    """The status and the document for a call under /_sandbox/."""
    doors = DOORS.get(call.path)
    if doors is None:
        return 404, {"error": {"message": f"no such door {call.path!r}; known: {', '.join(DOORS)}"}}
    door = doors.get(call.method)
    if door is None:
        return 405, {"error": {"message": f"{call.path} knows {', '.join(doors)}, not {call.method}"}}
    try:
        return 200, door(sandbox, _arguments(call))
    except (ValueError, TypeError, KeyError) as error:
        return 400, {"error": {"message": str(error)}}


def _arguments(call: Call) -> Json:
    """Query parameters, or the members of a JSON body."""
    if not call.body:
        return {name: values[-1] for name, values in parse_qs(call.query).items()}
    try:
        document = json.loads(call.body)
    except ValueError as error:
        raise ValueError("the body is not JSON") from error
    if not isinstance(document, dict):
        raise TypeError("the body is not a JSON object")
    return document


def _health(sandbox: "Sandbox", _: Json) -> Json:
    return {"status": "ok", "url": sandbox.url}


def _requests(sandbox: "Sandbox", arguments: Json) -> list[Json]:
    requests = sandbox.requests_since(int(arguments.get("since", 0)))
    # Not asdict, which copies every value: a benchmark reads a hundred thousand of these.
    return [{name: getattr(request, name) for name in Request.__slots__} for request in requests]


def _customers(sandbox: "Sandbox", arguments: Json) -> list[Json]:
    return sandbox.customers(arguments.get("account"), arguments.get("mode"))


def _add_customer(sandbox: "Sandbox", arguments: Json) -> Json:
    fields = dict(arguments)
    return sandbox.add_customer(fields.pop("id"), **fields)


def _add_fault(sandbox: "Sandbox", arguments: Json) -> Json:
    return sandbox.faults.add(**arguments).document()


def _faults(sandbox: "Sandbox", _: Json) -> list[Json]:
    return [rule.document() for rule in sandbox.faults.rules()]


def _clear_faults(sandbox: "Sandbox", _: Json) -> Json:
    sandbox.faults.clear()
    return {}


def _limits(sandbox: "Sandbox", arguments: Json) -> Json:
    if arguments:
        sandbox.set_limits(**arguments)
    return dataclasses.asdict(sandbox.limits)


def _latency(sandbox: "Sandbox", arguments: Json) -> Json:
    seconds = arguments["seconds"]
    sandbox.set_latency(tuple(seconds) if isinstance(seconds, list) else float(seconds))
    return {"seconds": seconds}


def _hold(sandbox: "Sandbox", arguments: Json) -> Json:
    sandbox.hold(after=bool(arguments.get("after", False)))
    return {"held": True}


def _release(sandbox: "Sandbox", _: Json) -> Json:
    sandbox.release()
    return {"held": False}


def _clear(sandbox: "Sandbox", _: Json) -> Json:
    sandbox.clear()
    return {}


def _webhooks(sandbox: "Sandbox", arguments: Json) -> list[Json]:
    """One endpoint, or all of them under `endpoints`; an empty list ends deliveries."""
    if arguments:
        described = arguments.get("endpoints", [arguments])
        sandbox.webhooks.configure(
            *(Endpoint(**{**one, "types": tuple(one.get("types", ("*",)))}) for one in described)
        )
    return [{**dataclasses.asdict(endpoint), "secret": "whsec_****"} for endpoint in sandbox.webhooks.endpoints]


def _deliveries(sandbox: "Sandbox", _: Json) -> list[Json]:
    return [dataclasses.asdict(delivery) for delivery in sandbox.webhooks.deliveries()]


def _send_event(sandbox: "Sandbox", arguments: Json) -> Json:
    return sandbox.send_event(**arguments)


#: What there is, by path and method.
DOORS: dict[str, dict[str, Door]] = {
    "/_sandbox/health": {"GET": _health},
    "/_sandbox/requests": {"GET": _requests},
    "/_sandbox/customers": {"GET": _customers, "POST": _add_customer},
    "/_sandbox/faults": {"GET": _faults, "POST": _add_fault, "DELETE": _clear_faults},
    "/_sandbox/limits": {"GET": _limits, "POST": _limits},
    "/_sandbox/latency": {"POST": _latency},
    "/_sandbox/hold": {"POST": _hold},
    "/_sandbox/release": {"POST": _release},
    "/_sandbox/clear": {"POST": _clear},
    "/_sandbox/webhooks": {"GET": _webhooks, "POST": _webhooks},
    "/_sandbox/deliveries": {"GET": _deliveries},
    "/_sandbox/events": {"POST": _send_event},
}
