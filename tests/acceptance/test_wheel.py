"""The built wheel in an empty environment: all that a web app needs, and no name that could be somebody else's."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.acceptance.stack import CHECKOUT, SOON_SECONDS, Stack, email, environment, running, unique
from tests.integration.test_testing import write_tests
from tests.servers import Server

IMPORT_SECONDS = 0.15
INSTALL_SECONDS = 120.0

TIMED = "import time; began = time.perf_counter(); import customer_jobs; print(time.perf_counter() - began)"
LOADED = "import sys; from customer_jobs import CustomerJobs; print(*sys.modules)"
NOBODYS = {"worker", "models", "tasks", "migrations", "tests", "celery", "stripe"}
FOUND = "import sys; from importlib.util import find_spec; print(*filter(find_spec, sys.argv[1:]))"


def needed_by(names: Iterable[str]) -> set[str]:
    """The packages and all that they require, without extras."""
    found: set[str] = set()
    left = list(names)
    while left:
        if (name := canonicalize_name(left.pop())) in found:
            continue
        found.add(name)
        requirements = map(Requirement, distribution(name).requires or ())
        left += [each.name for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


def locked(names: set[str]) -> str:
    """The entries of requirements.lock for these packages."""
    entries = re.split(r"^(?=\S)", (CHECKOUT / "requirements.lock").read_text(), flags=re.MULTILINE)
    return "".join(entry for entry in entries if entry.partition("==")[0] in names)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that holds the wheel, what it asks for, and pytest for a user's own tests."""
    directory = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory],
        check=True,
        capture_output=True,
        cwd=CHECKOUT,
    )
    (wheel,) = directory.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory / "venv"], check=True)
    wanted = locked(needed_by(["customer-jobs", "pytest"]) - {"customer-jobs"})
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (directory / "wanted.txt").write_text(f"{wanted}\n{wheel} --hash=sha256:{digest}\n")
    programs = directory / "venv" / "bin"
    # A package that the wheel asks for and the lock lacks would be refused, since it had no hash.
    pip: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        programs / "python",
        "install",
        "--require-hashes",
    ]
    subprocess.run(
        [*pip, "--quiet", "--no-compile", "-r", directory / "wanted.txt"],
        check=True,
        capture_output=True,
        timeout=INSTALL_SECONDS,
    )
    return programs


def run(
    program: Path, *words: str | Path, cwd: Path, settings: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *words], capture_output=True, text=True, cwd=cwd, env=environment(settings or {}), timeout=60
    )


@pytest.mark.slow
def test_no_name_that_could_be_an_apps_own_is_importable(installed: Path, tmp_path: Path) -> None:
    found = run(installed / "python", "-c", FOUND, "customer_jobs", *NOBODYS, cwd=tmp_path)

    assert found.stdout.split() == ["customer_jobs"]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["installed", "checkout"])
def test_importing_takes_a_moment_and_brings_neither_celery_nor_stripe(
    installed: Path, tmp_path: Path, where: str
) -> None:
    python = {"installed": installed / "python", "checkout": Path(sys.executable)}[where]

    seconds = [float(run(python, "-c", TIMED, cwd=tmp_path).stdout) for _ in range(4)]
    loaded = run(python, "-c", LOADED, cwd=tmp_path).stdout.split()

    assert min(seconds) <= IMPORT_SECONDS
    assert "customer_jobs.producer" in loaded
    assert {"celery", "kombu", "stripe", "redis", "alembic", "pytest"} & set(loaded) == set()


@pytest.fixture
def stack(tmp_path: Path, empty_sqlite_url: str, redis: Server) -> Iterator[Stack]:
    """A stack on a database that is still empty."""
    with running(tmp_path, empty_sqlite_url, redis.url) as stack:
        yield stack


@pytest.mark.slow
def test_a_job_goes_all_the_way_and_comes_back_by_the_wheel_alone(
    installed: Path, tmp_path: Path, stack: Stack
) -> None:
    program, address, mine = installed / "customer-jobs", email(), unique("user")
    settings = {"DATABASE_URL": stack.database_url, "REDIS_URL": stack.redis_url}

    migrated = run(program, "migrate", cwd=tmp_path, settings=settings)
    enqueued = run(
        program, "create", "--email", address, "--external-id", mine, "--json", cwd=tmp_path, settings=settings
    )
    job_id = json.loads(enqueued.stdout)["id"]
    waiting = run(program, "list", "--json", cwd=tmp_path, settings=settings)
    stack.start_worker()
    ended = stack.jobs.wait(job_id, SOON_SECONDS)
    stack.consumer.event_about(job_id)
    events = run(program, "events", "--json", cwd=tmp_path, settings=settings)

    assert (migrated.returncode, migrated.stderr) == (0, "")
    assert [(each["id"], each["state"]) for each in map(json.loads, waiting.stdout.splitlines())] == [
        (job_id, "queued")
    ]
    assert (ended.outcome, len(stack.customers_of(ended))) == ("created", 1)
    (event,) = map(json.loads, events.stdout.splitlines())
    assert (event["subject"], event["data"]["customer_id"]) == (job_id, ended.customer_id)
    assert event["data"]["external_id"] == mine


@pytest.mark.slow
def test_an_apps_tests_need_nothing_but_the_wheel_and_pytest(installed: Path, tmp_path: Path) -> None:
    write_tests(tmp_path, without="import stripe")

    ran = run(installed / "python", "-m", "pytest", "-q", "-W", "error", cwd=tmp_path)

    assert ran.returncode == 0, ran.stdout
    assert "5 passed" in ran.stdout


@pytest.mark.slow
def test_the_script_for_whoever_may_is_printed_without_the_checkout(installed: Path, tmp_path: Path) -> None:
    url = "postgresql://app:secret@127.0.0.1:1/app"

    printed = run(installed / "customer-jobs", "migrate", "--sql", cwd=tmp_path, settings={"DATABASE_URL": url})

    # Not even the driver is needed: nothing is connected to.
    assert (printed.returncode, printed.stderr) == (0, "")
    assert printed.stdout.startswith("BEGIN;")
    assert printed.stdout.rstrip().endswith("COMMIT;")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["dev", "demo", "doctor"])
def test_what_needs_the_checkout_says_so(installed: Path, tmp_path: Path, command: str) -> None:
    refused = run(installed / "customer-jobs", command, cwd=tmp_path)

    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: this command runs the worker, which is in the checkout")
    assert len(refused.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
