"""A Django project as small as it gets, on the database of DATABASE_URL; tests vary it by the environment."""

from __future__ import annotations

import os
from typing import Any

from sqlalchemy import make_url

_url = make_url(os.environ["DATABASE_URL"])
_sqlite = _url.get_backend_name() == "sqlite"

SECRET_KEY = "of-no-use-outside-of-tests"
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "customer_jobs.django"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
USE_TZ = os.environ.get("USE_TZ", "1") == "1"
TIME_ZONE = "America/New_York"
DATABASES: dict[str, dict[str, Any]] = {
    "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": _url.database}
    if _sqlite
    else {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _url.database,
        "USER": _url.username,
        "HOST": _url.host,
        "PORT": _url.port,
        "TIME_ZONE": os.environ.get("DATABASE_TIME_ZONE"),
        "OPTIONS": {"server_side_binding": os.environ.get("SERVER_SIDE_BINDING") == "1"},
    }
}
if DATABASES["default"].get("TIME_ZONE") is None:
    DATABASES["default"].pop("TIME_ZONE", None)
