"""Settings, URLs, ASGI and Celery of the installation."""

from config.celery import app as celery_app

__all__ = ["celery_app"]
