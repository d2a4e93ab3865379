from __future__ import annotations

from django.db import models


class User(models.Model):
    email = models.EmailField(unique=True)
    stripe_customer_id = models.CharField(max_length=255, blank=True)  #: Written by `manage.py consume`.
