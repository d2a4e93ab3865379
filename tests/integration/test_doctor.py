"""`customer-jobs doctor`: what is not as it should be before production, each with one sentence that mends it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text
from typer.testing import CliRunner, Result

from customer_jobs.checks import Check
from customer_jobs.cli import app
from customer_jobs.database import writing
from customer_jobs.doctor import of_database, of_redis
from customer_jobs.limits import pause
from customer_jobs.sandbox import Sandbox
from customer_jobs.schema import credentials
from customer_jobs.stream import connect
from tests import servers
from worker.settings import settings

KEY = "sk_test_shop_0123456789"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def server(tmp_path: Path) -> Iterator[servers.Server]:
    with servers.start_redis(tmp_path, append_only=True) as server:
        yield server


@pytest.fixture
def env(database_url: str, server: servers.Server, sandbox: Sandbox) -> dict[str, str]:
    """A worker's settings, as they should be but for the stand-in."""
    return {
        "DATABASE_URL": database_url,
        "REDIS_URL": server.url,
        "STRIPE_API_KEY": KEY,
        "STRIPE_API_BASE": sandbox.url,
        "FLOWER_BASIC_AUTH": "operator:letters",
    }


def run(env: dict[str, str], *flags: str) -> Result:
    settings.cache_clear()
    try:
        return CliRunner().invoke(app, ["doctor", *flags], env=env)
    finally:
        settings.cache_clear()


def found(env: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The checks by their names; of several with one name the worst, of which there is one."""
    result = run(env, "--json")
    document = json.loads(result.stdout)
    assert document["ready"] == (result.exit_code == 0)
    checks: dict[str, dict[str, Any]] = {}
    for check in document["checks"]:
        if check["level"] != "ok" or check["name"] not in checks:
            checks[check["name"]] = check
    return checks


def worse_than_ok(env: dict[str, str]) -> dict[str, str]:
    return {name: check["level"] for name, check in found(env).items() if check["level"] != "ok"}


def test_what_is_as_it_should_be_is_said_in_one_line_each(env: dict[str, str], engine: Engine) -> None:
    result = run(env)

    assert result.exit_code == 0, result.output
    expected = {"stripe": "warn"} | ({"database": "warn"} if engine.dialect.name == "sqlite" else {})
    assert worse_than_ok(env) == expected
    assert "ok    key default  secret key, test mode, account acct_shop, reads customers" in result.stdout
    assert result.stdout.count("→") == len(expected)


def test_no_value_of_a_setting_is_shown(env: dict[str, str]) -> None:
    secret = "whsec_abcdefgh"

    result = run(env | {"STRIPE_WEBHOOK_SECRET": secret})

    assert "STRIPE_API_KEY" in result.stdout
    assert [word for word in (KEY, secret, "operator:letters") if word in result.output] == []


def test_settings_that_are_missing_or_wrong_are_all_named(env: dict[str, str]) -> None:
    checks = found(env | {"REDIS_URL": "", "RATE_LIMIT_CREATE": "many"})

    assert checks["settings"]["level"] == "fail"
    assert "REDIS_URL is not set" in checks["settings"]["detail"]
    assert "RATE_LIMIT_CREATE" in checks["settings"]["detail"]
    assert checks["migrations"]["level"] == "ok"
    assert "redis" not in checks


def test_a_setting_that_nothing_reads_is_named(env: dict[str, str]) -> None:
    checks = found(env | {"CUSTOMER_JOBS_RATE_LIMT": "5"})

    assert checks["unknown"]["detail"] == "nothing reads CUSTOMER_JOBS_RATE_LIMT"


def test_a_live_key_by_accident_fails(env: dict[str, str]) -> None:
    checks = found(env | {"STRIPE_API_KEY": "sk_live_shop"})

    assert checks["settings"]["level"] == "fail"
    assert "export ALLOW_LIVE_MODE=true" in checks["settings"]["detail"]


@pytest.mark.parametrize(
    ("settings", "check", "level", "words"),
    [
        ({"STRIPE_API_KEY": "sk_test_shop_expired"}, "key default", "fail", "401 Expired API Key"),
        ({"STRIPE_API_KEY": "rk_test_shop_noread"}, "key default", "fail", "403"),
        ({"STRIPE_API_BASE": "http://127.0.0.1:1"}, "key default", "out of reach", "Stripe does not answer"),
        ({"STRIPE_API_KEY": "rk_test_shop_noaccount"}, "key default", "ok", "not told to this key"),
        ({"STRIPE_API_KEY_EU": "sk_live_shop", "ALLOW_LIVE_MODE": "true"}, "key eu", "warn", "and all else"),
        ({"ALLOW_LIVE_MODE": "true"}, "mode", "warn", "without a live key"),
        ({"RATE_LIMIT_CREATE": "50"}, "limits", "warn", "above Stripe's 25/s for an endpoint"),
        ({"RATE_LIMIT_ACCOUNT": "60"}, "limits", "warn", "above Stripe's 25/s"),
        ({"STRIPE_WEBHOOK_SECRET": "secret"}, "webhooks", "fail", "is not a signing secret"),
        ({"STRIPE_WEBHOOK_SECRET": " , "}, "webhooks", "fail", "is not a signing secret"),
        ({"STRIPE_WEBHOOK_SECRET_EU": "secret"}, "webhooks", "fail", "SECRET_EU is not a signing secret"),
        ({"MAX_ATTEMPTS": "many"}, "settings", "fail", "MAX_ATTEMPTS must be a number"),
        ({"STRIPE_API_KEY_DEFAULT": KEY}, "settings", "fail", "set one of them"),
        ({"STRIPE_API_KEY_DEFAULT": KEY, "STRIPE_WEBHOOK_SECRET_EU": "whsec_x"}, "webhooks", "ok", "secrets for eu"),
        ({"STRIPE_WEBHOOK_SECRET_EU": "whsec_x"}, "webhooks", "warn", "'eu' has a signing secret and no key"),
        ({"FLOWER_BASIC_AUTH": ""}, "flower", "warn", "no password"),
    ],
)
def test_a_setting_that_should_be_otherwise(
    env: dict[str, str], settings: dict[str, str], check: str, level: str, words: str
) -> None:
    it = found(env | settings)[check]

    assert it["level"] == level
    assert words in it["detail"]
    assert (it["remedy"] is None) == (level == "ok")


def test_nothing_is_written_at_stripe(env: dict[str, str], sandbox: Sandbox) -> None:
    before = len(sandbox.requests)

    assert run(env).exit_code == 0

    assert {request.method for request in sandbox.requests[before:]} == {"GET"}


def test_what_is_out_of_reach_fails(env: dict[str, str]) -> None:
    away = {"DATABASE_URL": "postgresql://app@127.0.0.1:1/app", "REDIS_URL": "redis://127.0.0.1:1/0"}

    result = run(env | away)

    assert result.exit_code == 1
    assert worse_than_ok(env | away) == {"database": "out of reach", "redis": "out of reach", "stripe": "warn"}


def test_a_database_that_is_not_migrated_fails(env: dict[str, str], empty_database_url: str) -> None:
    checks = found(env | {"DATABASE_URL": empty_database_url})

    assert checks["migrations"]["remedy"] == "run `customer-jobs migrate`"
    assert "indexes" not in checks


def of_name(checks: list[Check], name: str) -> Check:
    (check,) = (each for each in checks if each.name == name)
    return check


def schema_of(engine: Engine) -> str:
    return "" if engine.dialect.name == "sqlite" else "customer_jobs."


def test_an_index_that_is_missing_fails(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text(f"DROP INDEX {schema_of(engine)}jobs_external_id"))

    check = of_name(of_database(engine), "indexes")

    assert (check.level, check.detail) == ("fail", "missing: jobs_external_id")


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_an_index_that_was_left_unfinished_fails(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'customer_jobs.jobs_external_id'::regclass")
        )

    check = of_name(of_database(engine), "indexes")

    with engine.begin() as connection:
        connection.execute(text("REINDEX INDEX customer_jobs.jobs_external_id"))
    assert check.detail == "not valid: jobs_external_id"
    assert check.remedy == "run `REINDEX INDEX CONCURRENTLY customer_jobs.jobs_external_id`"
    assert of_name(of_database(engine), "indexes").level == "ok"


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_rights_that_are_missing_hide_nothing_else(env: dict[str, str], engine: Engine) -> None:
    role = f"reader_{uuid.uuid4().hex}"
    with engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {role}"))
        connection.execute(text(f"GRANT USAGE ON SCHEMA customer_jobs TO {role}"))
        connection.execute(text(f"GRANT SELECT ON customer_jobs.alembic_version TO {role}"))
    url = engine.url.update_query_dict({"options": f"-c role={role}"}).render_as_string(hide_password=False)

    checks = found(env | {"DATABASE_URL": url})

    with engine.begin() as connection:
        connection.execute(text(f"DROP OWNED BY {role}"))
        connection.execute(text(f"DROP ROLE {role}"))
    assert checks["database"]["level"] == "fail"
    assert "permission denied for table credentials" in checks["database"]["detail"]
    assert {checks[name]["level"] for name in ("migrations", "redis", "key default")} == {"ok"}


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_notifications_that_are_switched_off_are_a_warning(engine: Engine) -> None:
    before = of_name(of_database(engine), "notify")
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE customer_jobs.jobs DISABLE TRIGGER jobs_notify"))

    after = of_name(of_database(engine), "notify")

    assert (before.level, after.level) == ("ok", "warn")
    assert "up to half a second later" in after.detail


def test_a_credential_that_stands_for_another_mode_or_is_paused_is_named(env: dict[str, str], engine: Engine) -> None:
    with writing(engine) as transaction:
        transaction.change(
            transaction.insert(credentials).values(name="default", livemode=True, key_fingerprint="key_1")
        )
    other_mode = found(env)["key default"]
    with writing(engine) as transaction:
        transaction.change(credentials.update().values(livemode=False))
        pause(transaction, "default", reason="Stripe refused the key: 401")
    paused = found(env)["key default"]

    assert (other_mode["level"], other_mode["detail"]) == ("fail", "in this database 'default' stands for a live key")
    assert (paused["level"], paused["remedy"]) == ("warn", "mend it, then: customer-jobs limits resume default")


def test_a_redis_that_may_lose_messages_is_found_out(server: servers.Server) -> None:
    with connect(server.url) as client:
        before = of_redis(client)
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("appendonly", "no")
        client.config_set("maxmemory", str(int(client.info("memory")["used_memory"] * 1.1)))

        after = of_redis(client)

    assert {check.level for check in before} == {"ok"}
    assert {check.name: check.level for check in after} == {
        "redis": "ok", "eviction": "fail", "persistence": "warn", "memory": "warn",
    }  # fmt: skip


def test_a_redis_that_refuses_writes_fails(server: servers.Server) -> None:
    with connect(server.url) as client:
        client.config_set("maxmemory", "1")

        (check,) = of_redis(client)

    assert (check.level, check.remedy) == ("fail", "give Redis more memory, or remove what fills it")
