"""How things look on a terminal: jobs, one job with its ledger, events; plain where nobody watches."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from customer_jobs.cli.exits import without_secrets

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from customer_jobs.checks import Check
    from customer_jobs.dead_letters import DeadLetter
    from customer_jobs.holds import Hold
    from customer_jobs.job import Attempt, Job
    from customer_jobs.stats import Held, Stats

LONGEST_VALUE = 2_000  #: Characters; a context or a message.
PIPE_WIDTH = 120  #: Columns where the output is no terminal: enough for every column of a table.
WIDE = 108  #: Columns from which a list shows everything.
MIDDLE = 100  #: … and from which it shows everything but the attempts.

STATE_STYLES = {
    "succeeded": "green",
    "failed": "bold red",
    "cancelled": "dim",
    "retrying": "yellow",
    "running": "cyan",
    "dispatched": "cyan",
    "ok": "green",
    "warn": "yellow",
    "fail": "bold red",
    "out of reach": "bold red",
}


def document(value: Any) -> None:
    """Print one JSON document, one line of it where nobody watches."""
    print(json.dumps(value, indent=2 if sys.stdout.isatty() else None), flush=True)


def json_line(value: Any) -> None:
    """Print one JSON document on one line."""
    print(json.dumps(value), flush=True)


def console() -> Console:
    """Where to print: without colour unless a terminal listens, nothing in a text read as markup."""
    from rich.console import Console

    fixed = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else PIPE_WIDTH
    return Console(width=fixed, highlight=False, markup=False, emoji=False)


def put(*parts: Any) -> None:
    """Print tables and texts; without the blanks that fill a line up where nobody watches."""
    screen = console()
    if screen.is_terminal:
        screen.print(*parts, sep="\n")
        return
    with screen.capture() as captured:
        screen.print(*parts, sep="\n")
    print("\n".join(line.rstrip() for line in captured.get().splitlines()), flush=True)


def plain(value: object) -> str:
    """A value as it may be printed: what would move the cursor or turn the text around is shown instead of obeyed.

    Nobody reads megabytes at a terminal; --json has them.
    """
    text = "" if value is None else str(value)
    if len(text) > LONGEST_VALUE:
        text = f"{text[:LONGEST_VALUE]}… ({len(text):,} characters)"
    return without_secrets("".join(each if each.isprintable() else "�" for each in text))


def jobs(found: Sequence[Job], now: datetime, held: Mapping[str, Hold]) -> None:
    """Print a table of jobs, as wide as the terminal allows; no personal data in it."""
    width = console().width
    names = ["JOB", "KIND", "STATE", "CREATED"]
    names += ["TRIES"] if width >= WIDE else []
    names += ["CUSTOMER OR REASON"] if width >= MIDDLE else []
    table = ledger(*names)
    for job in found:
        cells = {
            "JOB": text(job.id),
            "KIND": text(job.kind),
            "STATE": state(job.state),
            "CREATED": text(ago(job.created_at, now)),
            "TRIES": text(job.attempt),
            "CUSTOMER OR REASON": text(_reason(job, now, held.get(job.id))),
        }
        table.add_row(*(cells[name] for name in names))
    put(table)


def hold_lines(held: Iterable[Hold], now: datetime) -> list[str]:
    """What jobs wait for, each reason in one line with the number of jobs and what to do about it."""
    counts = Counter(held)
    return [
        plain(f"{'1 waits' if count == 1 else f'{count} wait'}, {held_by(hold, now)}") for hold, count in counts.items()
    ]


def job(one: Job, now: datetime, *, personal: bool, hold: Hold | None = None) -> None:
    """Print a job with its attempts; `personal` includes what Stripe knows of the customer."""
    head = text(f"job {one.id}  {one.kind}  ")
    head.append_text(state(one.state))
    parts = [head]
    if one.error:
        parts.append(facts(_error(one), "bold"))
    if hold is not None:
        parts.append(facts([("held by", held_by(hold, now))], "yellow"))
    parts.append(facts(_facts(one, now, personal=personal)))
    if one.attempts:
        parts += ["", attempts(one.attempts)]
    put(*parts)


def attempts(calls: Sequence[Attempt]) -> Table:
    """The ledger: each call to Stripe in one line."""
    table = ledger(" #", "STARTED", "TOOK", "ANSWER", "VERDICT", "REQUEST", "NOTE")
    table.columns[-1].no_wrap = False
    for call in calls:
        table.add_row(
            text(f"{call.number:>2}"),
            text(call.started_at.astimezone(UTC).strftime("%H:%M:%S.%f")[:-3]),
            text("" if call.duration_ms is None else span(call.duration_ms / 1000)),
            text(call.http_status or ("none" if call.finished_at else "")),
            state(call.verdict or "running"),
            text(call.request_id),
            text(_call_note(call)),
        )
    return table


def event_line(event: Mapping[str, Any], now: datetime) -> str:
    """An event in one line: when, what, which job, and the customer or the reason."""
    data = event.get("data") if isinstance(event.get("data"), Mapping) else {}
    assert isinstance(data, Mapping)  # noqa: S101 - said to the type checker
    error = data.get("error") if isinstance(data.get("error"), Mapping) else {}
    assert isinstance(error, Mapping)  # noqa: S101
    kind = str(event.get("type", "")).removeprefix("customer_jobs.")
    reason = (
        error.get("code") or error.get("type") or " ".join(filter(None, (data.get("outcome"), data.get("customer_id"))))
    )
    return plain(f"{_clock(event.get('time'), now):<11}  {kind:<25}  {event.get('subject', ''):<36}  {reason}").rstrip()


def dead_letter_line(letter: DeadLetter, now: datetime) -> str:
    """A dead letter in one line: its id, when, whose, what, which job, and what the handler raised."""
    event = letter.event.type.removeprefix("customer_jobs.") if letter.event else "not an event"
    job = letter.event.subject if letter.event else ""
    died = _clock(letter.died_at.isoformat(), now)
    return plain(f"{letter.id}  {died:<11}  {letter.group}  {event:<25}  {job:<36}  {letter.error}").rstrip()


def stats(found: Stats) -> None:
    """Print the figures of all tables."""
    states = ["queued", "dispatched", "running", "retrying", "succeeded", "failed", "cancelled"]
    table = ledger("KIND", *(each.upper() for each in states))
    for kind, counts in found.jobs.items():
        table.add_row(text(kind), *(text(f"{counts.get(each, 0):,}") for each in states))
    oldest = "" if found.oldest_due_seconds is None else f", the first for {span(found.oldest_due_seconds)}"
    lag = "" if found.outbox_lag_seconds is None else f", the first for {span(found.outbox_lag_seconds)}"
    lines = [
        ("due", f"{found.due:,} waiting{oldest}"),
        *[("held", f"{each.jobs:,} {_lane(each)}: {each.reason}") for each in found.held],
        ("events", f"{found.outbox_lag:,} not published yet{lag}"),
        ("leader", found.leader or "none: nothing is dispatched and no event is published"),
    ]
    seen = [f"{each.name}, {each.slots} threads, seen {span(each.seen_seconds_ago)} ago" for each in found.workers]
    lines += [("worker", each) for each in seen] or [("workers", "none")]
    put(table if found.jobs else text("no jobs"), "", facts(lines))


def checks(found: Sequence[Check]) -> None:
    """Print checks under each other, each with what mends it where something is to be mended."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in found:
        table.add_row(state(check.level), text(check.name), text(check.detail))
        if check.remedy is not None:
            table.add_row("", "", text(f"→ {check.remedy}"))
    put(table)


def ledger(*columns: str) -> Table:
    """A table without lines, whose cells are never broken."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column, no_wrap=True, overflow="ellipsis")
    return table


def pairs(rows: Sequence[tuple[str, str]]) -> Table:
    """Two columns, as wide as they have to be; the second is broken where there is no room."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(style="dim")
    for left, right in rows:
        table.add_row(text(left), text(right))
    return table


def commands(rows: Sequence[tuple[str, str]]) -> None:
    """Print commands to copy, each under what it does; a narrow terminal breaks them, not we."""
    for command, does in rows:
        print(f"  # {does}\n  {command}")


def facts(rows: Sequence[tuple[str, str]], style: str = "") -> Table:
    """Names and values under each other; a long value is broken."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True, style="dim", width=13)
    table.add_column(overflow="fold", style=style)
    for name, value in rows:
        table.add_row(text(f"  {name}"), text(value))
    return table


def text(value: object) -> Any:
    """A cell whose content is taken as it is."""
    from rich.text import Text

    return Text(plain(value))


def state(word: str) -> Any:
    """A state or verdict in its colour."""
    from rich.text import Text

    return Text(plain(word), style=STATE_STYLES.get(word, {"rate_limited": "yellow", "retry": "yellow"}.get(word, "")))


def span(seconds: float) -> str:
    """A span of time with two or three figures: `12 ms`, `3.4 s`, `5 min`, `2 h`, `3 d`."""
    for limit, unit, divisor in ((90.0, "s", 1.0), (5400.0, "min", 60.0), (129_600.0, "h", 3600.0)):
        if seconds < limit:
            if seconds < 1:
                return f"{seconds * 1000:.0f} ms"
            figures = seconds / divisor
            return f"{figures:.1f} {unit}" if figures < 10 and unit == "s" else f"{figures:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def held_by(hold: Hold, now: datetime) -> str:
    """Why something waits, since when, and what to do about it."""
    since = f", {ago(hold.since, now)}" if hold.since is not None else ""
    return f"{hold.reason}{since}" + (f"; {hold.remedy}" if hold.remedy is not None else "")


def ago(moment: datetime, now: datetime) -> str:
    """How far a moment is from now: `5 min ago`, `in 3 s`, `now`."""
    distance = (now - moment).total_seconds()
    if abs(distance) < 1:
        return "now"
    whole = span(float(round(abs(distance)))).replace(".0", "")
    return f"{whole} ago" if distance > 0 else f"in {whole}"


def when(moment: datetime, now: datetime) -> str:
    """A moment both ways: `2026-11-22 17:20:01 UTC, 5 min ago`."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC, {ago(moment, now)}"


def _lane(held: Held) -> str:
    account = f" for {held.stripe_account}" if held.stripe_account is not None else ""
    return f"{held.endpoint} of {held.credential}{account}"


def _reason(job: Job, now: datetime, hold: Hold | None) -> str:
    if job.state == "succeeded":
        return job.customer_id or ""
    if job.state == "failed":
        return str((job.error or {}).get("code") or (job.error or {}).get("type") or "")
    if _waits(job, now):
        return f"due {ago(job.due_at, now)}"
    if hold is not None:
        return hold.reason
    return job.customer_id or ""


def _waits(job: Job, now: datetime) -> bool:
    return job.state in {"queued", "retrying"} and job.due_at > now


def _error(job: Job) -> list[tuple[str, str]]:
    error = job.error or {}
    codes = [str(error[name]) for name in ("code", "decline_code") if error.get(name)] or [str(error.get("type"))]
    status = f" (HTTP {error['http_status']})" if error.get("http_status") else ""
    lines = [("error", f"{', '.join(codes)}{status}: {error.get('message') or 'no message'}")]
    if error.get("remedy"):
        lines.append(("remedy", str(error["remedy"])))
    if error.get("doc_url"):
        lines.append(("see", str(error["doc_url"])))
    return lines


def _facts(job: Job, now: datetime, *, personal: bool) -> list[tuple[str, str]]:
    from customer_jobs.vocabulary import Priority

    response = (job.result or {}).get("response")
    customer = response if isinstance(response, dict) else {}
    lines = [
        ("outcome", job.outcome),
        ("customer", job.customer_id),
        ("e-mail", customer.get("email") if personal else None),
        ("name", customer.get("name") if personal else None),
        ("external id", job.external_id),
        ("attempts", f"{job.attempt} of {job.max_attempts} used up"),
        ("priority", Priority(job.priority).name.lower()),
        ("credential", job.credential + {True: ", live mode", False: ", test mode", None: ""}[job.livemode]),
        ("account", job.stripe_account),
        ("context", None if job.context is None else json.dumps(job.context, ensure_ascii=False)),
        ("retry of", job.retry_of),
        ("created", when(job.created_at, now)),
        ("due", when(job.due_at, now) if _waits(job, now) else None),
        ("started", None if job.started_at is None else when(job.started_at, now)),
        ("finished", None if job.finished_at is None else when(job.finished_at, now)),
    ]
    if job.finished_at is not None:
        lines.append(("took", span((job.finished_at - job.created_at).total_seconds())))
    return [(name, str(value)) for name, value in lines if value not in (None, "")]


def _call_note(call: Attempt) -> str:
    notes = [call.rate_limited_reason or call.error_code or call.error_type or ""]
    notes += ["replayed"] if call.replayed else []
    notes += ["perhaps executed"] if call.ambiguous and call.verdict not in (None, "succeeded") else []
    return ", ".join(filter(None, notes))


def _clock(time: object, now: datetime) -> str:
    try:
        moment = datetime.fromisoformat(str(time)).astimezone(UTC)
    except ValueError:
        return "?"
    return f"{moment:%H:%M:%S}" if moment.date() == now.astimezone(UTC).date() else f"{moment:%m-%d %H:%M}"
