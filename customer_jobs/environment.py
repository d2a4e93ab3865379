"""How a setting is read from the environment, for producers and workers alike; what it means is said elsewhere."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from customer_jobs.errors import InvalidSetting

_KEY_SETTING = re.compile(r"(CUSTOMER_JOBS_)?STRIPE_API_KEY(?P<suffix>_(?!FILE$)[A-Z0-9_]+?)?(_FILE)?")
PREFIX = "CUSTOMER_JOBS_"  #: `CUSTOMER_JOBS_DATABASE_URL` wins over an app's own `DATABASE_URL`.


def setting(name: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """The value of a setting, or None where it is unset or empty.

    Looked up in this order: `CUSTOMER_JOBS_<NAME>`, `CUSTOMER_JOBS_<NAME>_FILE`, `<NAME>`, `<NAME>_FILE`. A `_FILE`
    names a file that holds the value, as container platforms mount secrets.
    """
    spelling = spelling_of(name, environ)
    if spelling is None:
        return None
    value = environ[spelling].strip()
    return _contents(spelling, Path(value)) if spelling.endswith("_FILE") else value


def spelling_of(name: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """The variable that a setting is read from, or None where it is unset or empty."""
    spellings = (PREFIX + name, f"{PREFIX}{name}_FILE", name, f"{name}_FILE")
    return next((spelling for spelling in spellings if environ.get(spelling, "").strip()), None)


def key_settings(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The settings that hold Stripe keys, by credential: STRIPE_API_KEY is `default`, STRIPE_API_KEY_EU is `eu`."""
    matches = (_KEY_SETTING.fullmatch(name) for name in environ)
    suffixes = {match["suffix"] or "" for match in matches if match}
    if {"", "_DEFAULT"} <= suffixes:
        raise InvalidSetting("STRIPE_API_KEY and STRIPE_API_KEY_DEFAULT name the same credential; set one of them")
    return {suffix.lstrip("_").lower() or "default": f"STRIPE_API_KEY{suffix}" for suffix in sorted(suffixes)}


def _contents(spelling: str, path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InvalidSetting(f"{spelling}: cannot read {str(path)!r}: {reason}") from error
