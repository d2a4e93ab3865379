"""With the bookkeeping in the handler's own transaction an event has its effect once, however often it comes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import redis
from sqlalchemy import Column, Connection, Engine, Integer, MetaData, String, Table, create_engine, func, insert, select
from sqlalchemy.orm import Session, sessionmaker

from customer_jobs import Event, EventConsumer
from customer_jobs.dead_letters import dead_letters
from customer_jobs.schema import consumed_events
from tests.builders import age, lead, rows
from tests.integration.test_consumer import pending, soon
from tests.outbox import publish
from worker.dispatcher.prune import Prune

effects = Table("effects", MetaData(), Column("id", Integer, primary_key=True), Column("event", String(36)))


@pytest.fixture
def app(database_url: str) -> Iterator[Engine]:
    """The app's own engine on the same database, set up as apps do, with a table of the app's."""
    made = create_engine(database_url)
    effects.metadata.create_all(made)
    yield made
    effects.metadata.drop_all(made)
    made.dispose()


@contextmanager
def running(consumer: EventConsumer, handler: Callable[..., object], once_in: Any) -> Iterator[None]:
    thread = threading.Thread(target=consumer.run, args=(handler,), kwargs={"once_in": once_in})
    thread.start()
    try:
        yield
    finally:
        consumer.stop()
        thread.join(10)
        assert not thread.is_alive()


def effect(event: Event, connection: Connection | Session) -> None:
    connection.execute(insert(effects).values(event=event.id))


def is_done(client: redis.Redis, stream: str, name: str) -> bool:
    """Whether the group has had everything and acknowledged it."""
    groups: Any = client.xinfo_groups(stream)
    return any(each["name"] == name and each["lag"] == each["pending"] == 0 for each in groups)


def effects_of(app: Engine) -> list[str]:
    with app.connect() as connection:
        return list(connection.execute(select(effects.c.event).order_by(effects.c.id)).scalars())


@pytest.mark.parametrize("by", ["engine", "sessions"])
def test_a_doubled_event_has_one_effect_for_each_group(
    app: Engine, engine: Engine, client: redis.Redis, redis_url: str, stream: str, by: str
) -> None:
    once_in: Any = app if by == "engine" else sessionmaker(app)
    published = publish(client, stream, 3)
    entries: Any = client.xrange(stream)
    for _, fields in entries:
        client.xadd(stream, fields)

    for group in ("billing", "audit"):
        consumer = EventConsumer(group, url=redis_url, stream=stream)
        with running(consumer, effect, once_in):
            soon(partial(is_done, client, stream, group))

    assert effects_of(app) == published * 2
    remembered = {(row["consumer_group"], row["source"], row["id"]) for row in rows(engine, consumed_events)}
    assert remembered == {(g, "/customer-jobs/default", each) for g in ("billing", "audit") for each in published}


def test_a_handler_that_fails_leaves_neither_effect_nor_memory(
    app: Engine, engine: Engine, client: redis.Redis, redis_url: str, stream: str
) -> None:
    bad, good = publish(client, stream, 2)

    def handler(event: Event, connection: Connection) -> None:
        effect(event, connection)
        if event.id == bad:
            connection.execute(insert(effects).values(id="not a number"))

    consumer = EventConsumer("billing", url=redis_url, stream=stream, max_deliveries=2, retry_seconds=0.01)
    with running(consumer, handler, app):
        soon(lambda: list(dead_letters(client, stream)) and pending(client, stream) == 0)

    assert effects_of(app) == [good]
    assert [row["id"] for row in rows(engine, consumed_events)] == [good]
    (letter,) = dead_letters(client, stream)
    assert letter.deliveries == 2


def test_two_who_handle_one_event_at_once_have_one_effect(
    app: Engine, client: redis.Redis, redis_url: str, stream: str
) -> None:
    (event_id,) = publish(client, stream)
    inside = threading.Barrier(2, timeout=5)

    def slow(event: Event, connection: Connection) -> None:
        effect(event, connection)
        inside.wait()  # The other has taken the event over by now.

    first = EventConsumer("billing", url=redis_url, stream=stream)
    second = EventConsumer("billing", url=redis_url, stream=stream, takeover_seconds=0.2)

    def other(event: Event, connection: Connection) -> None:
        effect(event, connection)

    with running(first, slow, app):
        soon(lambda: pending(client, stream) == 1)
        with running(second, other, app):
            soon(lambda: client.xpending_range(stream, "billing", "-", "+", 1)[0]["consumer"] == second.name)
            inside.wait()
            soon(lambda: pending(client, stream) == 0)

    assert effects_of(app) == [event_id]


def test_seen_is_for_loops(app: Engine, client: redis.Redis, redis_url: str, stream: str) -> None:
    first, second = publish(client, stream, 2)
    entries: Any = client.xrange(stream)
    client.xadd(stream, entries[0][1])
    consumer = EventConsumer("billing", url=redis_url, stream=stream)
    answers = []

    for event in consumer:
        with Session(app) as session, session.begin():
            seen = consumer.seen(event, session)
            answers.append((event.id, seen))
            if not seen:
                effect(event, session)
        if len(answers) == 3:
            consumer.stop()

    assert answers == [(first, False), (second, False), (first, True)]
    assert effects_of(app) == [first, second]


def test_a_database_that_is_away_uses_up_no_delivery(client: redis.Redis, redis_url: str, stream: str) -> None:
    publish(client, stream)
    nowhere = create_engine("postgresql+psycopg://app@127.0.0.1:1/none", connect_args={"connect_timeout": 1})
    tried: list[int] = []
    consumer = EventConsumer("billing", url=redis_url, stream=stream, max_deliveries=1)

    with running(consumer, lambda *_: tried.append(1), nowhere):
        soon(lambda: consumer._failures > 3)

    assert tried == []
    assert list(dead_letters(client, stream)) == []
    assert pending(client, stream) == 1


def test_what_was_remembered_is_forgotten_when_no_copy_can_come_any_more(
    engine: Engine, client: redis.Redis, stream: str
) -> None:
    with engine.begin() as connection:
        connection.execute(
            insert(consumed_events), [{"consumer_group": "g", "source": "s", "id": str(n)} for n in (1, 2)]
        )
    prune = Prune(engine, client, stream, 30, holder=lead(engine))
    age(engine, 60 * 86_400, consumed_events)
    kept = prune.run_once()
    age(engine, 2 * 86_400, consumed_events)
    removed = prune.run_once()

    assert (kept, removed) == (0, 2)
    with engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(consumed_events)).scalar_one() == 0
