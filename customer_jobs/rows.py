"""Rows of a file as what the producer takes, each checked with its line; nothing is written here."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from customer_jobs import payload
from customer_jobs.errors import InvalidJob
from customer_jobs.vocabulary import Kind

EXTERNAL_ID, CUSTOMER_ID, BODY, CONTEXT = "external_id", "customer_id", "body", "context"

Fields = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One row of the file, checked."""

    number: int  #: Of the line in the file that it begins on, from 1.
    options: Fields  #: Arguments of `create_customer` or `fetch_customer`.


@dataclass(frozen=True)
class BadLine:
    """One row that cannot be taken."""

    number: int
    field: str
    problem: str

    def __str__(self) -> str:
        return f"line {self.number}: {self.field}: {self.problem}"


def read(file: TextIO, kind: Kind, *, needs_external_id: bool) -> tuple[list[Line], list[BadLine]]:
    """The rows of CSV, whose first line names the fields, or of JSON with an object on each line."""
    lines: list[Line] = []
    bad: list[BadLine] = []
    taken: dict[str, tuple[int, str]] = {}
    for number, row in _rows(file):
        try:
            if isinstance(row, InvalidJob):
                raise row
            options = _create(row) if kind is Kind.CUSTOMER_CREATE else _fetch(row)
            _check_external_id(options, number, taken, kind, needed=needs_external_id)
        except InvalidJob as error:
            bad.append(BadLine(number, error.field, error.problem))
        else:
            lines.append(Line(number, options))
    return lines, bad


def _create(row: Mapping[str, Any]) -> Fields:
    options = {name: row[name] for name in (EXTERNAL_ID, CONTEXT) if row.get(name) is not None}
    others = {name: value for name, value in row.items() if name not in (EXTERNAL_ID, CONTEXT)}
    # Stripe knows no parameter `body`: such a row is one of `create_customers`.
    if BODY in others and len(others) > 1:
        raise InvalidJob(BODY, f"stands beside {min(others.keys() - {BODY})!r}; put all parameters into it")
    body = others.get(BODY, others)
    checked = payload.check_create(body)["body"]
    if not checked:
        raise InvalidJob(BODY, "is empty: the row names nothing of a customer")
    return _checked(options) | {BODY: checked}


def _fetch(row: Mapping[str, Any]) -> Fields:
    known = (CUSTOMER_ID, EXTERNAL_ID, CONTEXT)
    if unknown := sorted(row.keys() - set(known)):
        raise InvalidJob(unknown[0], f"is unknown; of a fetch there may be {', '.join(known)}")
    payload.check_fetch(row.get(CUSTOMER_ID))
    return _checked({name: row[name] for name in known if row.get(name) is not None})


def _checked(options: Fields) -> Fields:
    payload.check_external_id(options.get(EXTERNAL_ID))
    payload.check_context(options.get(CONTEXT))
    return options


def _check_external_id(
    options: Fields, number: int, taken: dict[str, tuple[int, str]], kind: Kind, *, needed: bool
) -> None:
    external_id = options.get(EXTERNAL_ID)
    if external_id is None:
        if needed and kind is Kind.CUSTOMER_CREATE:
            raise InvalidJob(EXTERNAL_ID, "is missing: a second run would create this customer once more")
        return
    digest = payload.payload_digest(options.get(BODY, options.get(CUSTOMER_ID)))
    first, held = taken.setdefault(external_id, (number, digest))
    if held != digest:
        raise InvalidJob(EXTERNAL_ID, f"{external_id[:60]!r} is that of line {first}, which says otherwise")


def _rows(file: TextIO) -> Iterator[tuple[int, Fields | InvalidJob]]:
    """Each row with its line; an InvalidJob where the line itself cannot be read."""
    head = file.readline()
    number = 1
    while head and not head.strip():
        head, number = file.readline(), number + 1
    if head.lstrip().startswith("{"):
        yield from _json_rows(head, file, number)
    elif head.lstrip().startswith("["):
        yield number, InvalidJob("first line", "begins a list; put each object on a line of its own: jq -c '.[]'")
    elif head:
        yield from _csv_rows(head, file, number)


def _json_rows(head: str, file: TextIO, number: int) -> Iterator[tuple[int, Fields | InvalidJob]]:
    line = head
    while line:
        if line.strip():
            yield number, _json_row(line)
        line, number = file.readline(), number + 1


def _json_row(line: str) -> Fields | InvalidJob:
    try:
        row = json.loads(line)
    except RecursionError:
        return InvalidJob("row", "is not JSON: nested too deeply")
    except ValueError as error:
        # Without the text, which may be personal.
        place = f" (column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        return InvalidJob("row", f"is not JSON{place}")
    return row if isinstance(row, dict) else InvalidJob("row", "must be a JSON object")


def _csv_rows(head: str, file: TextIO, number: int) -> Iterator[tuple[int, Fields | InvalidJob]]:
    delimiter = max(",;\t", key=head.count)
    try:
        names = [name.strip() for name in next(csv.reader(io.StringIO(head), delimiter=delimiter))]
    except csv.Error as error:
        yield number, InvalidJob("first line", f"is not CSV: {error}")
        return
    if problem := _bad_head(names):
        yield number, problem
        return
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    before = number
    while True:
        first = before + reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield first, InvalidJob("row", f"is not CSV: {error}")
            return
        if any(cell.strip() for cell in cells):
            yield first, _csv_row(names, cells)


def _bad_head(names: list[str]) -> InvalidJob | None:
    if not all(names):
        return InvalidJob("first line", "must name every column; column {} has no name".format(names.index("") + 1))
    if twice := sorted({name for name in names if names.count(name) > 1}):
        return InvalidJob("first line", f"names {twice[0]!r} twice")
    return None


def _csv_row(names: list[str], cells: list[str]) -> Fields | InvalidJob:
    if len(cells) != len(names):
        return InvalidJob("row", f"has {len(cells)} cells where the first line has {len(names)}")
    row: Fields = {}
    for name, cell in zip(names, cells, strict=True):
        if cell.strip():  # An empty cell says nothing; Stripe would take an empty text for an order to unset.
            error = _put(row, name, cell.strip())
            if error is not None:
                return error
    return row


def _put(row: Fields, name: str, value: str) -> InvalidJob | None:
    """Put a value where a name such as `address.city` or `metadata.plan` says; a key of metadata may hold dots."""
    first, dot, rest = name.partition(".")
    if not dot:
        row[name] = value
        return None
    inner = row.setdefault(first, {})
    if not isinstance(inner, dict):
        return InvalidJob(name, f"stands beside a column {first!r}")
    if first == "metadata":
        inner[rest] = value
        return None
    return _put(inner, rest, value)


def batches(lines: Iterable[Line], size: int) -> Iterator[list[Line]]:
    """The lines, so many at a time."""
    batch: list[Line] = []
    for line in lines:
        batch.append(line)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
