"""The workers app: it has no tables, only tasks and commands."""

from django.apps import AppConfig


class WorkersConfig(AppConfig):
    name = "workers"
