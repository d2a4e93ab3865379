"""An outbox event."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy.orm import Mapped

from customer_jobs import schema
from models.base import Base


class Event(Base):
    __table__ = schema.events

    seq: Mapped[int]
    id: Mapped[str]
    type: Mapped[str]
    subject: Mapped[str]
    data: Mapped[Any]
    created_at: Mapped[datetime]
    published_at: Mapped[datetime | None]
