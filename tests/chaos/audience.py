"""Apps that consume completion events in groups of their own, through whatever happens to Redis and the database."""

from __future__ import annotations

import threading
from typing import Any

from sqlalchemy import Column, Connection, MetaData, String, Table, insert, select

from customer_jobs import Event, EventConsumer
from customer_jobs.database import open_engine
from tests.chaos.site import Site

Json = dict[str, Any]

#: An app's own table: what it did about each event, in the transaction that `once_in` gives it.
DONE = Table("done", MetaData(), Column("event_id", String, nullable=False))


class Listener:
    """A member of a group that handles each event at least once, in a thread."""

    def __init__(self, site: Site, group: str = "listener") -> None:
        self.engine = open_engine(site.database_url)  # Through the proxy, like Redis.
        self.events: list[Json] = []
        self.error: BaseException | None = None
        self.consumer = EventConsumer(group, url=site.redis_url, engine=self.engine)
        self._thread = threading.Thread(target=self._run, name=group)

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.consumer.stop()
        self._thread.join()
        self.engine.dispose()

    @property
    def heard(self) -> set[str]:
        """The ids of the events that arrived."""
        return {event["id"] for event in list(self.events)}

    def _run(self) -> None:
        try:
            self.consume()
        except BaseException as error:
            self.error = error
            raise

    def consume(self) -> None:
        self.consumer.run(lambda event: self.events.append(event.to_dict()))


class OnceOnly(Listener):
    """The same with `once_in`: what it writes about an event is there once, however often the event comes."""

    def __init__(self, site: Site) -> None:
        super().__init__(site, "once-only")
        DONE.create(site.engine)

    def consume(self) -> None:
        self.consumer.run(self._do, once_in=self.engine)

    def _do(self, event: Event, connection: Connection) -> None:
        connection.execute(insert(DONE).values(event_id=event.id))
        self.events.append(event.to_dict())


def done(site: Site) -> list[str]:
    """The id of each event, as often as it was handled once."""
    with site.engine.begin() as connection:
        return list(connection.scalars(select(DONE.c.event_id)))
