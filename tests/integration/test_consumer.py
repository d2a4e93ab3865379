"""A consumer gets every event at least once, whatever happens to it, to others of its group or to Redis."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from customer_jobs import Event, EventConsumer, InvalidSetting, State, Unavailable
from customer_jobs.dead_letters import dead_letters
from customer_jobs.embedded import wait_until
from customer_jobs.stream import connect
from tests import servers
from tests.outbox import publish
from tests.proxy import Proxy

SOON_SECONDS = 10.0

Handler = Callable[[Event], object]


class Group:
    """Consumers of one group on one stream."""

    def __init__(self, url: str, stream: str) -> None:
        self.url = url
        self.stream = stream

    def consumer(self, **options: Any) -> EventConsumer:
        settings: dict[str, Any] = {"url": self.url, "stream": self.stream, "retry_seconds": 0.01} | options
        return EventConsumer(settings.pop("group", "billing"), **settings)

    @contextmanager
    def running(self, handler: Handler, **options: Any) -> Iterator[EventConsumer]:
        """A consumer that runs until the block ends."""
        consumer = self.consumer(**options)
        thread = threading.Thread(target=consumer.run, args=(handler,))
        thread.start()
        try:
            yield consumer
        finally:
            consumer.stop()
            thread.join(SOON_SECONDS)
            assert not thread.is_alive()

    def handled(self, count: int, **options: Any) -> list[str]:
        """The ids that a consumer handles until there are so many."""
        ids: list[str] = []
        with self.running(lambda event: ids.append(event.id), **options):
            soon(lambda: len(ids) >= count)
        return ids


@pytest.fixture
def group(redis_url: str, stream: str) -> Group:
    return Group(redis_url, stream)


def soon(condition: Callable[[], object]) -> None:
    wait_until(condition, SOON_SECONDS, "what was expected")


def pending(client: redis.Redis, stream: str, group: str = "billing") -> int:
    """How many events wait for their acknowledgement; -1 where there is no group yet."""
    try:
        summary: Any = client.xpending(stream, group)
    except redis.ResponseError:
        return -1
    return int(summary["pending"])


def take(consumer: EventConsumer, count: int) -> list[Event]:
    """The next events, acknowledged; the consumer has then been stopped."""
    taken = []
    for event in consumer:
        taken.append(event)
        if len(taken) == count:
            consumer.stop()
    return taken


@pytest.mark.parametrize("protocol", ["", "?protocol=2", "?protocol=3", "?protocol=3&legacy_responses=False"])
def test_a_new_group_gets_what_was_there_before_it(
    client: redis.Redis, redis_url: str, stream: str, protocol: str
) -> None:
    published = publish(client, stream, 3, customer_id="cus_1")

    taken = take(Group(redis_url + protocol, stream).consumer(), 3)

    assert [event.id for event in taken] == published
    assert (taken[0].type, taken[0].source) == ("customer_jobs.customer.create.succeeded", "/customer-jobs/default")
    assert taken[0].data["customer_id"] == "cus_1"
    assert taken[0].data["job_id"] == taken[0].subject
    assert Event.from_dict(taken[0].to_dict()) == taken[0]
    assert pending(client, stream) == 0


def test_a_group_may_begin_with_what_comes(client: redis.Redis, group: Group, stream: str) -> None:
    publish(client, stream)
    ids: list[str] = []

    with group.running(lambda event: ids.append(event.id), start="now"):
        soon(lambda: client.exists(stream) and client.xinfo_groups(stream))
        new = publish(client, stream)
        soon(lambda: ids)

    assert ids == new


def test_redis_and_stream_come_from_the_settings(
    client: redis.Redis, redis_url: str, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUSTOMER_JOBS_REDIS_URL", redis_url)
    monkeypatch.setenv("EVENT_STREAM", stream)
    published = publish(client, stream)

    assert [event.id for event in take(EventConsumer("billing"), 1)] == published


def test_without_a_redis_there_is_no_consumer() -> None:
    with pytest.raises(InvalidSetting, match="REDIS_URL"):
        EventConsumer("billing")


def test_a_consumer_is_named_after_its_host_and_process(group: Group) -> None:
    first, second = group.consumer(), group.consumer()

    assert f"-{os.getpid()}" in first.name
    assert first.name != second.name


def test_types_choose_and_the_rest_is_acknowledged(client: redis.Redis, group: Group, stream: str) -> None:
    publish(client, stream, kind="customer.fetch")
    failed = publish(client, stream, state=State.FAILED)
    created = publish(client, stream)

    taken = take(group.consumer(types=["customer.create.*", "customer_jobs.customer.fetch.failed"]), 2)

    assert [event.id for event in taken] == failed + created
    assert pending(client, stream) == 0
    with pytest.raises(TypeError, match="sequence"):
        group.consumer(types="customer.create.*")


def test_every_group_gets_every_event_and_members_share(client: redis.Redis, group: Group, stream: str) -> None:
    published = publish(client, stream, 20)
    first: list[str] = []
    second: list[str] = []

    with (
        group.running(lambda event: first.append(event.id)),
        group.running(lambda event: second.append(event.id)),
    ):
        soon(lambda: len(first) + len(second) == 20)

    assert sorted(first + second) == sorted(published)
    assert group.handled(20, group="audit") == published


def test_an_exception_in_the_body_leaves_the_event_for_later(client: redis.Redis, group: Group, stream: str) -> None:
    first, second = publish(client, stream, 2)
    consumer = group.consumer()
    with suppress(ZeroDivisionError):
        for _ in consumer:
            raise ZeroDivisionError

    assert pending(client, stream) == 1
    assert [event.id for event in take(consumer, 2)] == [first, second]


def test_break_leaves_the_event_and_continue_acknowledges_it(client: redis.Redis, group: Group, stream: str) -> None:
    first, second, third = publish(client, stream, 3)
    consumer = group.consumer()
    for event in consumer:
        if event.id == first:
            continue
        break

    assert pending(client, stream) == 1
    assert [event.id for event in take(consumer, 2)] == [second, third]


def test_what_a_dead_consumer_had_is_taken_over(client: redis.Redis, group: Group, stream: str) -> None:
    (event_id,) = publish(client, stream)
    for _ in group.consumer():
        break

    began = time.monotonic()
    assert group.handled(1, takeover_seconds=1.0) == [event_id]

    assert time.monotonic() - began > 0.5
    assert pending(client, stream) == 0


def test_a_failed_event_comes_again_and_others_come_meanwhile(client: redis.Redis, group: Group, stream: str) -> None:
    bad, good = publish(client, stream, 2)
    tried: list[str] = []

    def handler(event: Event) -> None:
        tried.append(event.id)
        if event.id == bad and tried.count(bad) < 3:
            raise ConnectionError

    with group.running(handler, retry_seconds=0.1):
        soon(lambda: len(tried) == 4)

    assert tried == [bad, good, bad, bad]
    assert pending(client, stream) == 0


def test_a_poisonous_event_ends_among_the_dead_letters_and_the_others_go_on(
    client: redis.Redis, group: Group, stream: str
) -> None:
    published = publish(client, stream, 10)
    tried: list[str] = []

    def handler(event: Event) -> None:
        tried.append(event.id)
        if event.id == published[3]:
            raise ValueError("jenny.rosen@example.com is no customer")

    with group.running(handler):
        soon(lambda: list(dead_letters(client, stream)))

    (letter,) = dead_letters(client, stream)
    assert tried.count(published[3]) == letter.deliveries == 5
    assert {event_id: tried.count(event_id) for event_id in published if event_id != published[3]} == dict.fromkeys(
        published[:3] + published[4:], 1
    )
    assert letter.event is not None
    assert (letter.event.id, letter.group) == (published[3], "billing")
    assert letter.error.startswith("ValueError at test_consumer.py:")
    assert "jenny" not in str(client.xrange(f"{stream}:dead"))
    assert pending(client, stream) == 0


def test_an_event_that_kills_its_consumers_ends_there_too_and_takes_no_other_along(
    client: redis.Redis, group: Group, stream: str
) -> None:
    bad, good = publish(client, stream, 2)
    for _ in range(2):
        for event in group.consumer(takeover_seconds=0.05, max_deliveries=2):
            assert event.id == bad
            break  # As far as Redis knows, its consumer is gone.
        time.sleep(0.06)

    assert group.handled(1, takeover_seconds=0.05, max_deliveries=2) == [good]

    (letter,) = dead_letters(client, stream)
    assert letter.event is not None
    assert letter.event.id == bad
    assert "never acknowledged" in letter.error


def test_what_is_no_event_ends_among_the_dead_letters_at_once(client: redis.Redis, group: Group, stream: str) -> None:
    for fields in ({"event": "{"}, {"other": "x"}, {"event": "[]"}, {"event": '{"id": 1}'}):
        client.xadd(stream, fields)  # type: ignore[arg-type]
    published = publish(client, stream)

    assert group.handled(1) == published
    assert [letter.error for letter in dead_letters(client, stream)] == ["not an event"] * 4


def test_an_outage_behind_the_handler_uses_up_no_delivery(client: redis.Redis, group: Group, stream: str) -> None:
    published = publish(client, stream, 2)
    tried: list[str] = []

    def handler(event: Event) -> None:
        tried.append(event.id)
        if len(tried) < 5:
            raise Unavailable("the database is away")

    with group.running(handler, max_deliveries=2):
        soon(lambda: len(tried) >= 6 and pending(client, stream) == 0)

    assert set(tried[-2:]) <= set(published)
    assert list(dead_letters(client, stream)) == []


def test_a_failure_is_logged_with_its_traceback(
    client: redis.Redis, group: Group, stream: str, caplog: pytest.LogCaptureFixture
) -> None:
    (event_id,) = publish(client, stream)

    def handler(_: Event) -> None:
        raise ValueError("the reason")

    with caplog.at_level(logging.WARNING), group.running(handler, max_deliveries=1):
        soon(lambda: list(dead_letters(client, stream)))

    assert event_id in caplog.text
    assert "ValueError: the reason" in caplog.text


def test_a_group_that_is_deleted_goes_on_where_it_was(client: redis.Redis, group: Group, stream: str) -> None:
    publish(client, stream, 3)
    ids: list[str] = []
    with group.running(lambda event: ids.append(event.id)):
        soon(lambda: len(ids) == 3)
        client.xgroup_destroy(stream, "billing")
        new = publish(client, stream)
        soon(lambda: new[0] in ids)


def test_redis_may_be_flushed(tmp_path: Path) -> None:
    with servers.start_redis(tmp_path) as server, connect(server.url) as client:
        first = publish(client, "s")
        ids: list[str] = []
        with Group(server.url, "s").running(lambda event: ids.append(event.id)):
            soon(lambda: ids == first)
            client.flushall()
            second = publish(client, "s")
            soon(lambda: ids == first + second)


def test_redis_may_be_restarted_hang_and_lose_everything(tmp_path: Path) -> None:
    with servers.start_redis(tmp_path) as server:
        ids: list[str] = []
        with Group(server.url, "s").running(lambda event: ids.append(event.id)), connect(server.url) as client:
            first = publish(client, "s")
            soon(lambda: ids == first)
            server.stop_immediately()
            server.start_again()
            second = publish(client, "s")
            soon(lambda: ids == first + second)
            server.hang()
            time.sleep(2.6)  # Longer than an answer may take.
            server.go_on()
            third = publish(client, "s")
            soon(lambda: ids == first + second + third)


def test_a_consumer_may_start_before_redis(tmp_path: Path) -> None:
    with servers.start_redis(tmp_path) as server:
        server.stop()
        ids: list[str] = []
        with Group(server.url, "s").running(lambda event: ids.append(event.id)):
            server.start_again()
            with connect(server.url) as client:
                published = publish(client, "s")
            soon(lambda: ids == published)


def test_an_acknowledgement_that_is_lost_is_made_up_for(client: redis.Redis, stream: str, redis_url: str) -> None:
    published = publish(client, stream, 2)
    ids: list[str] = []
    with Proxy.before(redis_url) as proxy:

        def handler(event: Event) -> None:
            ids.append(event.id)
            if len(ids) == 1:
                proxy.refuse()
                threading.Timer(0.3, proxy.accept).start()

        with Group(proxy.through(redis_url), stream).running(handler):
            soon(lambda: len(ids) >= 2 and pending(client, stream) == 0)

    assert ids == published


def test_waiting_for_news_is_no_outage_whatever_the_socket_timeout(
    client: redis.Redis, redis_url: str, stream: str, caplog: pytest.LogCaptureFixture
) -> None:
    ids: list[str] = []
    # Shorter than the consumer would like to wait, and long enough for a machine that is busy with other tests.
    with Group(f"{redis_url}?socket_timeout=0.9", stream).running(lambda event: ids.append(event.id)):
        time.sleep(3)
        published = publish(client, stream)
        soon(lambda: ids == published)

    assert caplog.text == ""


def test_stop_ends_a_consumer_that_waits_and_signs_it_off(client: redis.Redis, group: Group, stream: str) -> None:
    with group.running(lambda _: None) as consumer:
        soon(lambda: client.exists(stream) and any(each["consumers"] for each in client.xinfo_groups(stream)))
        began = time.monotonic()

    assert time.monotonic() - began < 1.5
    assert client.xinfo_consumers(stream, "billing") == []
    assert list(consumer) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_loop_after_the_event_in_hand(
    client: redis.Redis, group: Group, stream: str, number: signal.Signals
) -> None:
    first, second = publish(client, stream, 2)
    before = signal.getsignal(number)
    taken = []

    for event in group.consumer():
        os.kill(os.getpid(), number)
        taken.append(event.id)

    assert taken == [first]
    assert signal.getsignal(number) is before
    assert group.handled(1) == [second]


def test_an_app_that_handles_sigterm_itself_goes_on_doing_so(client: redis.Redis, group: Group, stream: str) -> None:
    publish(client, stream, 2)
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        consumer = group.consumer()
        for event in consumer:
            if not heard:
                os.kill(os.getpid(), signal.SIGTERM)
                continue
            assert event
            consumer.stop()
    finally:
        signal.signal(signal.SIGTERM, before)

    assert heard == [signal.SIGTERM]


def test_ctrl_c_twice_does_not_wait_for_the_body(client: redis.Redis, group: Group, stream: str) -> None:
    publish(client, stream)

    with suppress(KeyboardInterrupt):
        for _ in group.consumer():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("the second one should have interrupted")

    assert pending(client, stream) == 1
