"""A shop in Flask: whoever signs up becomes a user here and a customer at Stripe."""

from __future__ import annotations

from functools import cache
from typing import Any

from database import User, engine, jobs
from flask import Flask, abort, redirect, render_template, request, url_for
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from customer_jobs import InvalidJob
from customer_jobs.webhooks import InvalidEvent, InvalidSignature, WebhookReceiver, webhook_secrets

app = Flask(__name__)


@app.get("/")
def form() -> str:
    return render_template("form.html")


@app.post("/")
def sign_up() -> Any:
    email = request.form["email"].strip()
    try:
        # User and job are committed together, or neither is.
        with Session(engine) as session, session.begin():
            user = User(email=email)
            session.add(user)
            session.flush()
            jobs.create_customer({"email": email}, external_id=f"user-{user.id}", session=session)
            page = url_for("show", user_id=user.id)
    except (IntegrityError, InvalidJob):
        return render_template("form.html", problem="This address cannot be used, or is taken."), 409
    return redirect(page)


@app.get("/users/<int:user_id>")
def show(user_id: int) -> str:
    with Session(engine) as session:
        user = session.get(User, user_id) or abort(404)
        (job,) = jobs.list(external_id=f"user-{user_id}", limit=1, session=session)
        return render_template("user.html", user=user, job=job)


@cache
def receiver() -> WebhookReceiver:
    return WebhookReceiver(jobs, webhook_secrets()["default"])


@app.post("/webhooks/stripe")
def stripe_event() -> Any:
    body, signature = request.get_data(), request.headers.get("Stripe-Signature", "")
    try:
        # Stripe is told 200 once both are committed: the event, and the fetch that it causes.
        with Session(engine) as session, session.begin():
            receipt = receiver().receive(body, signature, session=session)
    except (InvalidSignature, InvalidEvent) as error:
        return {"error": str(error)}, 400
    return {"job_id": receipt.job_id}


if __name__ == "__main__":
    app.run(port=5000)
