"""What is known of a Stripe key, except the key."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Mapped

from customer_jobs import schema
from models.base import Base


class Credential(Base):
    __table__ = schema.credentials

    name: Mapped[str]
    livemode: Mapped[bool]
    account_id: Mapped[str | None]
    key_fingerprint: Mapped[str]
    paused_at: Mapped[datetime | None]
    reason: Mapped[str | None]
