"""What must never get into a tracked file, and that requirements.lock fits pyproject.toml; nothing is asked online."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]

#: Whom a link may lead to. A registry is none of them: it is whichever one the reader's machine is set up for.
NEIGHBOURS = {
    "aws.amazon.com",
    "cloudevents.io",
    "github.com",
    "keepachangelog.com",
    "man7.org",
    "requests.readthedocs.io",
    "semver.org",
    "stripe.com",
    "stripe.invalid",  # RFC 6761: leads nowhere
    "wikipedia.org",
    "www.postgresql.org",
    "www.w3.org",
}
_LINK = re.compile(r"\bhttps?://([A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,})\b")
# Each is spelled so that it does not find itself.
_REGISTRY = re.compile(
    r"py(?:pi\.|thonhosted)|(?:docker|ghcr|quay)\.io|--(?:extra-)?index-url|--find-[l]inks", re.IGNORECASE
)
_MACHINE = re.compile(r"(?<![\w.])/(?:home|root|Users|work|mnt|opt)/\w+")
_EXAMPLE = r"(?:[\w-]+\.)*example(?:\.(?:com|org|net))?\b"
_PERSON = re.compile(rf"\b[A-Za-z0-9._%+-]{{2,}}@(?!{_EXAMPLE})[A-Za-z0-9-]+(?:\.[A-Za-z]{{2,}})+\b")


def tracked() -> Iterator[tuple[str, str]]:
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, cwd=ROOT)
    if listed.returncode:
        pytest.skip("not in a clone of the repository")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            yield name, (ROOT / name).read_text(encoding="utf-8")


def found(pattern: re.Pattern[str]) -> set[str]:
    return {f"{name}: {match[0]}" for name, text in tracked() for match in pattern.finditer(text)}


def test_links_lead_to_neighbours_only() -> None:
    hosts = {(name, match[1]) for name, text in tracked() for match in _LINK.finditer(text)}

    def is_known(host: str) -> bool:
        return any(host == known or host.endswith(f".{known}") for known in [*NEIGHBOURS, "example.com", "example.org"])

    assert {(name, host) for name, host in hosts if not is_known(host)} == set()


def test_no_registry_is_named() -> None:
    assert found(_REGISTRY) == set()


def test_no_path_of_a_machine_is_named() -> None:
    assert found(_MACHINE) == set()


def test_no_address_of_a_person_is_named() -> None:
    assert found(_PERSON) == set()


def required() -> dict[str, list[Requirement]]:
    """What pyproject.toml asks for, all extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted: dict[str, list[Requirement]] = {}
    extras = project["optional-dependencies"].values()
    for line in [*project["dependencies"], *chain.from_iterable(extras)]:
        requirement = Requirement(line)
        wanted.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return wanted


def locked() -> dict[str, str]:
    """What requirements.lock has, each package as the text of its entry."""
    entries = re.split(r"^(?=\S)", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)
    return {entry.partition("==")[0].partition("[")[0]: entry for entry in entries if entry}


def test_the_lock_has_every_dependency_in_a_version_that_is_asked_for() -> None:
    entries = locked()
    for name, requirements in required().items():
        assert name in entries, f"{name} is not in requirements.lock: make lock"
        version = Version(re.split(r"[\s;\\]", entries[name].partition("==")[2], maxsplit=1)[0])
        for requirement in requirements:
            assert version in requirement.specifier, f"{name} {version} is not {requirement}: make lock"


def test_the_lock_has_nothing_that_nobody_asks_for() -> None:
    direct = {name for name, entry in locked().items() if "customer-jobs (pyproject.toml)" in entry}

    assert direct == set(required())


def test_every_package_in_the_lock_has_hashes() -> None:
    assert [name for name, entry in locked().items() if "--hash=sha256:" not in entry] == []
