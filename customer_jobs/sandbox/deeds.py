"""What an endpoint does to the store and what it shows for it; every check but the store's has passed by now."""

from collections.abc import Callable

from customer_jobs.sandbox.calls import Work
from customer_jobs.sandbox.choosing import MAGIC_ID
from customer_jobs.sandbox.customers import Json, expanded
from customer_jobs.sandbox.forms import Params
from customer_jobs.sandbox.keys import Caller
from customer_jobs.sandbox.store import Store


def do(work: Work, params: Params, store: Store, publish: Callable[[Json, Caller], None]) -> Json:
    """The object that the endpoint answers with; params are the checked ones, publish takes the event of a change.

    Raises:
        Refusal: what the request names does not exist.
    """
    caller = work.caller
    account, mode = caller.acting_for, caller.mode
    expand = params.get("expand", [])
    match work.endpoint:
        case "create":
            item, event = store.create(account, mode, params, work.cause)
        case "update":
            item, event = store.update(account, mode, work.item_id, params, work.cause)
        case "delete":
            item, event = store.delete(account, mode, work.item_id, work.cause)
        case "retrieve":
            if work.item_id.startswith(MAGIC_ID):
                store.ensure(account, mode, work.item_id)
            return expanded(store.retrieve(account, mode, work.item_id), expand)
        case "list":
            page, more = store.list_customers(account, mode, params)
            return listed("/v1/customers", [expanded(item, expand) for item in page], has_more=more)
        case "events":
            page, more = store.list_events(account, mode, params)
            return listed("/v1/events", page, has_more=more)
        case "event":
            return store.event(account, mode, work.item_id)
        case "account":
            return account_object(account)
        case _:
            return {"object": "balance", "available": [], "livemode": caller.livemode, "pending": []}
    publish(event, caller)
    return expanded(item, expand)


def listed(url: str, page: list[Json], *, has_more: bool) -> Json:
    return {"object": "list", "data": page, "has_more": has_more, "url": url}


def account_object(account: str) -> Json:
    """The parts of an account that an application looks at.

    Source: https://docs.stripe.com/api/accounts/object
    """
    return {
        "id": account,
        "object": "account",
        "business_profile": {"name": account.removeprefix("acct_"), "url": None},
        "charges_enabled": True,
        "country": "US",
        "default_currency": "usd",
        "details_submitted": True,
        "email": None,
        "metadata": {},
        "payouts_enabled": True,
        "type": "standard",
    }
