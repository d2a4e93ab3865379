"""The worker's settings: one frozen class, every field with its unit, default and reason; checked at start."""

from __future__ import annotations

import re
from functools import cache
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from customer_jobs.broker import require_understood
from customer_jobs.database import parse_url
from customer_jobs.environment import key_settings, setting
from customer_jobs.errors import InvalidSetting
from customer_jobs.events import DEFAULT_STREAM
from customer_jobs.schema import SCHEMA
from customer_jobs.stream import connect

_KEY = re.compile(r"(sk|rk)_(?P<mode>test|live)_[A-Za-z0-9_]+")  # Source: https://docs.stripe.com/keys
#: What Stripe allows. Source: https://docs.stripe.com/rate-limits
ENDPOINT_LIMIT_PER_SECOND = 25
ACCOUNT_LIMIT_PER_SECOND = {True: 100, False: 25}  #: By livemode.
REDIS_SCHEMES = ("redis://", "rediss://")

PerSecond = Annotated[float, Field(gt=0, le=100_000)]

#: What to do about a required setting that is missing.
_EXAMPLES = {
    "DATABASE_URL": "export DATABASE_URL=postgresql://user:password@localhost/app",
    "REDIS_URL": "export REDIS_URL=redis://localhost:6379/0",
    "STRIPE_API_KEY": "export STRIPE_API_KEY=sk_test_…",
}


class Settings(BaseSettings):
    """Read from the environment: `CUSTOMER_JOBS_<NAME>`, else `<NAME>`; `<NAME>_FILE` names a file that holds it."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    database_url: SecretStr  #: PostgreSQL or SQLite; holds a password.
    database_schema: str = Field(SCHEMA, pattern=r"^[a-z_][a-z0-9_]{0,62}$")  #: Of our tables, on PostgreSQL.
    redis_url: SecretStr  #: Broker and event stream; may hold a password.
    allow_live_mode: bool = False  #: A live key by accident moves real money's customers.
    stripe_api_keys: dict[str, SecretStr]  #: STRIPE_API_KEY is the credential `default`, STRIPE_API_KEY_EU is `eu`.
    stripe_api_base: str = Field("https://api.stripe.com", pattern=r"^https?://\S+$")  #: A stand-in for tests.
    rate_limit_create: PerSecond = ENDPOINT_LIMIT_PER_SECOND  #: Calls per second.
    rate_limit_fetch: PerSecond = ENDPOINT_LIMIT_PER_SECOND  #: Calls per second, likewise.
    rate_limit_account: PerSecond | None = None  #: Calls per second; Stripe's 100 with a live key, 25 with a test key.
    max_in_flight: int = Field(1000, ge=1)  #: Jobs dispatched or running at once, over all workers.
    retention_days: float = Field(30, gt=0, le=36_500)  #: Final jobs and published events are kept this long.
    event_stream: str = Field(DEFAULT_STREAM, min_length=1)  #: The Redis Stream of completion events.
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    allow_broker_payloads: bool = False  #: Creates by broker carry personal data through it.

    @field_validator("database_url")
    @classmethod
    def _is_a_database(cls, value: SecretStr) -> SecretStr:
        try:
            parse_url(value.get_secret_value())
        except InvalidSetting as error:
            # Of the errors raised here, pydantic collects only ValueErrors.
            raise ValueError(str(error)) from None
        return value

    @field_validator("redis_url")
    @classmethod
    def _is_a_redis(cls, value: SecretStr) -> SecretStr:
        try:
            require_redis(value.get_secret_value())
        except InvalidSetting as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("stripe_api_base")
    @classmethod
    def _is_a_base(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            is_one = parts.hostname and parts.port != 0 and not (parts.query or parts.fragment)
        except ValueError:
            is_one = False
        if not is_one:
            raise ValueError("must be a URL such as http://127.0.0.1:12111")
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _in_capitals(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @field_validator("stripe_api_keys")
    @classmethod
    def _keys_are_allowed(cls, keys: dict[str, SecretStr], info: ValidationInfo) -> dict[str, SecretStr]:
        problems = []
        for name, key in keys.items():
            variable = "STRIPE_API_KEY" if name == "default" else f"STRIPE_API_KEY_{name.upper()}"
            match = _KEY.fullmatch(key.get_secret_value())
            if match is None:
                problems.append(
                    f"{variable} is not a secret or restricted key (sk_test_…, rk_test_…, sk_live_…, rk_live_…)"
                )
            elif match["mode"] == "live" and info.data.get("allow_live_mode") is False:
                problems.append(f"{variable} is a live key; to use it: export ALLOW_LIVE_MODE=true")
        if problems:
            raise ValueError("; ".join(problems))
        return keys

    def is_live(self, credential: str) -> bool:
        """Whether the key of a credential works on live data."""
        return "_live_" in self.stripe_api_keys[credential].get_secret_value()[:8]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic's signature
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic's signature
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _Environment(settings_cls)


class _Environment(PydanticBaseSettingsSource):
    """The spellings of `customer_jobs.environment`, and one credential for each STRIPE_API_KEY…."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002 - pydantic's signature
        return setting(field_name.upper()), field_name, False

    def __call__(self) -> dict[str, Any]:
        values = {name: setting(name.upper()) for name in self.settings_cls.model_fields}
        values["stripe_api_keys"] = _stripe_keys() or None  # type: ignore[assignment]
        return {name: value for name, value in values.items() if value is not None}


def _stripe_keys() -> dict[str, str]:
    keys = {credential: setting(name) for credential, name in key_settings().items()}
    return {name: key for name, key in keys.items() if key is not None}


def require_redis(url: str) -> None:
    """Return if both the event stream and Celery can use this URL of a Redis; raises InvalidSetting."""
    if not url.startswith(REDIS_SCHEMES):
        raise InvalidSetting(f"REDIS_URL must begin with {', '.join(REDIS_SCHEMES)}")
    connect(url).close()
    require_understood(url)


@cache
def settings() -> Settings:
    """The settings of this process, read once. Raises InvalidSetting, which names them all and how to set them."""
    try:
        return Settings()
    except ValidationError as error:
        raise InvalidSetting("; ".join(_sentence(problem) for problem in error.errors())) from None


def _sentence(problem: Any) -> str:
    name = "STRIPE_API_KEY" if problem["loc"][0] == "stripe_api_keys" else str(problem["loc"][0]).upper()
    if problem["type"] == "missing":
        return f"{name} is not set; for example: {_EXAMPLES[name]}"
    text = str(problem["msg"]).removeprefix("Value error, ")
    return text if name in text else f"{name}: {text[:1].lower()}{text[1:]}"
