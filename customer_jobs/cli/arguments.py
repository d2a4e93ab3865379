"""What people type, as values: JSON, files, metadata, moments; pure but for the file that is named."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

from customer_jobs.environment import key_settings
from customer_jobs.errors import InvalidJob
from customer_jobs.payload import check_credential

#: Far above what a job may hold (64 KiB), whatever the white space; below what would fill the memory.
MAX_INPUT_BYTES = 1024 * 1024

_SPAN = re.compile(r"(?P<amount>\d{1,9}(\.\d{1,6})?)(?P<unit>ms|s|m|min|h|d)")
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}


def json_value(flag: str, text: str) -> Any:
    """The JSON value in the text itself, in the file of `@FILE`, or on standard input for `-`."""
    hint = "" if text[:1] in {"@", "-"} else '; quote it for your shell, as in \'{"name": "Jenny"}\', or give @FILE'
    return _parsed(flag, _contents(flag, text), hint)


def documents(flag: str, file: str) -> tuple[Any, bool]:
    """The JSON value in a file, or on standard input for `-`; True beside a list that is a value on each line."""
    contents = _contents(flag, file if file == "-" else f"@{file}")
    # Only at line feeds: a text in JSON may hold any other character that ends a line.
    lines = [(number, line) for number, line in enumerate(contents.split("\n"), start=1) if line.strip()]
    if len(lines) > 1 and _is_whole(lines[0][1]):
        return [_parsed(f"{flag}: line {number}", line) for number, line in lines], True
    return _parsed(flag, contents), False


def _is_whole(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _parsed(flag: str, contents: str, hint: str = "") -> Any:
    try:
        return json.loads(contents)
    except RecursionError:
        raise InvalidJob(flag, "is not JSON: nested too deeply") from None
    except json.JSONDecodeError as error:
        # The text itself is not shown: it may be personal.
        problem = f"is not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        raise InvalidJob(flag, problem + hint) from None
    except ValueError as error:
        raise InvalidJob(flag, f"is not JSON: {str(error).partition(';')[0].lower()}") from None


def body(base: str | None, fields: dict[str, str | None], metadata: Sequence[str]) -> dict[str, Any]:
    """Stripe's parameters of `--body`, with those of the other flags over them."""
    named = {name: value for name, value in fields.items() if value is not None}
    if base is None and not named and not metadata:
        raise InvalidJob(
            "body", "nothing to create; give --email, --name or --body (a customer without details is --body '{}')"
        )
    whole = {} if base is None else json_value("--body", base)
    if not isinstance(whole, dict):
        raise InvalidJob("--body", 'must be a JSON object, as in \'{"name": "Jenny"}\'')
    whole |= named
    if metadata:
        held = whole.get("metadata") or {}
        if not isinstance(held, dict):
            raise InvalidJob("metadata", "must be a JSON object in --body where --metadata is given, too")
        whole["metadata"] = held | pairs("--metadata", metadata)
    return whole


def pairs(flag: str, items: Sequence[str]) -> dict[str, str]:
    """`K=V` items as a mapping; a value may be empty and may hold further equals signs."""
    found: dict[str, str] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise InvalidJob(flag, "must be KEY=VALUE, as in --metadata plan=pro")
        if key in found:
            raise InvalidJob(flag, f"gives {key[:40]!r} twice")
        found[key] = value
    return found


def credential(name: str) -> str:
    """The name of a credential; where Stripe keys are set, as on a worker's machine, it must be one of theirs."""
    known = key_settings()
    if known and check_credential(name) not in known:
        raise InvalidJob(
            "credential",
            f"no STRIPE_API_KEY_{name.upper()} is set here, where there are keys for {', '.join(sorted(known))}",
        )
    return name


def priority(text: str) -> str | int:
    """A priority's name, or its number."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 3 else text


def seconds(flag: str, value: float | None) -> float | None:
    """A number of seconds, 0 or more."""
    if value is not None and not (math.isfinite(value) and value >= 0):
        raise InvalidJob(flag, f"must be a number of seconds, 0 or more, not {value:g}")
    return value


def moment(flag: str, text: str, *, past: bool) -> datetime:
    """A time in ISO 8601 with its zone, or a span such as `10m`: from now on or, if `past`, ago."""
    if span := _SPAN.fullmatch(text.strip().lstrip("+-")):
        distance = timedelta(seconds=float(span["amount"]) * _UNIT_SECONDS[span["unit"]])
        try:
            return datetime.now(UTC) - distance if past else datetime.now(UTC) + distance
        except OverflowError:
            raise InvalidJob(flag, f"is too far away: {text!r}") from None
    try:
        parsed = datetime.fromisoformat(text.strip())
    except ValueError:
        parsed = None
    if parsed is None or parsed.tzinfo is None:
        raise InvalidJob(
            flag, f"must be a span such as 10m, 2h or 3d, or a time such as 2026-12-24T18:00:00Z, not {text[:40]!r}"
        )
    try:
        return parsed.astimezone(UTC)
    except OverflowError:
        raise InvalidJob(flag, f"is too far away: {text[:40]!r}") from None


def _contents(flag: str, text: str) -> str:
    if text == "-":
        return _decoded(flag, "standard input", _read(flag, sys.stdin.buffer))
    if not text.startswith("@"):
        return text
    path = Path(text[1:])
    try:
        with path.open("rb") as file:
            return _decoded(flag, repr(str(path)), _read(flag, file))
    except OSError as error:
        raise InvalidJob(flag, f"cannot read {str(path)!r}: {error.strerror}") from error


def _read(flag: str, file: BinaryIO) -> bytes:
    content = file.read(MAX_INPUT_BYTES + 1)
    if len(content) > MAX_INPUT_BYTES:
        raise InvalidJob(flag, f"has more than {MAX_INPUT_BYTES:,} bytes")
    return content


def _decoded(flag: str, source: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidJob(flag, f"{source} is not UTF-8 text") from None


def latency(flag: str, text: str) -> float | tuple[float, float]:
    """A time such as `0.2` or `200ms`, or the least and the most such as `100ms-400ms`."""
    least, dash, most = text.partition("-")
    spread = (_span_seconds(flag, least), _span_seconds(flag, most if dash else least))
    if spread[0] > spread[1]:
        raise InvalidJob(flag, f"must be the least and then the most, not {text[:40]!r}")
    return spread if dash else spread[0]


def _span_seconds(flag: str, text: str) -> float:
    span = _SPAN.fullmatch(text if text[-1:].isalpha() else f"{text}s")
    if span is None:
        raise InvalidJob(flag, f"must be seconds or a time such as 200ms, not {text[:40]!r}")
    return float(span["amount"]) * _UNIT_SECONDS[span["unit"]]
