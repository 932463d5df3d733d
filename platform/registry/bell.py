"""Ringing a queue: a message carries a primary key and may be lost, the row in the database is the truth."""

import logging
from typing import Any

from django.db import transaction
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from config.celery import app

log = logging.getLogger(__name__)
# Whoever rings is often a web request: a Redis that is there but silent must not hold it.
WITHIN = {"socket_timeout": 1.0, "socket_connect_timeout": 1.0}


def ring(task: str, *args: Any) -> bool:
    """Tell a queue that there is work; False when Redis cannot be reached (the reconciler rings again)."""
    try:
        with app.connection_for_write(transport_options={**app.conf.broker_transport_options, **WITHIN}) as connection:
            app.send_task(task, args=args, ignore_result=True, connection=connection)
    except (OperationalError, RedisError, OSError) as error:
        log.warning("Could not ring %s%r: %s. It is rung again within seconds of Redis coming back.", task, args, error)
        return False
    return True


def ring_on_commit(task: str, *args: Any) -> None:
    transaction.on_commit(lambda: ring(task, *args))
