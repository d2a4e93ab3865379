"""What `customer-jobs doctor` asks beside database and Redis: settings, keys, Stripe; it writes nothing there."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Mapping
from functools import partial

from sqlalchemy import Engine, select

from customer_jobs import doctor
from customer_jobs.checks import Check, at_once, fail, is_good, ok, out_of_reach, warn
from customer_jobs.database import database_url, open_engine, reading
from customer_jobs.environment import PREFIX, key_settings, spelling_of
from customer_jobs.errors import InvalidSetting
from customer_jobs.producer import max_attempts
from customer_jobs.schema import credentials
from customer_jobs.stream import connect, redis_url
from customer_jobs.webhooks.secrets import SECRET, webhook_secrets
from worker.answers import Answered, KeyRefused, Rejected
from worker.gateway import Gateway
from worker.settings import ACCOUNT_LIMIT_PER_SECOND, ENDPOINT_LIMIT_PER_SECOND, Settings, settings

DEADLINE_SECONDS = 20.0  #: Each part asks for itself; none may keep the others' answers.
STRIPE_SECONDS = 8.0  #: Given to each of the two questions about a key.
STRIPES_OWN = "https://api.stripe.com"

#: Older versions lose messages or task events. Source: https://github.com/celery/celery/issues
OLDEST = {"celery": (5, 7), "kombu": (5, 7)}

FLOWERS = ("FLOWER_BASIC_AUTH", "FLOWER_AUTH")  #: Either keeps strangers out. Source: Flower's own documentation


def examine() -> list[Check]:
    """Every check, in the order in which a person would mend them."""
    found, valid = _settings()
    parts: dict[str, Callable[[], list[Check]]] = {"database": _database, "redis": _redis}
    if valid is not None:
        parts["stripe"] = lambda: _stripe(valid)
    answers = at_once({name: partial(_or_nothing, part) for name, part in parts.items()}, seconds=DEADLINE_SECONDS)
    for name, answer in answers.items():
        if isinstance(answer, TimeoutError):
            found.append(out_of_reach(name, answer))
        elif isinstance(answer, Exception):
            raise answer
        else:
            found += answer
    if valid is not None:
        found += [_mode(valid), *_limits(valid)]
    return [*found, _webhooks(valid), *_versions(), _flower()]


def _or_nothing(part: Callable[[], list[Check]]) -> list[Check]:
    """A part whose setting is missing, which has been said already, finds nothing."""
    try:
        return part()
    except InvalidSetting:
        return []


def _settings(environ: Mapping[str, str] = os.environ) -> tuple[list[Check], Settings | None]:
    valid, problems = None, []
    try:
        valid = settings()
    except InvalidSetting as error:
        problems.append(str(error))
    try:
        max_attempts()
    except InvalidSetting as error:
        problems.append(str(error))
    names = {name.upper() for name in Settings.model_fields} - {"STRIPE_API_KEYS"} | {"MAX_ATTEMPTS", SECRET}
    names |= _names_of_keys(environ)
    spellings = sorted(filter(None, (spelling_of(name) for name in names)))
    # Never a value: some are secrets, and this is pasted into tickets.
    found = [ok("settings", f"set are {', '.join(spellings)}")]
    if problems:
        found = [fail("settings", "; ".join(problems), "set them for every worker, as docs/settings.md says")]
    ours = {spelling for name in names for spelling in (PREFIX + name, f"{PREFIX}{name}_FILE")}
    unknown = [
        name
        for name in environ
        if name.startswith(PREFIX) and name not in ours and not name.startswith(PREFIX + SECRET)
    ]
    if unknown:
        found.append(warn("unknown", f"nothing reads {', '.join(sorted(unknown))}", "correct the name, or unset it"))
    return found, valid


def _names_of_keys(environ: Mapping[str, str]) -> set[str]:
    try:
        return set(key_settings(environ).values())
    except InvalidSetting:  # Two name one credential, which has been said.
        return {name.removeprefix(PREFIX).removesuffix("_FILE") for name in environ if "STRIPE_API_KEY" in name}


def _database() -> list[Check]:
    engine = open_engine(database_url())
    try:
        found = doctor.guarded("database", lambda: doctor.of_database(engine))
        return found + doctor.guarded("database", lambda: _known_keys(engine)) if is_good(found) else found
    finally:
        engine.dispose()


def _known_keys(engine: Engine) -> list[Check]:
    """Whether each key is of the mode that its name stands for in this database, and which credentials are paused."""
    try:
        keys = settings()
    except InvalidSetting:
        return []
    with reading(engine) as transaction:
        rows = {row["name"]: row for row in transaction.rows(select(*credentials.c))}
    found = []
    for name in sorted(keys.stripe_api_keys):
        row = rows.get(name)
        if row is None:
            continue
        if row["livemode"] != keys.is_live(name):
            was = "live" if row["livemode"] else "test"
            remedy = f"use a {was} key, or give this one a name of its own: STRIPE_API_KEY_<NAME>"
            found.append(fail(_of(name), f"in this database {name!r} stands for a {was} key", remedy))
        if row["paused_at"] is not None:
            remedy = f"mend it, then: customer-jobs limits resume {name}"
            found.append(warn(_of(name), f"{name!r} is paused: {row['reason'] or 'by hand'}", remedy))
    return found


def _redis() -> list[Check]:
    with connect(redis_url()) as client:
        return doctor.of_redis(client)


def _stripe(valid: Settings) -> list[Check]:
    gateway = Gateway(valid, read_timeout_seconds=STRIPE_SECONDS)
    try:
        found = [check for name in sorted(valid.stripe_api_keys) for check in _key(gateway, valid, name)]
    finally:
        gateway.close()
    if valid.stripe_api_base.rstrip("/") != STRIPES_OWN:
        remedy = "unset STRIPE_API_BASE before production: no customer is made at Stripe"
        found.append(warn("stripe", f"STRIPE_API_BASE names a stand-in: {valid.stripe_api_base}", remedy))
    return found


def _key(gateway: Gateway, valid: Settings, name: str) -> list[Check]:
    """Whether a key is valid, whose it is, and whether it may read customers. Reading one page changes nothing."""
    mode = "live" if valid.is_live(name) else "test"
    restricted = valid.stripe_api_keys[name].get_secret_value().startswith("rk_")
    kind = f"{'restricted' if restricted else 'secret'} key, {mode} mode"
    answer = gateway.list_customers({"limit": 1}, credential=name, stripe_account=None)
    match answer:
        case Answered():
            pass
        case KeyRefused(problem) | Rejected(problem):
            remedy = "give the key read and write permission for customers"
            if problem.http_status == 401:
                remedy = "set a valid key, and start the workers anew"
            return [fail(_of(name), f"{kind}: {problem.http_status} {problem.message}", remedy)]
        case _:
            return [out_of_reach(_of(name), TimeoutError(f"{kind}: Stripe does not answer: {answer.problem.message}"))]
    accounts = {each.credential: each.account_id for each in gateway.keys()}  # noqa: SIM118 - no mapping
    said = f"{kind}, account {accounts[name] or 'not told to this key'}, reads customers"
    if restricted:
        # Only a create would tell, and this command makes no customer.
        return [ok(_of(name), f"{said}; whether it may write them shows with the first create")]
    remedy = "a restricted key with read and write permission for customers is enough"
    return [ok(_of(name), said) if mode == "test" else warn(_of(name), f"{said}, and all else", remedy)]


def _mode(valid: Settings) -> Check:
    live = sorted(name for name in valid.stripe_api_keys if valid.is_live(name))
    if live:
        return ok("mode", f"live keys are allowed and used: {', '.join(live)}")
    if valid.allow_live_mode:
        return warn("mode", "ALLOW_LIVE_MODE is set without a live key", "unset it: it guards against one by accident")
    return ok("mode", "test keys only; a live key would be refused")


def _limits(valid: Settings) -> list[Check]:
    found = []
    for name, rate in (("RATE_LIMIT_CREATE", valid.rate_limit_create), ("RATE_LIMIT_FETCH", valid.rate_limit_fetch)):
        if rate > ENDPOINT_LIMIT_PER_SECOND:
            detail = f"{name} is {rate:g}/s, above Stripe's {ENDPOINT_LIMIT_PER_SECOND:g}/s for an endpoint"
            found.append(warn("limits", detail, "lower it, unless Stripe has granted you more"))
    most = min(ACCOUNT_LIMIT_PER_SECOND[valid.is_live(name)] for name in valid.stripe_api_keys)
    if valid.rate_limit_account is not None and valid.rate_limit_account > most:
        detail = f"RATE_LIMIT_ACCOUNT is {valid.rate_limit_account:g}/s, above Stripe's {most:g}/s"
        found.append(warn("limits", detail, "lower it, unless Stripe has granted you more"))
    return found or [ok("limits", "within what Stripe allows")]


def _webhooks(valid: Settings | None, environ: Mapping[str, str] = os.environ) -> Check:
    if not any(value.strip() for name, value in environ.items() if name.removeprefix(PREFIX).startswith(SECRET)):
        return ok("webhooks", "no signing secret here: no events of Stripe's are taken in")
    try:
        found = webhook_secrets()
    except InvalidSetting as error:
        return fail("webhooks", str(error), "copy the signing secret from Stripe's dashboard")
    if valid is not None and (strangers := sorted(found.keys() - valid.stripe_api_keys.keys())):
        remedy = "set its key as well: the fetches that its events start need it"
        return warn("webhooks", f"{strangers[0]!r} has a signing secret and no key here", remedy)
    return ok("webhooks", f"signing secrets for {', '.join(sorted(found))}")


def _versions() -> list[Check]:
    found = []
    for name, oldest in OLDEST.items():
        version = importlib.metadata.version(name)
        if tuple(int(part) for part in version.split(".")[:2]) < oldest:
            found.append(fail("versions", f"{name} {version}", f"install what requirements.lock has of {name}"))
    names = ("celery", "kombu", "redis", "stripe", "sqlalchemy")
    listed = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    return found or [ok("versions", listed)]


def _flower(environ: Mapping[str, str] = os.environ) -> Check:
    if any(environ.get(name) for name in FLOWERS):
        return ok("flower", "asks for a password")
    return warn(
        "flower",
        "no password for Flower is set here",
        "set FLOWER_BASIC_AUTH=user:password, or give --basic-auth, where Flower can be reached by others",
    )


def _of(credential: str) -> str:
    return f"key {credential}"
