"""Which account and mode a key stands for and what it may do; knows no customer.

A key is `<sk|rk>_<test|live>_<account>` or `<sk|rk>_<test|live>_<account>_<anything>`: two keys with the same account
part see the same customers, so rotating a key can be shown. The rest of the key says how it behaves: `expired`,
`revoked` or `invalid` in it are answered 401; a restricted key (`rk_`) with `noread`, `nowrite` or `noaccount` in it
lacks that permission.

Source: https://docs.stripe.com/keys and https://docs.stripe.com/connect/authentication
"""

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Literal

from customer_jobs.sandbox.refusals import Refusal

KEY = re.compile(r"(?P<kind>sk|rk)_(?P<mode>test|live)_(?P<account>[A-Za-z0-9]+)(?:_[A-Za-z0-9_]*)?")
ACCOUNT_ID = re.compile(r"acct_[A-Za-z0-9_]{1,64}")
#: How much of a key's end Stripe shows in its messages, in characters.
VISIBLE_END = 4

Mode = Literal["test", "live"]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the key's own account, the account acted for, and the mode."""

    account: str  #: `acct_…` of the key
    acting_for: str  #: `acct_…` whose customers are meant: the key's own or a connected one
    mode: Mode
    masked_key: str
    restricted: bool
    denied: frozenset[str]  #: restrictions found in a restricted key: noread, nowrite, noaccount

    @property
    def livemode(self) -> bool:
        return self.mode == "live"


def mask(key: str) -> str:
    """The key as Stripe shows it: its prefix, four stars and at most its last four characters."""
    prefix = re.match(r"(?:sk|rk|pk)_(?:test|live)_", key)
    start = prefix.group() if prefix else ""
    secret = key[len(start) :]
    return f"{start}****{secret[-VISIBLE_END:] if len(secret) > VISIBLE_END else ''}"


def bearer(authorization: str | None) -> str:
    """The key in an Authorization header, Bearer or Basic; empty when there is none."""
    scheme, _, rest = (authorization or "").strip().partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(rest, validate=True).decode().partition(":")[0]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""


def identify(key: str, stripe_account: str | None) -> Caller:
    """The caller behind a key and a Stripe-Account header.

    Raises:
        Refusal: 401 for a key that is missing, malformed, expired or revoked; 403 for an account out of its reach.
    """
    if not key:
        raise Refusal(
            401,
            "You did not provide an API key. You need to provide your API key in the Authorization header, using "
            "Bearer auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY'). See "
            "https://stripe.com/docs/api#authentication for details, or we can help at https://support.stripe.com/.",
        )
    masked = mask(key)
    parts = KEY.fullmatch(key)
    if parts is None or "revoked" in key or "invalid" in key:
        raise Refusal(401, f"Invalid API Key provided: {masked}")
    if "expired" in key:
        raise Refusal(401, f"Expired API Key provided: {masked}", code="api_key_expired")
    account = f"acct_{parts['account']}"
    acting_for = stripe_account or account
    if not ACCOUNT_ID.fullmatch(acting_for) or "denied" in acting_for or "unknown" in acting_for:
        raise no_access(masked, acting_for)
    restricted = parts["kind"] == "rk"
    denied = frozenset(word for word in ("noread", "nowrite", "noaccount") if restricted and word in key)
    mode: Mode = "live" if parts["mode"] == "live" else "test"
    return Caller(account, acting_for, mode, masked, restricted, denied)


def no_access(masked_key: str, account: str) -> Refusal:
    """403: the account is not connected, or does not exist; Stripe does not say which."""
    message = (
        f"The provided key '{masked_key}' does not have access to account '{account}' (or that account does not "
        "exist). Application access may have been revoked."
    )
    return Refusal(403, message, code="account_invalid")


def lacks_permission(caller: Caller, permission: str) -> Refusal:
    """403: a restricted key without the named permission."""
    message = (
        f"The provided key '{caller.masked_key}' does not have the required permissions for this endpoint on account "
        f"'{caller.acting_for}'. Having the '{permission}' permission would allow this request to continue."
    )
    return Refusal(403, message)
