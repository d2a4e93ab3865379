"""Threads are the default; processes are used where the command line asks for them."""

from __future__ import annotations

import pytest

from worker.app import _pool


@pytest.mark.parametrize(
    "words", ["worker --pool prefork", "worker --pool=prefork -c 4", "-A worker.app worker -P prefork", "-Pprefork"]
)
def test_processes_are_asked_for_in_any_spelling(words: str) -> None:
    assert _pool(words.split()) == "prefork"


@pytest.mark.parametrize("words", ["", "worker", "worker --pool threads", "worker --pool", "worker -n prefork"])
def test_otherwise_there_are_threads(words: str) -> None:
    assert _pool(words.split()) == "threads"
