"""A shop in FastAPI: whoever signs up becomes a user here and a customer at Stripe."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel
from sqlalchemy import make_url
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from customer_jobs import CustomerJobs, InvalidJob, Job
from customer_jobs.webhooks import InvalidEvent, InvalidSignature, WebhookReceiver, webhook_secrets

url = make_url(os.environ["DATABASE_URL"])
engine = create_async_engine(url.set(drivername="sqlite+aiosqlite") if url.get_backend_name() == "sqlite" else url)
jobs = CustomerJobs()  # what it does with session= needs no connection of its own


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    stripe_customer_id: Mapped[str | None]  #: Written by the consumer.


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


class SignUp(BaseModel):
    email: str


class Shown(BaseModel):
    id: int
    email: str
    stripe_customer_id: str | None
    job: str
    outcome: str | None
    remedy: str | None


@app.get("/", response_class=FileResponse)
async def page() -> Path:
    return Path(__file__).with_name("page.html")


@app.post("/users", status_code=201)
async def sign_up(wanted: SignUp) -> Shown:
    try:
        # User and job are committed together, or neither is.
        async with AsyncSession(engine) as session, session.begin():
            user = User(email=wanted.email.strip())
            session.add(user)
            await session.flush()
            body, mine = {"email": user.email}, f"user-{user.id}"
            job = await session.run_sync(lambda s: jobs.create_customer(body, external_id=mine, session=s))
            return shown(user, job)
    except (IntegrityError, InvalidJob) as error:
        raise HTTPException(409, "this address cannot be used, or is taken") from error


@app.get("/users/{user_id}")
async def show(user_id: int) -> Shown:
    async with AsyncSession(engine) as session:
        user = await session.get(User, user_id)
        if user is None:
            raise HTTPException(404)
        (job,) = await session.run_sync(lambda s: jobs.list(external_id=f"user-{user_id}", limit=1, session=s))
        return shown(user, job)


@cache
def receiver() -> WebhookReceiver:
    return WebhookReceiver(jobs, webhook_secrets()["default"])


@app.post("/webhooks/stripe")
async def stripe_event(request: Request) -> dict[str, str | None]:
    body, signature = await request.body(), request.headers.get("Stripe-Signature", "")
    try:
        # Stripe is told 200 once both are committed: the event, and the fetch that it causes.
        async with AsyncSession(engine) as session, session.begin():
            receipt = await session.run_sync(lambda s: receiver().receive(body, signature, session=s))
    except (InvalidSignature, InvalidEvent) as error:
        raise HTTPException(400, str(error)) from error
    return {"job_id": receipt.job_id}


def shown(user: User, job: Job) -> Shown:
    return Shown(
        id=user.id,
        email=user.email,
        stripe_customer_id=user.stripe_customer_id,
        job=job.state,
        outcome=job.outcome,
        remedy=(job.error or {}).get("remedy"),
    )
