"""What an attempt sends to Stripe: made of a job's row at the first claim, read back from the row ever after; pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from customer_jobs.errors import InvalidJob
from customer_jobs.payload import (
    METADATA_EXTERNAL_ID,
    METADATA_JOB_ID,
    check_credential,
    check_external_id,
    check_payload,
    check_stripe_account,
)
from customer_jobs.vocabulary import Kind

KEY_PREFIX = "customer-jobs-"  #: Before the job's id: an idempotency key that nobody else on the account uses.


@dataclass(frozen=True)
class Request:
    """The call that an attempt makes."""

    kind: str
    params: Mapping[str, Any]
    credential: str
    stripe_account: str | None
    idempotency_key: str  #: Sent with a create; a fetch needs none.

    def frozen(self) -> str:
        """The parameters as the row keeps them."""
        return json.dumps(self.params, ensure_ascii=False)


def request_of(job: Mapping[str, Any]) -> Request:
    """The request of a job's row. Raises InvalidJob for a row that producers' checks would have refused."""
    creates = job["kind"] == Kind.CUSTOMER_CREATE
    if job["params"] is not None:
        params = _thawed(job["params"])
        if not creates:
            params = check_payload(job["kind"], params)
    else:
        payload = check_payload(job["kind"], job["payload"])
        params = _with_our_metadata(payload["body"], job) if creates else payload
    check_external_id(job["external_id"])
    return Request(
        kind=job["kind"],
        params=params,
        credential=check_credential(job["credential"]),
        stripe_account=check_stripe_account(job["stripe_account"] or None),
        idempotency_key=KEY_PREFIX + job["id"],
    )


def _with_our_metadata(body: Mapping[str, Any], job: Mapping[str, Any]) -> dict[str, Any]:
    ours = {METADATA_JOB_ID: job["id"]}
    if job["external_id"] is not None:
        ours[METADATA_EXTERNAL_ID] = job["external_id"]
    return {**body, "metadata": {**(body.get("metadata") or {}), **ours}}


def _thawed(params: str) -> dict[str, Any]:
    try:
        thawed = json.loads(params)
        # A lone surrogate, which JSON may hold, could neither be written down again nor sent.
        json.dumps(thawed, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidJob("params", f"is not JSON: {error}") from error
    if not isinstance(thawed, dict):
        raise InvalidJob("params", "is not a JSON object")
    return thawed
