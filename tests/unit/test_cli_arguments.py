"""What people type on the command line becomes values, or an error that names the flag."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from customer_jobs.cli import arguments
from customer_jobs.errors import InvalidJob

NOBODY: dict[str, str | None] = {"email": None, "name": None}


def test_flags_go_over_the_body() -> None:
    base = '{"email": "old@example.com", "phone": "1", "metadata": {"plan": "free", "team": "7"}}'

    whole = arguments.body(base, NOBODY | {"email": "new@example.com"}, ["plan=pro"])

    assert whole == {"email": "new@example.com", "phone": "1", "metadata": {"plan": "pro", "team": "7"}}


def test_an_empty_body_is_given_in_so_many_words() -> None:
    assert arguments.body("{}", NOBODY, []) == {}
    with pytest.raises(InvalidJob, match="nothing to create"):
        arguments.body(None, NOBODY, [])


def test_a_metadata_value_may_be_empty_or_hold_equals_signs() -> None:
    assert arguments.pairs("--metadata", ["a=", "b=c=d"]) == {"a": "", "b": "c=d"}


@pytest.mark.parametrize("item", ["plan", "", "=pro", " =pro"])
def test_metadata_without_a_key_is_refused(item: str) -> None:
    with pytest.raises(InvalidJob, match="--metadata: must be KEY=VALUE"):
        arguments.pairs("--metadata", [item])


def test_a_metadata_key_given_twice_is_refused() -> None:
    with pytest.raises(InvalidJob, match="gives 'plan' twice"):
        arguments.pairs("--metadata", ["plan=pro", "plan=free"])


@pytest.mark.parametrize(
    "text",
    ["{", "jenny", "", "{'name': 'Jenny'}", "[" * 100_000, '{"n": ' + "9" * 5000 + "}"],
    ids=lambda text: text[:9],
)
def test_what_is_not_json_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(InvalidJob, match="--body: is not JSON") as raised:
        arguments.json_value("--body", text)

    assert len(str(raised.value)) < 250


def test_json_comes_from_a_file_with_or_without_a_byte_order_mark(tmp_path: Path) -> None:
    plain, marked = tmp_path / "plain.json", tmp_path / "marked.json"
    plain.write_bytes(b'{"name": "Jos\xc3\xa9"}')
    marked.write_bytes(b'\xef\xbb\xbf{"name": "Jos\xc3\xa9"}')

    for file in (plain, marked):
        assert arguments.json_value("--body", f"@{file}") == {"name": "José"}


def test_a_file_that_cannot_be_used_is_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b'{"name": "Jos\xe9"}')
    (tmp_path / "huge").write_bytes(b" " * (arguments.MAX_INPUT_BYTES + 1))

    for name, reason in {
        "none": "No such file",
        "": "Is a directory",
        "latin": "is not UTF-8",
        "huge": "has more than 1,048,576 bytes",
    }.items():
        with pytest.raises(InvalidJob, match=f"--body: .*{reason}"):
            arguments.json_value("--body", f"@{tmp_path / name}")


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("10m", timedelta(minutes=10)),
        ("1.5h", timedelta(minutes=90)),
        ("3d", timedelta(days=3)),
        ("+30s", timedelta(seconds=30)),
        ("250ms", timedelta(milliseconds=250)),
    ],
)
def test_a_span_is_counted_from_now(text: str, span: timedelta) -> None:
    before = datetime.now(UTC)

    later = arguments.moment("--due-at", text, past=False)
    earlier = arguments.moment("--since", text, past=True)

    assert before + span <= later <= datetime.now(UTC) + span
    assert before - span <= earlier <= datetime.now(UTC) - span


def test_a_time_with_its_zone_is_read_as_it_is() -> None:
    assert arguments.moment("--since", "2026-12-24T18:00:00+01:00", past=True) == datetime(2026, 12, 24, 17, tzinfo=UTC)
    assert arguments.moment("--since", "2026-12-24T18:00:00Z", past=True) == datetime(2026, 12, 24, 18, tzinfo=UTC)


@pytest.mark.parametrize("text", ["tomorrow", "", "10", "2026-12-24T18:00:00", "2026-13-01T00:00:00Z", "999999999d"])
def test_any_other_time_is_refused(text: str) -> None:
    with pytest.raises(InvalidJob, match="--since: "):
        arguments.moment("--since", text, past=True)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_number_of_seconds_is_finite_and_not_negative(value: float) -> None:
    with pytest.raises(InvalidJob, match="--wait: must be a number of seconds"):
        arguments.seconds("--wait", value)
