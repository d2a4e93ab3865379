"""A shop in Flask: whoever signs up becomes a user here and a customer at Stripe."""

from __future__ import annotations

from typing import Any

from database import User, engine, jobs
from flask import Flask, abort, redirect, render_template, request, url_for
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from customer_jobs import InvalidJob

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


if __name__ == "__main__":
    app.run(port=5000)
