"""The sandbox's store: paging that agrees with the plain definition of a list."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from customer_jobs.sandbox.store import Shelf, Store
from tests.unit.sandbox_client import Clock

items = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["a@x.de", "b@x.de", None]), st.booleans()), max_size=25)
bounds = st.dictionaries(st.sampled_from(["gt", "gte", "lt", "lte"]), st.integers(0, 30))


def filled(described: list[tuple[int, str | None, bool]]) -> tuple[Shelf, list[dict[str, Any]]]:
    """A shelf, and what is left on it, newest first."""
    shelf, created = Shelf(), 0
    left: list[dict[str, Any]] = []
    for number, (later, email, gone) in enumerate(described):
        created += later
        item: dict[str, Any] = {"id": f"cus_{number}", "created": created, "email": email}
        shelf.add(item)
        if gone:
            shelf.remove(item["id"])
        else:
            left.insert(0, item)
    return shelf, left


def within(created: int, ranges: dict[str, int]) -> bool:
    tests = {"gt": int.__gt__, "gte": int.__ge__, "lt": int.__lt__, "lte": int.__le__}
    return all(tests[name](created, bound) for name, bound in ranges.items())


@given(items, bounds, st.sampled_from(["a@x.de", None]), st.integers(1, 5))
def test_pages_put_together_are_the_whole_list_in_both_directions(
    described: list[tuple[int, str | None, bool]], ranges: dict[str, int], email: str | None, limit: int
) -> None:
    shelf, left = filled(described)
    wanted = [item for item in left if within(item["created"], ranges) and email in (None, item["email"])]
    params: dict[str, Any] = {"created": ranges, "limit": limit} | ({"email": email} if email else {})

    page, more = shelf.page(params)
    forwards = list(page)
    while more:
        page, more = shelf.page(params | {"starting_after": forwards[-1]["id"]})
        forwards += page
    backwards: list[dict[str, Any]] = []
    more = bool(wanted)
    while more:
        before = backwards[0]["id"] if backwards else None
        page, more = shelf.page(params | {"ending_before": before}) if before else ([wanted[-1]], len(wanted) > 1)
        backwards = page + backwards

    assert forwards == wanted
    assert backwards == wanted


def test_an_event_keeps_the_customer_as_it_was() -> None:
    store = Store(Clock())
    customer, created = store.create("acct_shop", "test", {"name": "A"}, {})

    _, updated = store.update("acct_shop", "test", customer["id"], {"name": "B"}, {})

    assert created["data"]["object"]["name"] == "A"
    assert updated["data"]["object"]["name"] == "B"
    assert updated["data"]["previous_attributes"] == {"name": "A"}
