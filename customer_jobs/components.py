"""The documents of low-code components: what one asks for becomes a job, and what became of the job its outputs."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.orm import Session

from customer_jobs import payload
from customer_jobs.database import Transaction
from customer_jobs.errors import InvalidDocument, InvalidJob
from customer_jobs.job import Job
from customer_jobs.problems import CANCELLED, STILL_RUNNING, Problem
from customer_jobs.producer import CustomerJobs
from customer_jobs.schema import credentials
from customer_jobs.vocabulary import State

TIMEOUT_SECONDS = 60.0  #: How long an answer is waited for; most take less than one second.

Document = Mapping[str, Any]
Outputs = dict[str, Any]


class Component(StrEnum):
    """What a document can stand for."""

    CREATE_CUSTOMER = "stripe.createCustomer"
    GET_CUSTOMER = "stripe.getStripeCustomer"
    LOGIC_NODE = "getOneCustomer"  #: Its document has `inputs` and `config` and names no component.


#: The members that every document may have, beside those of its component.
_OURS = frozenset({"context", "credential", "external_id", "outputs", "stripe_account"})
_MEMBERS = {
    Component.CREATE_CUSTOMER: frozenset({"component", "trigger", "Body"}) | _OURS,
    Component.GET_CUSTOMER: frozenset({"component", "trigger", "customer_id"}) | _OURS,
    Component.LOGIC_NODE: frozenset({"inputs", "config"}) | _OURS,
}
#: The members of `context` that say on whose behalf Stripe is called; the rest is the caller's own.
_CONNECTION = ("credential", "stripe_account")
_TAKEN = frozenset({"customerId", "customerEmail", "Response", "Headers", "output1", "_error", "_error_detail"})

#: Stripe's secret and restricted keys and webhook secrets, and what was cut out of one; `sk_SK` is Slovak.
_SECRET = re.compile(r"(?<![A-Za-z0-9])(?:[sr]k_\w{3}|whsec_)", re.IGNORECASE)
_PATH = re.compile(r"Response(?P<steps>(?:\.[^.\[\]]+|\[\d{1,9}\])*)")
_STEP = re.compile(r"[^.\[\]]+")


@dataclass(frozen=True)
class _Wanted:
    """What a document asks for, checked."""

    component: Component
    argument: Any  #: The parameters of a customer, or the id of one.
    options: dict[str, Any]  #: Of the job: credential, stripe_account, external_id, context.
    extras: dict[str, tuple[str, ...]]  #: The steps to each extra output.


def run(document: Document, *, jobs: CustomerJobs | None = None, timeout_seconds: float = TIMEOUT_SECONDS) -> Outputs:
    """The outputs of a component's document, once its job is final.

    A failure is an output, too: `_error` (one message) and `_error_detail` (the error envelope) and, where Stripe
    answered, `Response` and `Headers`. So is the end of the waiting: code `still_running`, with the job's id in the
    message. Without `jobs`, DATABASE_URL says where the table is.

    Raises InvalidDocument for a malformed one, before anything is enqueued.
    """
    return run_all([document], jobs=jobs, timeout_seconds=timeout_seconds)[0]


def run_all(
    documents: Iterable[Document], *, jobs: CustomerJobs | None = None, timeout_seconds: float = TIMEOUT_SECONDS
) -> list[Outputs]:
    """The outputs of several documents that run at the same time, in their order.

    Nothing is enqueued if one of them is malformed; InvalidDocument says which.
    """
    listed = list(documents)
    with _table(jobs) as table:
        started = start_all(listed, jobs=table)
        return [outputs for _, outputs in finish(listed, started, jobs=table, timeout_seconds=timeout_seconds)]


def start(document: Document, *, jobs: CustomerJobs | None = None, session: Session | Connection | None = None) -> Job:
    """The job of a document, enqueued and not waited for; with `session` as a part of the caller's transaction."""
    return _start([_wanted(document)], jobs, session)[0]


def start_all(
    documents: Iterable[Document], *, jobs: CustomerJobs | None = None, session: Session | Connection | None = None
) -> list[Job]:
    """The jobs of several documents, in their order, all or none."""
    return _start(_all_wanted(documents), jobs, session)


def finish(
    documents: Sequence[Document], started: Sequence[Job], *, jobs: CustomerJobs, timeout_seconds: float
) -> list[tuple[Job, Outputs]]:
    """What became of started documents within the time, all of them together: each job with its outputs."""
    deadline = time.monotonic() + timeout_seconds
    ended = [jobs.wait(job.id, max(0.0, deadline - time.monotonic())) for job in started]
    wanted = _all_wanted(documents)
    return [(job, _outputs(what, job, _pause(jobs, job))) for what, job in zip(wanted, ended, strict=True)]


def outputs(document: Document, job: Job) -> Outputs:
    """The outputs of a document for its job as it stands."""
    return _outputs(_wanted(document), job, None)


def _start(wanted: Sequence[_Wanted], jobs: CustomerJobs | None, session: Session | Connection | None) -> list[Job]:
    with _table(jobs) as table, table._transaction(session) as transaction, transaction.savepoint():  # noqa: SLF001 - this module is a door of the producer
        return [_enqueue(table, each, transaction) for each in wanted]


def _enqueue(table: CustomerJobs, wanted: _Wanted, transaction: Transaction) -> Job:
    options: dict[str, Any] = {**wanted.options, "session": transaction}
    if wanted.component is Component.CREATE_CUSTOMER:
        return table.create_customer(wanted.argument, **options)
    return table.fetch_customer(wanted.argument, **options)


@contextmanager
def _table(jobs: CustomerJobs | None) -> Iterator[CustomerJobs]:
    if jobs is not None:
        yield jobs
        return
    made = CustomerJobs()
    try:
        yield made
    finally:
        made.engine.dispose()


def _all_wanted(documents: Iterable[Document]) -> list[_Wanted]:
    listed = list(documents)
    return [_wanted(each, number if len(listed) > 1 else None) for number, each in enumerate(listed, start=1)]


def _wanted(document: Any, number: int | None = None) -> _Wanted:
    """What a document asks for. Raises InvalidDocument."""
    try:
        return _read(document)
    except InvalidJob as error:
        raise InvalidDocument(error.field, error.problem, number=number) from None


def _read(document: Any) -> _Wanted:
    if not isinstance(document, Mapping):
        raise InvalidDocument("", "a component's document must be a JSON object")
    _refuse_secrets(document)
    component = _component(document)
    known = _MEMBERS[component]
    for name in document:
        if name not in known:
            problem = f"the document has an unknown member {str(name)[:60]!r}; known are {', '.join(sorted(known))}"
            raise InvalidDocument("", problem)
    argument = _body(document) if component is Component.CREATE_CUSTOMER else _customer_id(component, document)
    return _Wanted(component, argument, _options(document), _extras(document.get("outputs")))


def _component(document: Document) -> Component:
    if "component" not in document:
        if document.keys() & {"inputs", "config"}:
            return Component.LOGIC_NODE
        raise InvalidDocument("component", f"is missing; {_CHOICE}")
    named = document["component"]
    if named == Component.CREATE_CUSTOMER:
        return Component.CREATE_CUSTOMER
    if named == Component.GET_CUSTOMER:
        return Component.GET_CUSTOMER
    raise InvalidDocument("component", f"is unknown; {_CHOICE}")


_CHOICE = (
    f"it is {Component.CREATE_CUSTOMER.value!r} or {Component.GET_CUSTOMER.value!r}, "
    "and a logic node has inputs and config instead"
)


def _body(document: Document) -> dict[str, Any]:
    if "trigger" not in document:
        raise InvalidDocument("trigger", "is missing; any value starts the component")
    if "Body" not in document:
        raise InvalidDocument("Body", "is missing; a customer without details is {}")
    body = document["Body"]
    if isinstance(body, str):
        body = _json("Body", body)
    try:
        checked: dict[str, Any] = payload.check_create(body)["body"]
    except InvalidJob as error:
        raise InvalidDocument("Body" if error.field == "body" else error.field, error.problem) from None
    return checked


def _json(field: str, text: str) -> Any:
    try:
        value = json.loads(text)
    except RecursionError:
        raise InvalidDocument(field, "is not JSON: nested too deeply") from None
    except json.JSONDecodeError as error:
        # The text itself is not shown: it may be personal.
        where = f"line {error.lineno}, column {error.colno}"
        raise InvalidDocument(field, f"is not JSON: {error.msg} ({where})") from None
    except ValueError:
        raise InvalidDocument(field, "is not JSON: a number in it is too long") from None
    _refuse_secrets(value, field)
    return value


def _customer_id(component: Component, document: Document) -> str:
    places = {"customer_id": document.get("customer_id")}
    if component is Component.LOGIC_NODE:
        places = {f"{place}.customerId": _node(document, place).get("customerId") for place in ("inputs", "config")}
    for place, value in places.items():
        # An input that is not connected is null or an empty text.
        if value is not None and value != "":
            try:
                return str(payload.check_fetch(value)["customer_id"])
            except InvalidJob as error:
                raise InvalidDocument(place, error.problem) from None
    raise InvalidDocument("", "customer ID is required")


def _node(document: Document, place: str) -> Mapping[str, Any]:
    values = document.get(place)
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise InvalidDocument(place, "must be a JSON object")
    if unknown := [name for name in values if name != "customerId"]:
        raise InvalidDocument(place, f"has an unknown member {str(unknown[0])[:60]!r}; known is customerId")
    return values


def _options(document: Document) -> dict[str, Any]:
    """The job's options: the connection from `context` or from the document itself, the rest of `context` as it is."""
    context = document.get("context")
    if context is not None and not isinstance(context, Mapping):
        raise InvalidDocument("context", "must be a JSON object")
    given = dict(context or {})
    connection = {}
    for name in _CONNECTION:
        inside, outside = given.pop(name, None), document.get(name)
        if inside is not None and outside is not None and inside != outside:
            raise InvalidDocument(name, "is given twice, in the document and in its context")
        connection[name] = inside if outside is None else outside
    credential = connection["credential"]
    return {
        "credential": "default" if credential is None else payload.check_credential(credential),
        "stripe_account": payload.check_stripe_account(connection["stripe_account"]),
        "external_id": payload.check_external_id(document.get("external_id")),
        "context": payload.check_context(given) if given else None,
    }


def _extras(paths: Any) -> dict[str, tuple[str, ...]]:
    if paths is None:
        return {}
    if not isinstance(paths, Mapping):
        raise InvalidDocument("outputs", 'must be a JSON object such as {"city": "Response.address.city"}')
    extras = {}
    for name, path in paths.items():
        if not isinstance(name, str) or not name or name in _TAKEN:
            raise InvalidDocument("outputs", f"{str(name)[:60]!r} is the name of another output")
        found = _PATH.fullmatch(path) if isinstance(path, str) else None
        if found is None:
            problem = "must be a path such as Response.address.city or Response.preferred_locales[0]"
            raise InvalidDocument(f"outputs.{name[:60]}", problem)
        extras[name] = tuple(_STEP.findall(found["steps"]))
    return extras


def _refuse_secrets(value: Any, field: str = "") -> None:
    """Raise InvalidDocument if a text anywhere in a value looks like a key; the text is not repeated."""
    left = [value]  # Not a recursion: JSON may be nested deeper than Python's stack.
    while left:
        each = left.pop()
        if isinstance(each, Mapping):
            left += [*each.keys(), *each.values()]
        elif isinstance(each, list | tuple):
            left += each
        elif isinstance(each, str) and _SECRET.search(each):
            subject = "" if field else "the document "
            problem = (
                f"{subject}holds something that looks like a secret key; keep keys in the worker's settings "
                'and name one, as in "credential": "default"'
            )
            raise InvalidDocument(field, problem)


def _outputs(wanted: _Wanted, job: Job, pause: str | None) -> Outputs:
    result = job.result or {}
    response, headers = result.get("response"), result.get("headers")
    if job.state is not State.SUCCEEDED:
        made = _failure(job, pause) | ({} if response is None else {"Response": response, "Headers": headers})
    elif wanted.component is Component.LOGIC_NODE:
        made = {"output1": response}
    else:
        email = {"customerEmail": result.get("customer_email")} if wanted.component is Component.GET_CUSTOMER else {}
        made = {"customerId": job.customer_id, **email, "Response": response, "Headers": headers}
    return made | {name: _picked(response, steps) for name, steps in wanted.extras.items()}


def _failure(job: Job, pause: str | None) -> Outputs:
    detail = (job.error or {}) if job.state is State.FAILED else _unfinished(job, pause)
    message = detail.get("message") or detail.get("code") or detail.get("type") or f"job {job.id} failed"
    return {"_error": message, "_error_detail": detail}


def _unfinished(job: Job, pause: str | None) -> dict[str, Any]:
    """The envelope for a job that has neither succeeded nor failed."""
    if job.state is State.CANCELLED:
        problem = Problem("cancelled", CANCELLED, f"job {job.id} was cancelled before it was sent")
        remedy = "run the document again if the customer is still wanted"
    else:
        last = (job.error or {}).get("message")
        words = [f"job {job.id} is still {job.state.value}", f"its last attempt: {last}" if last else None, pause]
        problem = Problem("timeout", STILL_RUNNING, "; ".join(filter(None, words)))
        first = "see that a worker runs" if job.started_at is None and pause is None else "it goes on by itself"
        first = f"give credential {job.credential!r} a valid key and restart the workers" if pause else first
        remedy = f"{first}; look again: customer-jobs show {job.id}"
    envelope = problem.envelope(credential=job.credential, transient=not job.final)
    return envelope | {"remedy": remedy}


def _pause(jobs: CustomerJobs, job: Job) -> str | None:
    """Why the credential of an unfinished job is paused, if it is: nothing else about the job would say so."""
    if job.final:
        return None
    with jobs._transaction(None, only_reads=True) as transaction:  # noqa: SLF001 - as above
        row = transaction.row(
            select(credentials.c.reason).where(
                credentials.c.name == job.credential, credentials.c.paused_at.is_not(None)
            )
        )
    return f"credential {job.credential!r} is paused: {row['reason']}" if row is not None else None


def _picked(response: Any, steps: tuple[str, ...]) -> Any:
    """What is found in a response by these steps, or None."""
    value = response
    for step in steps:
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and step.isascii() and step.isdigit() and int(step[:9]) < len(value):
            value = value[int(step[:9])]
        else:
            return None
    return value
