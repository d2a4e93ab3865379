"""What is built of the checkout: the virtual environment, the wheel, the container."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from customer_jobs.environment import PREFIX
from worker.settings import Settings

ROOT = Path(__file__).parents[2]
#: What docker-compose.yml asks whoever starts it for.
ASKED_FOR = {
    "POSTGRES_PASSWORD": "letters",
    "STRIPE_API_KEY": "rk_test_of_nobody",
    "FLOWER_BASIC_AUTH": "operator:letters",
}


def make(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    # A make that runs these tests must not tell this one how to behave.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *words], capture_output=True, text=True, cwd=cwd, env=env, timeout=60)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Enough of a checkout for `make install`, with stand-ins for Python that note how they are called."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / "python"
    # As `-m venv`, it makes a python that is itself; as `-m pip`, it installs nothing, or breaks off if told so.
    python.write_text(
        f"#!/bin/sh\necho \"$@\" >> '{tmp_path}/calls'\n"
        'case "$*" in\n'
        f"  -c*) exec '{sys.executable}' \"$@\" ;;\n"
        f"  *venv*) rm -rf .venv && mkdir -p .venv/bin && cp '{python}' .venv/bin/python ;;\n"
        f"  *pip*) test ! -e '{tmp_path}/breaks' || kill -INT $PPID ;;\n"
        "esac\n"
    )
    python.chmod(0o755)
    return tmp_path


def calls(checkout: Path) -> list[str]:
    log = checkout / "calls"
    found = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return [call for call in found if "venv" in call or "pip" in call]


def test_a_second_installation_is_skipped_at_once(checkout: Path) -> None:
    assert make("install", "PYTHON=./python", cwd=checkout).returncode == 0
    assert len(calls(checkout)) == 3  # the environment, the lock, the checkout itself

    began = time.monotonic()
    again = make("install", "PYTHON=./python", cwd=checkout)

    assert time.monotonic() - began < 1
    assert again.returncode == 0
    assert calls(checkout) == []


def test_an_interrupted_installation_is_begun_anew(checkout: Path) -> None:
    (checkout / "breaks").touch()
    assert make("install", "PYTHON=./python", cwd=checkout).returncode != 0
    (checkout / "breaks").unlink()
    calls(checkout)

    assert make("install", "PYTHON=./python", cwd=checkout).returncode == 0

    assert calls(checkout)[0] == "-m venv --clear .venv"


def test_a_changed_lock_is_installed_into_what_is_there(checkout: Path) -> None:
    make("install", "PYTHON=./python", cwd=checkout)
    calls(checkout)
    later = time.time() + 1
    os.utime(checkout / "requirements.lock", (later, later))

    assert make("install", "PYTHON=./python", cwd=checkout).returncode == 0

    assert [call.rpartition(" ")[2] for call in calls(checkout)] == ["requirements.lock", "."]


def test_an_old_python_is_named(checkout: Path) -> None:
    (checkout / "python").write_text(
        f'#!/bin/sh\nexec \'{sys.executable}\' -c "import sys; sys.version_info = (3, 10, 1); exec(sys.argv[1])" "$2"\n'
    )

    refused = make("install", "PYTHON=./python", cwd=checkout)

    assert refused.returncode != 0
    assert refused.stderr.startswith("error: customer-jobs needs Python 3.11 or newer, this is 3.10")
    assert not (checkout / ".venv").exists()


def test_help_lists_every_target_in_one_line() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)

    lines = make("help").stdout.splitlines()

    assert [line.split()[1] for line in lines] == targets
    assert len({re.search(r"make [\w-]+ +", line).end() for line in lines}) == 1  # type: ignore[union-attr]
    assert max(map(len, lines)) < 80


def test_the_wheel_holds_the_package_and_the_migrations_and_nothing_else(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], check=True, cwd=ROOT)
    (wheel,) = tmp_path.glob("*.whl")

    names = zipfile.ZipFile(wheel).namelist()

    assert {name.partition("/")[0] for name in names} == {"customer_jobs", "customer_jobs-0.1.0.dist-info"}
    migrations = {f"customer_jobs/{path.relative_to(ROOT)}" for path in (ROOT / "migrations").glob("**/*.py")}
    assert migrations < set(names)
    assert {"customer_jobs/py.typed", "customer_jobs-0.1.0.dist-info/licenses/LICENSE"} < set(names)
    assert [name for name in names if "__pycache__" in name] == []


def compose() -> Any:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def ours() -> dict[str, Any]:
    """The services that run what the Dockerfile builds."""
    return {name: service for name, service in compose()["services"].items() if service.get("build") == "."}


def test_docker_compose_reads_its_file() -> None:
    command = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]
    # The client alone, without its plug-in, knows no `compose`.
    if shutil.which(command[0]) is None or subprocess.run([*command, "version"], capture_output=True).returncode != 0:
        pytest.skip("no docker-compose on this machine")

    env = os.environ | ASKED_FOR
    read = subprocess.run([*command, "config", "-q"], capture_output=True, text=True, cwd=ROOT, env=env)

    assert read.returncode == 0, read.stderr


def test_every_service_is_checked_and_comes_back() -> None:
    for name, service in compose()["services"].items():
        if name != "migrate":
            assert service["healthcheck"]["test"]
            assert service["restart"] == "unless-stopped"
    assert ours().keys() == {"migrate", "worker", "flower"}
    assert ours()["worker"]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}


def test_redis_evicts_nothing_and_keeps_what_it_has() -> None:
    words = compose()["services"]["redis"]["command"]

    assert words[words.index("--maxmemory-policy") + 1] == "noeviction"
    assert words[words.index("--appendonly") + 1] == "yes"


def test_no_secret_is_in_the_file() -> None:
    text = (ROOT / "docker-compose.yml").read_text()

    asked = set(re.findall(r"\$\{(\w+):\?", text))
    assert asked == set(ASKED_FOR)
    assert not re.search(r"(?:PASSWORD|API_KEY|BASIC_AUTH): [^$]", text.partition("x-app")[2])


def test_every_setting_in_the_file_exists() -> None:
    known = {name.upper() for name in Settings.model_fields} | {"STRIPE_API_KEY"}
    for service in ours().values():
        names = {name.removeprefix(PREFIX) for name in service["environment"] if not name.startswith("FLOWER_")}
        assert names <= known


@pytest.mark.parametrize("name", ["migrate", "worker", "flower"])
def test_a_service_has_a_command_and_the_settings_for_it(name: str, sqlite_url: str) -> None:
    service = ours()[name]
    given = {each: re.sub(r"\$\{\w+:-(.*)\}", r"\1", str(value)) for each, value in service["environment"].items()}
    env = os.environ | given | ASKED_FOR | {"DATABASE_URL": sqlite_url}
    program, *words = service.get("command") or ["celery", "-A", "worker.app", "worker"]
    if name != "migrate":
        # Celery asks for the settings when it needs its broker; here there is none.
        program, *words = "python", "-c", "from worker.app import app; assert app.conf.broker_url"

    told = subprocess.run(
        [Path(sys.executable).with_name(program), *words], capture_output=True, text=True, cwd=ROOT, env=env
    )

    assert told.returncode == 0, told.stderr


def test_the_image_is_made_of_files_that_are_there() -> None:
    let_through = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]

    assert [name for name in let_through if not (ROOT / name).exists()] == []
    project = (ROOT / "pyproject.toml").read_text()
    assert {"customer_jobs", "models", "worker", "tasks", "migrations", "requirements.lock"} <= set(let_through)
    assert all(name in let_through for name in re.findall(r'"(README\.md|LICENSE)"', project))


def test_the_image_runs_as_somebody_without_rights() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()

    assert "USER customer-jobs" in lines
    by_root = [number for number, line in enumerate(lines) if line.startswith(("COPY", "RUN"))]
    assert lines.index("USER customer-jobs") > max(by_root)


def test_the_image_installs_the_extras_that_exist() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    words = shlex.split(dockerfile.replace("\\\n", " "), comments=True)

    extras = {words[i + 1] for i, word in enumerate(words) if word == "--extra"}

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras == declared.keys() - {"dev"}
    (uv,) = re.findall(r"^uv==.*$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert uv
