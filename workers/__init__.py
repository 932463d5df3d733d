"""Celery tasks: the only place where Django and the engine meet."""
