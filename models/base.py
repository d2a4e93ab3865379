"""The base of the mapped classes, which take over the tables of `customer_jobs.schema`."""

from sqlalchemy.orm import DeclarativeBase

from customer_jobs.schema import metadata


class Base(DeclarativeBase):
    metadata = metadata
