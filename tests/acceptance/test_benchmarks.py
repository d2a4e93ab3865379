"""The program that measures limits, on short runs: every line is there, and its figures can be believed."""

from __future__ import annotations

import re

import pytest

from benchmarks import limits, peers
from benchmarks.limits import BUCKET_SECONDS, Sizes, by_hand, ours
from benchmarks.line import HEAD, Line, table

pytestmark = pytest.mark.slow

#: Fewer would come out of the sandbox's full bucket, which turns nobody away.
CREATES = 100
LEAST = 0.97  #: Of the allowance.
SHORT = Sizes(creates=CREATES, waiting=200, urgent=3, unlimited=100, backlogs=(50, 500), looks=3, left=1000)


def test_our_workers_use_more_of_the_allowance_than_one_by_hand(postgres_url: str) -> None:
    mine = ours(postgres_url, CREATES, 2, BUCKET_SECONDS, least=LEAST, most_turned_away=0)
    theirs = by_hand("by hand", peers.by_hand.name, CREATES)

    assert {mine.count, theirs.count} == {CREATES}
    # A busy machine makes our workers slower, and never faster than Stripe allows.
    assert mine.turned_away == 0
    assert 0 < theirs.figure < mine.figure
    assert mine.reached is (mine.figure >= 100 * LEAST)
    assert theirs.reached is None


@pytest.mark.parametrize(
    ("row", "units"),
    [
        ("urgent", ["ms", "ms"]),
        ("unlimited", ["/s", "/s", "x"]),
        ("backlog", ["ms", "ms", "x"] * 2),
        ("open-transaction", ["% used", "ms", "ms", "x"]),
    ],
)
def test_a_row_says_what_its_target_is_and_whether_it_was_reached(
    postgres_url: str, row: str, units: list[str]
) -> None:
    lines = list(limits.ROWS[row](postgres_url, SHORT))

    assert [line.unit for line in lines] == units
    assert all(line.figure > 0 for line in lines)
    assert any(line.target for line in lines)
    assert all((line.reached is not None) == bool(line.target) for line in lines)
    head, *printed = table(lines).splitlines()
    assert re.split(r"\s{2,}", head) == list(HEAD)
    assert [text.endswith((" yes", " no")) for text in printed] == [bool(line.target) for line in lines]


@pytest.mark.parametrize(("reached", "exit_code"), [(True, 0), (None, 0), (False, 1)])
def test_a_target_that_is_missed_is_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reached: bool | None, exit_code: int
) -> None:
    lines = [Line("looks", 1, 2.0, "ms", None, "<= 3 ms", reached=True), Line("jobs", 1, 2.0, "ms", None, "", reached)]
    monkeypatch.setitem(limits.ROWS, "made-up", lambda *_: iter(lines))
    monkeypatch.setattr("sys.argv", ["limits", "made-up"])

    with pytest.raises(SystemExit) as ended:
        limits.main()

    assert ended.value.code == exit_code
    assert table(lines) in capsys.readouterr().out


def test_a_row_that_nobody_knows_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["limits", "steadily"])

    with pytest.raises(SystemExit) as ended:
        limits.main()

    assert ended.value.code == 2
    assert "unknown row steadily" in capsys.readouterr().err
