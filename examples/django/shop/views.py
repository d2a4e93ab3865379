"""Whoever signs up becomes a user here and a customer at Stripe."""

from __future__ import annotations

from django import forms
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render

from customer_jobs.django import jobs
from shop.models import User


class SignUp(forms.ModelForm):
    class Meta:
        model = User
        fields = ["email"]


def sign_up(request: HttpRequest) -> HttpResponse:
    form = SignUp(request.POST or None)
    if not form.is_valid():
        return render(request, "form.html", {"form": form}, status=409 if form.is_bound else 200)
    # User and job are committed together, or neither is.
    with transaction.atomic():
        user = form.save()
        jobs.create_customer({"email": user.email}, external_id=f"user-{user.pk}")
    return redirect("user", user.pk)


def show(request: HttpRequest, user_id: int) -> HttpResponse:
    user = get_object_or_404(User, pk=user_id)
    (job,) = jobs.list(external_id=f"user-{user_id}", limit=1)
    over = user.stripe_customer_id or job.state in {"failed", "cancelled"}
    return render(request, "user.html", {"user": user, "job": job, "over": over})
