"""Signs of life of a worker process, and its wish to stop."""

import logging
import os
import socket
import threading
from typing import Any

from celery.signals import celeryd_after_setup, worker_ready, worker_shutting_down
from django.db import DatabaseError, close_old_connections

from registry.health import forget, sign_of_life

log = logging.getLogger(__name__)
EVERY = 5.0  # seconds

stopping = threading.Event()
_queue = ""


def worker_name(queue: str = "") -> str:
    return f"{queue or _queue}@{socket.gethostname()}:{os.getpid()}"


@celeryd_after_setup.connect
def _remember_queue(instance: Any, **_kwargs: Any) -> None:
    global _queue
    _queue = ",".join(instance.app.amqp.queues.consume_from)


@worker_ready.connect
def _begin(**_kwargs: Any) -> None:
    threading.Thread(target=_tell, name="signs-of-life", daemon=True).start()


@worker_shutting_down.connect
def _end(**_kwargs: Any) -> None:
    """A warm shutdown waits for tasks to end: long ones look at this flag."""
    stopping.set()


def _tell() -> None:
    """Only while the consumer lives: a thread that outlived it would say that all is well."""
    name = worker_name()
    while True:
        try:
            sign_of_life(name, _queue)
        except DatabaseError as error:
            log.warning("No sign of life stored: %s", error)
        close_old_connections()
        if stopping.wait(EVERY):
            break
    try:
        forget(name)
    except DatabaseError:
        log.info("The worker stops without the database.")
