"""README and docs say what is there: settings, faults, doors, states, files, commands."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer

from customer_jobs.cli import app
from customer_jobs.sandbox import FAULTS
from customer_jobs.sandbox.control import DOORS
from customer_jobs.sandbox.faults import ALIASES
from customer_jobs.vocabulary import State
from tests.markdown import CHECKOUT, PAGES, Block, blocks, prose, rows
from worker.settings import Settings

LANGUAGES = {"sh", "python", "sql", "json", "text", "js"}
#: Read by the producer's side, which has no class of settings.
PRODUCERS_SETTINGS = {"MAX_ATTEMPTS", "STRIPE_WEBHOOK_SECRET", "STRIPE_WEBHOOK_SECRET_<NAME>"}
COMMANDS: Any = typer.main.get_command(app)


def unquoted(cell: str) -> str:
    return cell.strip("`")


def test_every_block_of_code_is_in_a_language_that_is_tested() -> None:
    assert {block.language for block in blocks()} <= LANGUAGES


@pytest.mark.skipif(shutil.which("node") is None, reason="no node on this machine")
@pytest.mark.parametrize("block", blocks("js"), ids=str)
def test_javascript_is_understood(block: Block, tmp_path: Path) -> None:
    script = tmp_path / "pasted.mjs"
    script.write_text(block.text)

    checked = subprocess.run(["node", "--check", script], capture_output=True, text=True)

    assert checked.returncode == 0, checked.stderr


def test_every_setting_has_its_row() -> None:
    documented = {unquoted(setting) for setting, *_ in rows("settings.md")}

    fields = {name.upper() for name in Settings.model_fields} - {"STRIPE_API_KEYS"}
    assert documented == fields | PRODUCERS_SETTINGS | {"STRIPE_API_KEY", "STRIPE_API_KEY_<NAME>"}


@pytest.mark.parametrize("name", sorted(set(Settings.model_fields) - {"stripe_api_keys"}))
def test_a_setting_is_documented_with_its_default(name: str) -> None:
    documented = {unquoted(setting): unquoted(default) for setting, default, *_ in rows("settings.md")}

    field = Settings.model_fields[name]
    expected = "required" if field.is_required() else str(field.default)
    assert documented[name.upper()].lower() == expected.lower()


def test_every_fault_has_its_row() -> None:
    documented = {unquoted(name): means for name, means in (row for row in rows("sandbox.md") if len(row) == 2)}

    assert {name: documented.get(name) for name in FAULTS} == {fault.name: fault.means for fault in FAULTS.values()}
    assert documented["429`, `409"] == "short for `{}` and `{}`".format(*ALIASES.values())


def test_every_door_of_the_sandbox_has_its_row() -> None:
    documented = {unquoted(door) for door, *_ in rows("sandbox.md") if "/_sandbox/" in door}

    assert documented == {f"{method} {path}" for path, methods in DOORS.items() for method in methods}


def test_every_state_has_its_row() -> None:
    assert [unquoted(row[0]) for row in rows("architecture.md")] == list(State)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())

    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_named_in_the_text_exist(page: Path) -> None:
    named = set(re.findall(r"\b(?:customer_jobs|worker|tasks|models|migrations|tests|docs)/[\w/.]*\w", prose(page)))

    assert {name for name in named if not (CHECKOUT / name).exists()} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_named_in_the_text_exist(page: Path) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text())

    assert [name for path, name in named if f"def {name}(" not in (CHECKOUT / path).read_text()] == []


def test_every_promise_names_its_tests() -> None:
    promises = rows("guarantees.md")

    assert len(promises) > 20
    assert [promise for promise, *_, shown_by, _ in promises if "`tests/" not in shown_by] == []


def test_every_check_of_health_has_its_row() -> None:
    source = (CHECKOUT / "customer_jobs/health.py").read_text().partition("def health_of_worker")
    made = set(re.findall(r'(?:ok|fail|out_of_reach|refused_by_redis)\(\s*"(\w+)"', source[0] + source[2]))

    assert {unquoted(check) for check, *_ in rows("operating.md")} == made - {"life", "messages"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_named_in_the_text_exist(page: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)
    for words in (code.split() for code in re.findall(r"`([^`\n]+)`", prose(page))):
        if words[0] == "make" and len(words) == 2:
            assert words[1] in targets
        if words[0] == "customer-jobs" and len(words) > 1 and not words[1].startswith("-"):
            command = COMMANDS.commands[words[1]]
            command = getattr(command, "commands", {}).get(words[2] if len(words) > 2 else None, command)
            known = {option for parameter in command.params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= known
