"""What `customer-jobs doctor` asks of the database and of Redis; it changes nothing but a key that lasts a minute."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import redis
from sqlalchemy import Connection, Engine, select, text
from sqlalchemy.exc import DBAPIError

from customer_jobs.checks import Check, fail, ok, out_of_reach, refused_by_redis, warn
from customer_jobs.database import reading, schema_name
from customer_jobs.errors import Unavailable
from customer_jobs.health import PROBE, PROBE_LASTS_SECONDS
from customer_jobs.migrate import pending
from customer_jobs.schema import metadata
from customer_jobs.sql import now
from customer_jobs.stream import Client

OLDEST_POSTGRESQL = 14  #: Older ones are maintained by nobody. Source: https://www.postgresql.org/support/versioning/
OLDEST_REDIS = (6, 2)  #: BLMOVE, XAUTOCLAIM and XTRIM MINID came with it.
SKEW_SECONDS = 5.0  #: Leases go by the database's clock alone; times in logs and events should tell one story.
NOTIFY_SECONDS = 2.0  #: A notification takes milliseconds.
CHANNEL = "customer_jobs_doctor"  #: Of the notification sent to ourselves.
MUCH_MEMORY = 0.8  #: The share of maxmemory beyond which somebody should look.


def of_database(engine: Engine) -> list[Check]:
    """Every check of the database; only the first where it is out of reach."""
    try:
        found = [_version(engine)]
        if any(check.bad for check in found):
            return found
        migrations = _migrations(engine)
        found += [migrations, _clock(engine)]
        if not migrations.bad:
            found.append(_indexes(engine))
            if engine.dialect.name == "postgresql":
                found += _notify(engine)
    except Unavailable as error:
        return [out_of_reach("database", error)]
    return found


def _version(engine: Engine) -> Check:
    with reading(engine):
        pass  # Whatever keeps us out is told as elsewhere.
    numbers: tuple[Any, ...] = engine.dialect.server_version_info or (0,)
    version = ".".join(map(str, numbers))
    if engine.dialect.name == "sqlite":
        return warn(
            "database",
            f"SQLite {version}: one machine, one writer at a time",
            "use PostgreSQL where workers run on several machines",
        )
    if numbers[0] < OLDEST_POSTGRESQL:
        return fail("database", f"PostgreSQL {version}", f"upgrade it to {OLDEST_POSTGRESQL} or newer")
    return ok("database", f"PostgreSQL {version}")


def _migrations(engine: Engine) -> Check:
    if missing := pending(engine):
        return fail("migrations", f"not applied: {', '.join(missing)}", "run `customer-jobs migrate`")
    return ok("migrations", "all applied")


def _clock(engine: Engine) -> Check:
    with reading(engine) as transaction:
        began = datetime.now(UTC)
        theirs = transaction.value(select(now()))
        ended = datetime.now(UTC)
    skew = (theirs - (began + (ended - began) / 2)).total_seconds()
    if abs(skew) > SKEW_SECONDS:
        ahead = "ahead of" if skew > 0 else "behind"
        detail = f"the database's clock is {abs(skew):.0f} s {ahead} this machine's"
        return warn("clock", detail, "let both keep time by NTP")
    return ok("clock", "the database's and this machine's agree")


def _indexes(engine: Engine) -> Check:
    """An index that is missing or was left unfinished makes dispatching slow, and uniqueness void."""
    wanted = {str(index.name) for table in metadata.sorted_tables for index in table.indexes}
    schema = schema_name()
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            held = set(connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'index'")).scalars())
            broken = []
        else:
            query = text("SELECT indexname FROM pg_indexes WHERE schemaname = :schema")
            held = set(connection.execute(query, {"schema": schema}).scalars())
            broken = _unfinished(connection, schema)
    if missing := sorted(wanted - held):
        return fail(
            "indexes", f"missing: {', '.join(missing)}", "make them as `customer-jobs migrate --sql` spells them"
        )
    if broken:
        return fail(
            "indexes", f"not valid: {', '.join(broken)}", f"run `REINDEX INDEX CONCURRENTLY {schema}.{broken[0]}`"
        )
    return ok("indexes", f"all {len(wanted)} are there")


def _unfinished(connection: Connection, schema: str) -> list[str]:
    query = text(
        "SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid "
        "JOIN pg_namespace ON pg_namespace.oid = relnamespace "
        "WHERE nspname = :schema AND NOT (indisvalid AND indisready) ORDER BY relname"
    )
    return list(connection.execute(query, {"schema": schema}).scalars())


def _notify(engine: Engine) -> list[Check]:
    """Whether an INSERT wakes the dispatcher at once: the triggers are on, and a notification arrives."""
    query = text(
        "SELECT count(*) FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid "
        "JOIN pg_namespace ON pg_namespace.oid = relnamespace "
        "WHERE nspname = :schema AND tgname IN ('jobs_notify', 'events_notify') AND tgenabled <> 'D'"
    )
    slower = "nothing is lost: a job starts up to half a second later"
    with engine.connect() as connection:
        if connection.execute(query, {"schema": schema_name()}).scalar_one() < len(("jobs", "events")):
            return [warn("notify", f"the triggers are switched off; {slower}", "enable jobs_notify and events_notify")]
    if not _notification_arrives(engine):
        remedy = "let the workers' DATABASE_URL pass by a pooler in transaction mode"
        return [warn("notify", f"notifications do not arrive; {slower}", remedy)]
    return [ok("notify", "an INSERT wakes the dispatcher")]


def _notification_arrives(engine: Engine) -> bool:
    with engine.connect() as listening, engine.connect() as sending:
        listening.exec_driver_sql(f"LISTEN {CHANNEL}")
        listening.commit()
        sending.execute(text("SELECT pg_notify(:channel, '')"), {"channel": CHANNEL})
        sending.commit()
        driver: Any = listening.connection.driver_connection
        driver.autocommit = True
        try:
            return any(True for _ in driver.notifies(timeout=NOTIFY_SECONDS, stop_after=1))
        finally:
            driver.execute(f"UNLISTEN {CHANNEL}")
            driver.autocommit = False


def of_redis(client: Client) -> list[Check]:
    """Every check of Redis; only the first where it is out of reach."""
    try:
        info: dict[str, Any] = client.info()
        found = [_redis_version(info), _eviction(info), _persistence(info), _memory(info)]
        client.set(PROBE, "1", ex=PROBE_LASTS_SECONDS)
    except redis.ResponseError as error:
        return [refused_by_redis("redis", error)]
    except (redis.RedisError, OSError) as error:
        return [out_of_reach("redis", error)]
    return found


def _redis_version(info: dict[str, Any]) -> Check:
    is_valkey = "valkey_version" in info
    version = str(info["valkey_version"] if is_valkey else info.get("redis_version", "?"))
    name = f"{'Valkey' if is_valkey else 'Redis'} {version}"
    if info.get("cluster_enabled"):
        return fail("redis", f"{name} is a cluster", "use one without cluster mode: Celery does not know it")
    if not is_valkey and _parts(version) < OLDEST_REDIS:
        return fail("redis", name, "upgrade it to {}.{} or newer".format(*OLDEST_REDIS))
    return ok("redis", name)


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _eviction(info: dict[str, Any]) -> Check:
    policy = info.get("maxmemory_policy", "unknown")
    if policy == "noeviction":
        return ok("eviction", "noeviction")
    return fail(
        "eviction", f"maxmemory-policy is {policy}: messages and events can vanish", "set `maxmemory-policy noeviction`"
    )


def _persistence(info: dict[str, Any]) -> Check:
    if info.get("aof_enabled"):
        if info.get("aof_last_write_status", "ok") != "ok":
            return fail("persistence", "the append-only file cannot be written", "give its disk room")
        return ok("persistence", "append-only file")
    return warn(
        "persistence",
        "no append-only file: a restart loses the stream; nothing that the table cannot publish again",
        "set `appendonly yes`",
    )


def _memory(info: dict[str, Any]) -> Check:
    used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if not most:
        return ok("memory", f"{used / 2**20:.0f} MiB used, no limit")
    detail = f"{used / 2**20:.0f} of {most / 2**20:.0f} MiB used"
    if used > MUCH_MEMORY * most:
        return warn("memory", detail, "give Redis more memory: a full one takes no messages and no events")
    return ok("memory", detail)


def guarded(name: str, look: Callable[[], list[Check]]) -> list[Check]:
    """What a look found; a refusal of the database is a check that failed, not the end of all."""
    try:
        return look()
    except DBAPIError as error:
        first_line = str(error.orig).strip().partition("\n")[0]
        return [fail(name, f"the database refuses: {first_line}", "give the user of DATABASE_URL rights on the schema")]
