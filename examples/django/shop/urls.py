from django.urls import path

from shop import views

urlpatterns = [
    path("", views.sign_up),
    path("users/<int:user_id>", views.show, name="user"),
    path("webhooks/stripe", views.stripe_event),
]
