"""What a process of a worker holds, and what a forked one has of its parent's."""

from __future__ import annotations

import os

import pytest

from tests.builders import settings_for
from worker import process


def test_a_forked_process_knows_whose_the_keys_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "settings", settings_for)
    monkeypatch.setattr(process, "_accounts", {"default": "acct_shop"})
    process._gateway_of.cache_clear()
    monkeypatch.setattr(os, "getpid", lambda: -1)

    identities = process.gateway().identities("default")
    process._gateway_of.cache_clear()

    assert identities[0] == "acct_shop"
