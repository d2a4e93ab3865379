"""How a setting is read from the environment, for producers and workers alike; what it means is said elsewhere."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from customer_jobs.errors import InvalidSetting

PREFIX = "CUSTOMER_JOBS_"  #: `CUSTOMER_JOBS_DATABASE_URL` wins over an app's own `DATABASE_URL`.


def setting(name: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """The value of a setting, or None where it is unset or empty.

    Looked up in this order: `CUSTOMER_JOBS_<NAME>`, `CUSTOMER_JOBS_<NAME>_FILE`, `<NAME>`, `<NAME>_FILE`. A `_FILE`
    names a file that holds the value, as container platforms mount secrets.
    """
    for spelling in (PREFIX + name, name):
        if value := environ.get(spelling, "").strip():
            return value
        if path := environ.get(f"{spelling}_FILE", "").strip():
            return _contents(f"{spelling}_FILE", Path(path))
    return None


def _contents(spelling: str, path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InvalidSetting(f"{spelling}: cannot read {str(path)!r}: {reason}") from error
