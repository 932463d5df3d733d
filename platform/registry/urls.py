"""Addresses of runs and models."""

from django.urls import path

from registry.views.models import model, model_promote, models
from registry.views.runs import run, run_cancel, run_events, runs
from registry.views.workers import workers

urlpatterns = [
    path("workers/", workers, name="workers"),
    path("p/<slug:slug>/runs/", runs, name="runs"),
    path("p/<slug:slug>/runs/<int:pk>/", run, name="run"),
    path("p/<slug:slug>/runs/<int:pk>/events/", run_events, name="run_events"),
    path("p/<slug:slug>/runs/<int:pk>/cancel/", run_cancel, name="run_cancel"),
    path("p/<slug:slug>/models/", models, name="models"),
    path("p/<slug:slug>/models/<int:pk>/", model, name="model"),
    path("p/<slug:slug>/models/<int:pk>/promote/", model_promote, name="model_promote"),
]
