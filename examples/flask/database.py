"""The app's own table, in the database that the jobs are in, and what all of the app shares."""

from __future__ import annotations

import os

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from customer_jobs import CustomerJobs

engine = create_engine(os.environ["DATABASE_URL"])
jobs = CustomerJobs(engine)


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    stripe_customer_id: Mapped[str | None]  #: Written by the consumer.


Base.metadata.create_all(engine)
