"""What the dispatchers share: Stripe's limits, the lease of the one that leads, the workers that are alive."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Mapped

from customer_jobs import schema
from models.base import Base


class Lane(Base):
    __table__ = schema.lanes

    credential: Mapped[str]
    stripe_account: Mapped[str]
    kind: Mapped[str]
    tokens: Mapped[float]
    refilled_at: Mapped[datetime]
    rate: Mapped[float]
    paused_at: Mapped[datetime | None]
    reason: Mapped[str | None]


class Lease(Base):
    __table__ = schema.leases

    name: Mapped[str]
    holder: Mapped[str]
    expires_at: Mapped[datetime]


class Worker(Base):
    __table__ = schema.workers

    name: Mapped[str]
    slots: Mapped[int]
    seen_at: Mapped[datetime]
    version: Mapped[str]
