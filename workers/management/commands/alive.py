"""manage.py alive: exit 0 if a worker on this host has given a sign of life; for health checks of containers."""

import socket
from typing import Any

from django.core.management import BaseCommand, CommandError
from django.utils.timezone import now

from registry.health import ALIVE
from registry.models import WorkerProcess


class Command(BaseCommand):
    help = "Exit 0 if a worker of this host is alive, 1 if not."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        here = f"@{socket.gethostname()}:"
        if not WorkerProcess.objects.filter(name__contains=here, seen_at__gte=now() - ALIVE).exists():
            raise CommandError(f"No worker here gave a sign of life within {ALIVE.seconds} seconds.")
