"""Whoever signs up becomes a user here and a customer at Stripe."""

from __future__ import annotations

from functools import cache

from django import forms
from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from customer_jobs.django import jobs
from customer_jobs.webhooks import InvalidEvent, InvalidSignature, WebhookReceiver, webhook_secrets
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


@cache
def receiver() -> WebhookReceiver:
    return WebhookReceiver(jobs, webhook_secrets()["default"])


@csrf_exempt  # Stripe has no form of ours; the signature says that it is Stripe.
@require_POST
def stripe_event(request: HttpRequest) -> HttpResponse:
    try:
        # Stripe is told 200 once both are committed: the event, and the fetch that it causes.
        receipt = receiver().receive(request.body, request.headers.get("Stripe-Signature", ""))
    except (InvalidSignature, InvalidEvent) as error:
        return JsonResponse({"error": str(error)}, status=400)
    return JsonResponse({"job_id": receipt.job_id})
