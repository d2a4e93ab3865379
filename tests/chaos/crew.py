"""Workers under a supervisor, as systemd or compose would keep them; who dies unasked is remembered."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from customer_jobs.embedded import Program, start, wait_until
from tests.acceptance.stack import CELERY, CHECKOUT, environment

LOOK_SECONDS = 0.1  #: How soon the supervisor notices that a worker has ended.
READY_SECONDS = 60.0  #: Three workers that start at once on a busy machine, while PostgreSQL may be away.
#: A worker told to stop finishes its calls, and the slowest of Stripe's answers takes 30 s.
END_SECONDS = 60.0


@dataclass(frozen=True)
class End:
    """How a worker ended."""

    worker: str
    pid: int
    exit_code: int | None
    cause: str | None  #: None: nobody knows why.


class Crew:
    """Workers by name; one that ends is started again under the same name, until the block ends."""

    def __init__(self, directory: Path, settings: Mapping[str, str]) -> None:
        self.ends: list[End] = []
        self._directory = directory
        self._settings = settings
        self._workers: dict[str, Program] = {}
        self._starts = 0
        self._causes: dict[int, str] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor")

    def __enter__(self) -> Crew:
        self._supervisor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._supervisor.join()
        for worker in self._workers.values():
            worker.kill()

    @property
    def names(self) -> list[str]:
        return sorted(self._workers)

    @property
    def logs(self) -> list[Path]:
        """One for each worker that was started, the oldest first."""
        return sorted(self._directory.glob("worker-*.log"))

    def start(self, *names: str) -> None:
        """Return once these workers consume."""
        with self._lock:
            for name in names:
                self._workers[name] = self._launch(name)
        for name in names:
            self.wait_until_ready(name)

    def program(self, name: str) -> Program:
        """The worker of that name as it runs now."""
        with self._lock:
            return self._workers[name]

    def wait_until_ready(self, name: str) -> None:
        """Return once it consumes, also if it has to be started again for that."""
        what = f"worker {name} is ready"
        wait_until(lambda: f"{name}@test ready" in self.program(name).log.read_text(), READY_SECONDS, what)

    def kill(self, name: str) -> End:
        """It dies at once."""
        worker = self.program(name)
        self._causes[worker.pid] = "SIGKILL"
        worker.send(signal.SIGKILL)
        return self.wait_for_end(worker)

    def terminate(self, name: str) -> End:
        """It is asked to stop, and has stopped."""
        worker = self.program(name)
        self._causes[worker.pid] = "SIGTERM"
        worker.send(signal.SIGTERM)
        return self.wait_for_end(worker)

    @contextlib.contextmanager
    def paused(self, name: str) -> Iterator[Program]:
        """It does not run within this block."""
        worker = self.program(name)
        worker.send(signal.SIGSTOP)
        wait_until(lambda: process_state(worker.pid) in {"T", ""}, END_SECONDS, f"worker {name} is stopped")
        try:
            yield worker
        finally:
            worker.send(signal.SIGCONT)
            wait_until(lambda: process_state(worker.pid) != "T", END_SECONDS, f"worker {name} goes on")

    def wait_for_end(self, worker: Program) -> End:
        """How it ended, as the supervisor noticed."""
        wait_until(lambda: self._end_of(worker.pid), END_SECONDS, f"{worker.name} has ended")
        end = self._end_of(worker.pid)
        assert end is not None
        return end

    def end_all(self) -> list[End]:
        """Ask all to stop, and let nobody be started again."""
        self._stopped.set()
        self._supervisor.join()
        for worker in self._workers.values():
            worker.send(signal.SIGTERM)
        for name, worker in self._workers.items():
            # Celery ends at once, and not in order, when it is told a second time.
            wait_until(lambda worker=worker: not worker.running(), END_SECONDS, f"worker {name} has ended")  # type: ignore[misc]
        return [End(name, worker.pid, worker.exit_code(), "the end") for name, worker in self._workers.items()]

    def _end_of(self, pid: int) -> End | None:
        return next((end for end in self.ends if end.pid == pid), None)

    def _launch(self, name: str) -> Program:
        self._starts += 1
        return start(
            f"worker {name}",
            [*CELERY, "worker", "-n", f"{name}@test"],
            log=self._directory / f"worker-{self._starts:03}-{name}.log",
            env=environment(self._settings),
            cwd=CHECKOUT,
        )

    def _supervise(self) -> None:
        while not self._stopped.wait(LOOK_SECONDS):
            with self._lock:
                ended = [(name, worker) for name, worker in self._workers.items() if not worker.running()]
                for name, worker in ended:
                    self._workers[name] = self._launch(name)
                    self.ends.append(End(name, worker.pid, worker.exit_code(), self._causes.get(worker.pid)))


def process_state(pid: int) -> str:
    """As the kernel has it: R, S, D, T for stopped …; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""
