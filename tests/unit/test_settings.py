"""Every setting, how it may be spelled, and what is said when it is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from customer_jobs.errors import InvalidSetting
from worker.settings import Settings, settings

TEST_KEY = "sk_test_51HxSecretSecret"
LIVE_KEY = "rk_live_51HxSecretSecret"
REQUIRED = {
    "DATABASE_URL": "postgresql://shop:hunter2@localhost/shop",
    "REDIS_URL": "redis://:hunter2@localhost:6379/0",
    "STRIPE_API_KEY": TEST_KEY,
}
SECRETS = ("hunter2", TEST_KEY, LIVE_KEY, "SecretSecret")

Read = Callable[..., Settings]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Read:
    """Reads the settings of an environment: the required ones, changed by the arguments; None leaves one out."""

    def with_environment(**environment: str | None) -> Settings:
        for name, value in {**REQUIRED, **environment}.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        settings.cache_clear()
        try:
            return settings()
        finally:
            settings.cache_clear()

    return with_environment


def complaint(read: Read, **environment: str | None) -> str:
    with pytest.raises(InvalidSetting) as caught:
        read(**environment)
    assert not any(secret in str(caught.value) for secret in SECRETS)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_defaults_are_those_of_the_design(read: Read) -> None:
    found = read()

    assert found.model_dump(exclude={"database_url", "redis_url", "stripe_api_keys"}) == {
        "database_schema": "customer_jobs",
        "stripe_api_base": "https://api.stripe.com",
        "allow_live_mode": False,
        "rate_limit_create": 25,
        "rate_limit_fetch": 25,
        "rate_limit_account": None,
        "max_in_flight": 1000,
        "retention_days": 30,
        "event_stream": "customer-jobs:events",
        "log_level": "INFO",
        "allow_broker_payloads": False,
    }
    assert found.database_url.get_secret_value() == REQUIRED["DATABASE_URL"]
    assert found.redis_url.get_secret_value() == REQUIRED["REDIS_URL"]
    assert found.stripe_api_keys["default"].get_secret_value() == TEST_KEY


@pytest.mark.parametrize("prefix", ["", "CUSTOMER_JOBS_"])
@pytest.mark.parametrize(
    ("name", "value", "field", "means"),
    [
        ("DATABASE_SCHEMA", "jobs", "database_schema", "jobs"),
        ("STRIPE_API_BASE", "http://127.0.0.1:8080", "stripe_api_base", "http://127.0.0.1:8080"),
        ("ALLOW_LIVE_MODE", "true", "allow_live_mode", True),
        ("RATE_LIMIT_CREATE", "12.5", "rate_limit_create", 12.5),
        ("RATE_LIMIT_FETCH", "7", "rate_limit_fetch", 7),
        ("RATE_LIMIT_ACCOUNT", "50", "rate_limit_account", 50),
        ("MAX_IN_FLIGHT", "32", "max_in_flight", 32),
        ("RETENTION_DAYS", "0.5", "retention_days", 0.5),
        ("EVENT_STREAM", "shop:events", "event_stream", "shop:events"),
        ("LOG_LEVEL", "debug", "log_level", "DEBUG"),
        ("ALLOW_BROKER_PAYLOADS", "1", "allow_broker_payloads", True),
    ],
)
def test_every_setting_is_read_with_and_without_the_prefix(
    read: Read, prefix: str, name: str, value: str, field: str, means: object
) -> None:
    found = read(**{prefix + name: value})

    assert getattr(found, field) == means


@pytest.mark.parametrize("name", [*REQUIRED, "LOG_LEVEL"])
def test_the_prefixed_spelling_wins_over_an_apps_own(read: Read, name: str) -> None:
    values = {
        "DATABASE_URL": ("sqlite:///ours.sqlite3", "mysql://theirs"),
        "REDIS_URL": ("redis://ours", "memcached://theirs"),
        "STRIPE_API_KEY": (TEST_KEY, LIVE_KEY),
        "LOG_LEVEL": ("ERROR", "chatty"),
    }
    ours, theirs = values[name]

    found = read(**{name: theirs, f"CUSTOMER_JOBS_{name}": ours})

    value = {
        "DATABASE_URL": found.database_url.get_secret_value(),
        "REDIS_URL": found.redis_url.get_secret_value(),
        "STRIPE_API_KEY": found.stripe_api_keys["default"].get_secret_value(),
        "LOG_LEVEL": found.log_level,
    }[name]
    assert value == ours


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize("prefix", ["", "CUSTOMER_JOBS_"])
def test_a_secret_may_be_in_a_file(read: Read, tmp_path: Path, name: str, prefix: str) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{REQUIRED[name]}\n")

    found = read(**{name: None, f"{prefix}{name}_FILE": str(file)})

    assert found == read()


def test_a_file_that_cannot_be_read_is_named(read: Read, tmp_path: Path) -> None:
    said = complaint(read, REDIS_URL=None, REDIS_URL_FILE=str(tmp_path / "missing"))

    assert said.startswith("REDIS_URL_FILE: cannot read ")
    assert "No such file" in said


def test_each_key_setting_is_a_credential(read: Read, tmp_path: Path) -> None:
    file = tmp_path / "us"
    file.write_text("rk_test_us")

    found = read(
        STRIPE_API_KEY_EU="sk_test_eu",
        STRIPE_API_KEY_US_FILE=str(file),
        CUSTOMER_JOBS_STRIPE_API_KEY_NORTH_2="sk_test_north",
        STRIPE_API_KEY_EMPTY="",
        STRIPE_API_BASE="http://localhost:1",
    )

    keys = {name: key.get_secret_value() for name, key in found.stripe_api_keys.items()}
    assert keys == {"default": TEST_KEY, "eu": "sk_test_eu", "us": "rk_test_us", "north_2": "sk_test_north"}


def test_the_file_of_the_default_key_is_no_credential_of_that_name(read: Read, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(TEST_KEY)

    found = read(STRIPE_API_KEY=None, STRIPE_API_KEY_FILE=str(file))

    assert list(found.stripe_api_keys) == ["default"]


def test_one_key_of_any_name_is_enough(read: Read) -> None:
    assert list(read(STRIPE_API_KEY=None, STRIPE_API_KEY_EU="sk_test_eu").stripe_api_keys) == ["eu"]


def test_two_settings_for_one_credential_are_refused(read: Read) -> None:
    assert "set one of them" in complaint(read, STRIPE_API_KEY_DEFAULT="sk_test_other")


@pytest.mark.parametrize("name", ["STRIPE_API_KEY", "STRIPE_API_KEY_EU"])
def test_a_live_key_needs_a_word_of_consent(read: Read, name: str) -> None:
    said = complaint(read, **{name: LIVE_KEY})
    found = read(**{name: LIVE_KEY, "ALLOW_LIVE_MODE": "true"})

    assert said == f"{name} is a live key; to use it: export ALLOW_LIVE_MODE=true"
    assert found.is_live("eu" if name.endswith("EU") else "default")


def test_a_test_key_is_not_live(read: Read) -> None:
    assert not read(STRIPE_API_KEY="sk_test_in_live_disguise_live_").is_live("default")


@pytest.mark.parametrize("value", ["pk_test_51HxSecretSecret", "SecretSecret", "sk_test_", "sk_prod_51HxSecretSecret"])
def test_what_is_no_secret_key_is_refused_without_being_repeated(read: Read, value: str) -> None:
    assert complaint(read, STRIPE_API_KEY=value).startswith("STRIPE_API_KEY is not a secret or restricted key (")


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_setting_is_named_with_an_example(read: Read, name: str) -> None:
    said = complaint(read, **{name: None})

    assert said.startswith(f"{name} is not set; for example: export {name}=")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "hunter2"),
        ("DATABASE_URL", "mysql://shop:hunter2@localhost/shop"),
        ("DATABASE_URL", "postgresql+nonsense://shop:hunter2@localhost/shop"),
        ("REDIS_URL", "http://hunter2@localhost"),
        ("REDIS_URL", "unix:///run/redis.sock"),  # Celery has another name for it.
        ("REDIS_URL", "redis://:hunter2@[::1"),
        ("REDIS_URL", "redis://:hunter2@localhost:many/0"),
        ("REDIS_URL", "redis://:hunter2@localhost/0?nonsense=1"),
        ("REDIS_URL", "redis://:hunter2@localhost/0?socket_timeout=3"),  # Known to redis-py alone,
        ("REDIS_URL", "redis://:hunter2@localhost/0?heartbeat=3"),  # and to Celery alone.
        ("REDIS_URL", "rediss://:hunter2@localhost/0?ssl_cert_reqs=CERT_REQUIRED"),
        ("DATABASE_SCHEMA", "Shop Jobs"),
        ("STRIPE_API_BASE", "api.stripe.com"),
        ("STRIPE_API_BASE", "http://[::1"),
        ("STRIPE_API_BASE", "http://:12111"),
        ("STRIPE_API_BASE", "http://localhost:99999"),
        ("STRIPE_API_BASE", "http://localhost:12111/?account=eu"),
        ("ALLOW_LIVE_MODE", "perhaps"),
        ("RATE_LIMIT_CREATE", "0"),
        ("RATE_LIMIT_CREATE", "nan"),
        ("RATE_LIMIT_FETCH", "-1"),
        ("RATE_LIMIT_ACCOUNT", "many"),
        ("MAX_IN_FLIGHT", "0"),
        ("MAX_IN_FLIGHT", "1.5"),
        ("RETENTION_DAYS", "0"),
        ("RETENTION_DAYS", "inf"),
        ("LOG_LEVEL", "chatty"),
        ("ALLOW_BROKER_PAYLOADS", "2"),
    ],
)
def test_a_malformed_setting_is_named(read: Read, name: str, value: str) -> None:
    assert complaint(read, **{name: value}).startswith(name)


def test_everything_that_is_wrong_is_said_at_once(read: Read) -> None:
    said = complaint(
        read,
        DATABASE_URL="mysql://hunter2@localhost",
        REDIS_URL=None,
        STRIPE_API_KEY=LIVE_KEY,
        STRIPE_API_KEY_EU="pk_test_1",
        MAX_IN_FLIGHT="0",
        LOG_LEVEL="chatty",
    )

    for name in (
        "DATABASE_URL",
        "REDIS_URL",
        "STRIPE_API_KEY is",
        "STRIPE_API_KEY_EU is",
        "MAX_IN_FLIGHT",
        "LOG_LEVEL",
    ):
        assert said.count(name) >= 1, name


def test_secrets_are_not_shown(read: Read) -> None:
    found = read(STRIPE_API_KEY_EU=LIVE_KEY, ALLOW_LIVE_MODE="true")

    shown = f"{found!r} {found} {found.model_dump()} {found.model_dump_json()}"

    assert not any(secret in shown for secret in SECRETS)


def test_settings_do_not_change(read: Read) -> None:
    with pytest.raises(ValueError, match="frozen"):
        read().max_in_flight = 7  # type: ignore[misc]  # the point
