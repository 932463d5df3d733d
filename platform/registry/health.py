"""Which worker processes are alive, so that no page waits for one that is not there."""

from datetime import timedelta

from django.utils.timezone import now

from registry.models import WorkerProcess

ALIVE = timedelta(seconds=20)


def sign_of_life(name: str, queue: str) -> None:
    WorkerProcess.objects.update_or_create(name=name, defaults={"queue": queue, "seen_at": now()})


def forget(name: str) -> None:
    """A worker that stops in order does not leave its name behind."""
    WorkerProcess.objects.filter(name=name).delete()


def missing_queues() -> list[str]:
    """Queues that no living worker serves."""
    alive = set(WorkerProcess.objects.filter(seen_at__gte=now() - ALIVE).values_list("queue", flat=True))
    return [queue for queue in WorkerProcess.Queue.values if queue not in alive]
