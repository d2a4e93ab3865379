"""How things look on a terminal: widths, times, and nothing that plays tricks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from customer_jobs.cli import show
from customer_jobs.cli.exits import one_line
from customer_jobs.job import Attempt, Job
from customer_jobs.vocabulary import State

NOW = datetime(2026, 11, 22, 17, 20, 1, tzinfo=UTC)


def job(**changes: Any) -> Job:
    fields: dict[str, Any] = {
        "id": "0b1c9f1e-5b0c-4b55-9d2f-0c8b1b0f6a1d",
        "kind": "customer.create",
        "state": State.QUEUED,
        "credential": "default",
        "stripe_account": None,
        "livemode": None,
        "priority": 2,
        "external_id": None,
        "attempt": 0,
        "max_attempts": 25,
        "created_at": NOW - timedelta(minutes=5),
        "due_at": NOW - timedelta(minutes=5),
        "started_at": None,
        "finished_at": None,
        "outcome": None,
        "customer_id": None,
        "result": None,
        "error": None,
        "context": None,
        "retry_of": None,
    }
    return Job(**fields | changes)


def call(**changes: Any) -> Attempt:
    fields: dict[str, Any] = dict.fromkeys(Attempt.__dataclass_fields__)
    fields |= {"number": 1, "started_at": NOW, "finished_at": NOW, "ambiguous": False, "replayed": False}
    return Attempt(**fields | changes)


ERROR = {
    "type": "invalid_request_error",
    "code": "resource_missing",
    "message": "No such customer: 'cus_nope'",
    "http_status": 404,
    "remedy": "Check the id, and whether the key is of the same mode.",
}
FAILED = job(state=State.FAILED, error=ERROR, finished_at=NOW, attempt=1)
SUCCEEDED = job(state=State.SUCCEEDED, outcome="created", customer_id="cus_NffrFeUfNV2Hib", finished_at=NOW)


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_a_list_fits_the_terminal_and_shows_whole_ids(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))

    show.jobs([FAILED, SUCCEEDED, job(state=State.RETRYING, due_at=NOW + timedelta(seconds=40))], NOW, {})

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(len(line) <= columns and line == line.rstrip() for line in lines)
    assert all(FAILED.id in line for line in lines[1:])
    if columns == 120:
        assert lines[1].endswith("resource_missing")
        assert lines[2].endswith("cus_NffrFeUfNV2Hib")
        assert lines[3].endswith("due in 40 s")


@pytest.mark.parametrize("columns", [80, 120])
def test_a_failed_job_leads_with_its_error_and_the_remedy(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))

    show.job(FAILED, NOW, personal=True)

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"job {FAILED.id}  customer.create  failed"
    assert "resource_missing (HTTP 404): No such customer: 'cus_nope'" in lines[1]
    assert "Check the id" in lines[2]
    assert all(len(line) <= columns for line in lines)


def test_the_ledger_has_a_line_for_each_call(capsys: pytest.CaptureFixture[str]) -> None:
    limited = call(
        verdict="rate_limited",
        http_status=429,
        duration_ms=7.4,
        request_id="req_1",
        rate_limited_reason="endpoint-rate",
    )
    lost = call(number=2, verdict="retry", ambiguous=True, duration_ms=30_000.0, error_type="api_connection_error")
    replayed = call(number=3, verdict="succeeded", http_status=200, duration_ms=212.3, replayed=True)
    one = job(state=State.SUCCEEDED, attempts=(limited, lost, replayed))

    show.job(one, NOW, personal=False)

    ledger = [line.split() for line in capsys.readouterr().out.splitlines()[-3:]]
    assert ledger[0] == ["1", "17:20:01.000", "7", "ms", "429", "rate_limited", "req_1", "endpoint-rate"]
    assert ledger[1] == [
        *["2", "17:20:01.000", "30", "s", "none", "retry"],
        *["api_connection_error,", "perhaps", "executed"],
    ]
    assert ledger[2] == ["3", "17:20:01.000", "212", "ms", "200", "succeeded", "replayed"]


def test_personal_data_is_shown_only_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    result = {"response": {"email": "jenny.rosen@example.com", "name": "Jenny Rosen"}}
    one = job(state=State.SUCCEEDED, customer_id="cus_1", result=result)

    show.jobs([one], NOW, {})
    show.job(one, NOW, personal=False)
    kept_quiet = capsys.readouterr().out
    show.job(one, NOW, personal=True)
    told = capsys.readouterr().out

    assert "Jenny" not in kept_quiet
    assert "jenny" not in kept_quiet
    assert "Jenny Rosen" in told
    assert "jenny.rosen@example.com" in told


def test_what_came_from_outside_neither_moves_the_cursor_nor_counts_as_markup(
    capsys: pytest.CaptureFixture[str],
) -> None:
    nasty = "\x1b[2J[red]x[/red]\x9b31m\u202e:smile:"
    one = job(state=State.FAILED, external_id=nasty, error=ERROR | {"message": nasty, "code": nasty})

    show.job(one, NOW, personal=True)
    show.jobs([one], NOW, {})
    print(show.event_line({"type": nasty, "data": {"error": {"code": nasty}}}, NOW))

    told = capsys.readouterr().out
    assert not {"\x1b", "\x9b", "\u202e"} & set(told)
    assert told.count("[red]x[/red]") >= 4
    assert ":smile:" in told


def test_a_row_that_plain_sql_wrote_is_shown_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    show.job(job(state=State.FAILED, error={}, result={"response": None}, context=[1]), NOW, personal=True)
    show.job(job(state=State.FAILED, error={"type": None}), NOW, personal=True)
    show.jobs([job(state=State.FAILED, error=None)], NOW, {})

    assert "[1]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0123, "12 ms"),
        (3.42, "3.4 s"),
        (42, "42 s"),
        (300, "5 min"),
        (7200, "2 h"),
        (259_200, "3 d"),
    ],
)
def test_a_span_has_few_figures(seconds: float, shown: str) -> None:
    assert show.span(seconds) == shown


def test_a_moment_is_told_from_now() -> None:
    assert show.ago(NOW, NOW) == "now"
    assert show.ago(NOW - timedelta(seconds=3), NOW) == "3 s ago"
    assert show.ago(NOW + timedelta(minutes=5), NOW) == "in 5 min"
    assert show.when(NOW - timedelta(hours=2), NOW) == "2026-11-22 15:20:01 UTC, 2 h ago"


def test_an_event_is_one_line() -> None:
    event = {
        "type": "customer_jobs.customer.create.succeeded",
        "subject": FAILED.id,
        "time": "2026-11-22T17:20:01.000000Z",
        "data": {"outcome": "created", "customer_id": "cus_1", "error": None},
    }

    line = show.event_line(event, NOW)
    older = show.event_line(event | {"data": {"error": {"code": "resource_missing"}}}, NOW + timedelta(days=1))

    assert line == f"17:20:01     customer.create.succeeded  {FAILED.id}  created cus_1"
    assert older == f"11-22 17:20  customer.create.succeeded  {FAILED.id}  resource_missing"


@pytest.mark.parametrize("event", [{}, {"data": 1, "time": 2}, {"data": {"error": 5}, "type": None}])
def test_an_event_of_somebody_elses_is_one_line_too(event: dict[str, Any]) -> None:
    assert "\n" not in show.event_line(event, NOW)


def test_an_error_is_one_line_without_secrets() -> None:
    said = "no\n such key sk_live_abc\x1b[31m at postgresql://app:s3cret@db/x or whsec_1"

    assert one_line(said) == "no such key sk_live_****�[31m at postgresql://app:****@db/x or whsec_****"
