"""The signing secrets in the environment: one name for each credential that has an endpoint."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from customer_jobs.environment import PREFIX, setting
from customer_jobs.errors import InvalidSetting

SECRET, KEY = "STRIPE_WEBHOOK_SECRET", "STRIPE_API_KEY"

_SETTING = re.compile(rf"({PREFIX})?{SECRET}(?P<suffix>_(?!FILE$)[A-Z0-9_]+?)?(_FILE)?")
_WHSEC = re.compile(r"whsec_\S+")  # Source: https://docs.stripe.com/webhooks#verify-official-libraries


def webhook_secrets(environ: Mapping[str, str] = os.environ) -> dict[str, tuple[str, ...]]:
    """The secrets of each credential: STRIPE_WEBHOOK_SECRET is `default`, STRIPE_WEBHOOK_SECRET_EU is `eu`.

    Several, separated by commas, while one is rolled. Raises InvalidSetting if there is none, or one is no secret.
    """
    matches = (_SETTING.fullmatch(name) for name in environ)
    suffixes = sorted({match["suffix"] or "" for match in matches if match})
    if {"", "_DEFAULT"} <= set(suffixes):
        raise InvalidSetting(f"{SECRET} and {SECRET}_DEFAULT name the same credential; set one of them")
    found = {}
    for suffix in suffixes:
        if (value := setting(SECRET + suffix, environ)) is not None:
            secrets = found[suffix.lstrip("_").lower() or "default"] = split_secrets(value)
            if not secrets or not all(map(_WHSEC.fullmatch, secrets)):
                raise InvalidSetting(
                    f"{SECRET}{suffix} is not a signing secret (whsec_…), nor several with commas between"
                )
    if not found:
        raise InvalidSetting(
            f"{SECRET} is not set; Stripe shows it beside the endpoint, and `stripe listen` prints one: "
            f"export {SECRET}=whsec_…"
        )
    return found


def split_secrets(value: str) -> tuple[str, ...]:
    """The secrets in a setting's value."""
    return tuple(filter(None, (each.strip() for each in value.split(","))))


def api_key(credential: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """The Stripe key of a credential, where the environment has it."""
    named = setting(f"{KEY}_{credential.upper()}", environ)
    return named or setting(KEY, environ) if credential == "default" else named


def key_is_live(credential: str, environ: Mapping[str, str] = os.environ) -> bool | None:
    """Whether the key in the environment works on live data; None where there is none."""
    key = api_key(credential, environ)
    return None if key is None else "_live_" in key[:8]
