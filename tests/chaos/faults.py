"""The harm that a soak does: each function does one kind, undoes it, and returns what proves that it happened.

The proof comes from the target itself: its log, its state, the kernel, or the log of Stripe's stand-in. Where there is
none, the function raises NotDone: a soak that harmed nothing has shown nothing.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import redis

from customer_jobs.embedded import wait_until
from tests.chaos.crew import Crew, process_state
from tests.chaos.proofs import (
    NotDone,
    asking_postgres,
    leader,
    next_leader,
    postgres_answers,
    redis_answers,
    require,
    run_id,
    started_at,
    takes_connections,
)
from tests.chaos.site import Site
from tests.proxy import Proxy

STRUCK_SECONDS = 60.0  #: Until a fault must have met somebody; jobs are enqueued meanwhile.
AWAY_SECONDS = (1.0, 4.0)  #: How long a server is away, stalled or full.
LEAD_LASTS_SECONDS = 12.0  #: A leader that is stopped for longer has lost the lead.
LEASES_LAST_SECONDS = 18.0  #: A worker that is stopped for longer has lost its jobs.
TRIES = 3  #: To do harm to a worker while others do.
FULL_BYTES = 1  #: Of memory: everything is too much.


@dataclass(frozen=True)
class Target:
    """What is harmed, and the chance by which it is."""

    site: Site
    crew: Crew
    chance: random.Random

    def away(self) -> None:
        time.sleep(self.chance.uniform(*AWAY_SECONDS))


Fault = Callable[[Target], str]


def worker_killed(target: Target) -> str:
    """SIGKILL."""
    name = target.chance.choice(target.crew.names)
    end = target.crew.kill(name)
    require(end.exit_code == -9, f"worker {name} ended with {end.exit_code}")
    target.crew.wait_until_ready(name)
    return f"{name} ended with exit code {end.exit_code}"


def leader_killed(target: Target) -> str:
    """SIGKILL of the worker that leads."""
    before = leader(target.site, target.crew)
    end = target.crew.kill(before.name)
    require(end.pid == before.pid, f"worker {before.name}, process {end.pid}, did not lead")
    require(end.exit_code == -9, f"worker {before.name} ended with {end.exit_code}")
    after = next_leader(target.site, before)
    target.crew.wait_until_ready(before.name)
    return f"{before.name}, process {end.pid}, ended with exit code {end.exit_code}, then {after.name} led"


def worker_terminated(target: Target) -> str:
    """SIGTERM."""
    name = target.chance.choice(target.crew.names)
    # One that another fault has just ended starts anew, and hears no SIGTERM yet.
    target.crew.wait_until_ready(name)
    end = target.crew.terminate(name)
    require(end.exit_code == 0, f"worker {name} ended with {end.exit_code}")
    target.crew.wait_until_ready(name)
    return f"{name} ended with exit code {end.exit_code}"


def worker_stopped(target: Target) -> str:
    """SIGSTOP until its jobs are somebody else's, then SIGCONT: it records too late."""
    name = target.chance.choice(target.crew.names)
    with target.crew.paused(name) as worker:
        time.sleep(LEASES_LAST_SECONDS)
        require(process_state(worker.pid) == "T", f"worker {name} goes on")
    return f"{name}, process {worker.pid}, was in state T for {LEASES_LAST_SECONDS:g} s"


def leader_stopped(target: Target) -> str:
    """SIGSTOP of the worker that leads, until another does."""
    before = leader(target.site, target.crew)
    with target.crew.paused(before.name) as worker:
        require(worker.pid == before.pid, f"worker {before.name}, process {worker.pid}, did not lead")
        time.sleep(LEAD_LASTS_SECONDS)
        after = next_leader(target.site, before)
        require(process_state(worker.pid) == "T", f"worker {before.name} goes on")
    return f"{before.name}, process {worker.pid}, was in state T, {after.name} led"


def redis_flushed(target: Target) -> str:
    """FLUSHALL, the stream and the consumer groups included."""
    with target.site.asking_redis() as client:
        client.set("chaos", "here")
        pipeline = client.pipeline(transaction=True)
        pipeline.dbsize()
        pipeline.flushall()
        pipeline.dbsize()
        before, _, after = pipeline.execute()
    require(before > 0 and after == 0, f"{before} keys before, {after} after")
    return f"{before} keys, then none"


def redis_restarted(target: Target) -> str:
    """SIGKILL, away for a while, back without its data."""
    site = target.site
    before = run_id(site)
    with site.asking_redis() as client:
        client.set("chaos", "here")
    site.redis_server.stop_immediately()
    target.away()
    site.redis_server.start_again()
    with site.asking_redis() as client:
        require(run_id(site) != before and client.get("chaos") is None, "the same Redis with the same data")
    return f"run_id {before[:8]}, then {run_id(site)[:8]}"


def redis_stalled(target: Target) -> str:
    """It takes connections and commands, and answers nothing for longer than everybody's patience."""
    with stalled(target.site.to_redis, redis_answers(target.site)):
        time.sleep(target.chance.uniform(3, 8))
    return "no answer to PING"


def redis_full(target: Target) -> str:
    """`maxmemory` is reached: it refuses to write."""
    with target.site.asking_redis() as client:
        client.config_set("maxmemory", FULL_BYTES)
        try:
            refused = client.set("chaos", "here")
        except redis.ResponseError as error:
            refused = str(error)
        target.away()
        client.config_set("maxmemory", 0)
    require("used memory > 'maxmemory'" in str(refused), f"answered {refused!r}")
    return f"answered {str(refused)[:30]}…"


def redis_cut_off(target: Target) -> str:
    """Connections break, and new ones are refused for a while."""
    return cut_off(target, target.site.to_redis, redis_answers(target.site))


def redis_replies_cut(target: Target) -> str:
    """Redis does as it was asked, and the connection breaks in the middle of the answer, several times."""
    proxy = target.site.to_redis
    for _ in range(5):
        proxy.cut_replies_after(target.chance.randrange(20))
        wait_until(lambda: proxy.has_cut, STRUCK_SECONDS, "a reply was cut")
    return "5 replies were cut"


def redis_half_open(target: Target) -> str:
    """Everybody's connections fall silent for good; new ones work."""
    wait_until(lambda: target.site.to_redis.connections, STRUCK_SECONDS, "somebody is connected")
    lost = target.site.to_redis.connections
    target.site.to_redis.lose()
    require(redis_answers(target.site)(), "new connections do not work")
    return f"{lost} connections were lost"


def postgres_restarted(target: Target) -> str:
    """Immediate mode: as after a crash, it recovers from its log."""
    site = target.site
    assert site.postgres_server is not None
    before = started_at(site)
    log = site.postgres_server.program.log
    recoveries = log.read_text().count(RECOVERED)
    site.postgres_server.stop_immediately()
    target.away()
    site.postgres_server.start_again()
    require(started_at(site) != before, "it has not started anew")
    require(log.read_text().count(RECOVERED) > recoveries, f"its log does not say {RECOVERED!r}")
    return f"its log says: {RECOVERED}"


def postgres_connections_reset(target: Target) -> str:
    """Every connection breaks, whatever is under way on it."""
    assert target.site.to_postgres is not None
    proxy = target.site.to_postgres
    wait_until(lambda: proxy.connections, STRUCK_SECONDS, "somebody is connected")
    broken = proxy.reset()
    require(broken > 0, "nobody was connected")
    return f"{broken} connections were reset"


def postgres_sessions_ended(target: Target) -> str:
    """An administrator ends every session."""
    ended: list[tuple[bool]] = []

    def end_them() -> bool:
        with asking_postgres(target.site) as connection:
            ended[:] = connection.execute(END_SESSIONS).fetchall()
        return bool(ended)

    wait_until(end_them, STRUCK_SECONDS, "somebody is connected")
    require(any(has_ended for (has_ended,) in ended), "no session has ended")
    return f"{len(ended)} sessions were ended"


def postgres_cut_off(target: Target) -> str:
    """Connections break, and new ones are refused for a while."""
    assert target.site.to_postgres is not None
    return cut_off(target, target.site.to_postgres, postgres_answers(target.site))


def postgres_stalled(target: Target) -> str:
    """It takes connections and statements, and answers nothing for a while."""
    assert target.site.to_postgres is not None
    with stalled(target.site.to_postgres, postgres_answers(target.site)):
        target.away()
    return "no answer to a connection's first words"


def stripe_cut_off(target: Target) -> str:
    """Connections break in mid-call, and new ones are refused for a while."""
    proxy = target.site.to_stripe
    return cut_off(target, proxy, lambda: takes_connections(proxy.port))


def stripe_does(fault: str, times: int, *, method: str | None = None) -> Fault:
    """Stripe's stand-in shows the fault to so many calls, and its log must say so."""

    def strike(target: Target) -> str:
        sandbox = target.site.sandbox
        requests = sandbox.requests
        since = requests[-1].number if requests else 0
        rule = sandbox.faults.add(fault, method=method, path="/v1/customers*", times=times)
        name = rule.fault.name
        try:
            sandbox.wait_until_request(lambda seen: seen.number > since and seen.fault == name, STRUCK_SECONDS, times)
        except TimeoutError as error:
            raise NotDone(str(error)) from None
        return f"{times} calls met {name}"

    strike.__doc__ = f"{fault}, to {times} calls."
    return strike


def persistently(fault: Fault) -> Fault:
    """The fault once more where another one was faster: a worker that is to be killed has just ended by itself."""

    def strike(target: Target) -> str:
        for _ in range(TRIES - 1):
            with contextlib.suppress(NotDone):
                return fault(target)
        return fault(target)

    strike.__doc__ = fault.__doc__
    return strike


WORKERS: dict[str, Fault] = {
    "worker killed": persistently(worker_killed),
    "worker told to stop": persistently(worker_terminated),
    "worker stopped and resumed": persistently(worker_stopped),
}
LEADER: dict[str, Fault] = {
    "leader killed": persistently(leader_killed),
    "leader stopped and resumed": persistently(leader_stopped),
}
REDIS: dict[str, Fault] = {
    "Redis flushed": redis_flushed,
    "Redis restarted empty": redis_restarted,
    "Redis stalled": redis_stalled,
    "Redis full": redis_full,
    "Redis cut off": redis_cut_off,
    "Redis replies cut": redis_replies_cut,
    "Redis half-open": redis_half_open,
}
POSTGRESQL: dict[str, Fault] = {
    "PostgreSQL restarted": postgres_restarted,
    "PostgreSQL connections reset": postgres_connections_reset,
    "PostgreSQL sessions ended": postgres_sessions_ended,
    "PostgreSQL cut off": postgres_cut_off,
    "PostgreSQL stalled": postgres_stalled,
}
STRIPE: dict[str, Fault] = {
    "Stripe cut off": stripe_cut_off,
    "Stripe hangs": stripe_does("hang_5s", 2),
    "Stripe hangs after the deed": stripe_does("hang_after_5s", 2, method="POST"),
    "Stripe resets": stripe_does("reset", 3),
    "Stripe resets after the deed": stripe_does("reset_after", 3, method="POST"),
    "Stripe 500 after the deed": stripe_does("500_after", 3, method="POST"),
    "Stripe cuts its answer": stripe_does("cut", 3),
    "Stripe 503": stripe_does("503", 4),
    "Stripe 429": stripe_does("rate_limit", 4),
    "Stripe 409": stripe_does("key_in_use", 3, method="POST"),
}

RECOVERED = "database system was not properly shut down; automatic recovery in progress"
END_SESSIONS = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


#: What a worker lives through: nobody kills or stops it, and Celery does not end it.
SURVIVED = REDIS.keys() | POSTGRESQL.keys() | STRIPE.keys()


def lanes(site: Site) -> list[dict[str, Fault]]:
    """What can go wrong there; the faults of one lane exclude each other, those of several may strike at once."""
    if site.postgres_server is not None:
        return [WORKERS, LEADER, REDIS, STRIPE, POSTGRESQL]
    # A process that is stopped while it writes to a SQLite file keeps everybody else from it until it goes on.
    workers, leader = ({name: lane[name] for name in lane if "stopped" not in name} for lane in (WORKERS, LEADER))
    return [workers, leader, REDIS, STRIPE]


@contextlib.contextmanager
def stalled(proxy: Proxy, answers: Callable[[], bool]) -> Iterator[None]:
    proxy.stall()
    try:
        require(not answers(), "it answers")
        yield
    finally:
        proxy.go_on()


def cut_off(target: Target, proxy: Proxy, answers: Callable[[], bool]) -> str:
    proxy.refuse()
    try:
        broken = proxy.reset()
        require(not answers(), "it answers")
        target.away()
    finally:
        proxy.accept()
    return f"connection refused; {broken} were broken"
