"""A run in the hands of a worker. Every write names the attempt (a fencing token), so that a worker of an older
attempt that was stopped and revived changes nothing."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import F, QuerySet
from django.utils.timezone import now

from registry.bell import ring
from registry.health import ALIVE
from registry.models import Metric, Run, Sample, WorkerProcess
from registry.services import register_model


def claim_run(pk: int, worker: str) -> Run | None:
    """Take a queued run and the next attempt number, or None if another worker has it."""
    taken = (
        Run.objects.queued()
        .filter(pk=pk)
        .update(status=Run.Status.RUNNING, worker=worker, attempt=F("attempt") + 1, heartbeat_at=now(), error="")
    )
    if not taken:
        return None
    Run.objects.filter(pk=pk, started_at=None).update(started_at=now())
    return Run.objects.get(pk=pk)


def _mine(run: Run) -> "QuerySet[Run]":
    return Run.objects.filter(pk=run.pk, attempt=run.attempt, status=Run.Status.RUNNING)


def beat_run(run: Run) -> bool:
    """A sign of life; False when the run is no longer this attempt's."""
    return bool(_mine(run).update(heartbeat_at=now()))


def wants_cancel(run: Run) -> bool:
    return _mine(run).filter(cancel_requested=True).exists()


def _storable(sample: dict[str, Any]) -> dict[str, Any]:
    """A model may write the byte 0, which PostgreSQL stores in no text."""
    return {k: v.replace("\x00", "\ufffd") if isinstance(v, str) else v for k, v in sample.items()}


@transaction.atomic
def record(run: Run, metrics: list[dict[str, Any]], samples: Iterable[tuple[int, dict[str, Any]]] = ()) -> bool:
    """Store what a run reported; a resumed run may report a step again. False when the run is not ours."""
    newest = metrics[-1] if metrics else None
    changes = {"heartbeat_at": now()}
    if newest:
        changes |= {"step": newest["step"], **({"steps": newest["steps"]} if "steps" in newest else {})}
    if not _mine(run).update(**changes):
        return False
    Metric.objects.bulk_create(
        [Metric(run=run, step=m["step"], values={k: v for k, v in m.items() if k not in {"step", "steps"}})
         for m in {m["step"]: m for m in metrics}.values()],
        update_conflicts=True, unique_fields=["run", "step"], update_fields=["values"],
    )  # fmt: skip
    Sample.objects.bulk_create(
        [Sample(run=run, position=position, values=_storable(values)) for position, values in samples],
        update_conflicts=True, unique_fields=["run", "position"], update_fields=["values"],
    )  # fmt: skip
    return True


@transaction.atomic
def finish_run(run: Run, result: dict[str, Any], artifact: dict[str, Any] | None) -> bool:
    """Close a run that ended well and enter its model: {"kind", "path", "sha256", "parameters", "parent"}."""
    done = _mine(run).update(
        status=Run.Status.SUCCEEDED, result=result, finished_at=now(), step=F("steps"), cancel_requested=False
    )
    if done and artifact:
        register_model(project=run.project, run=run, figures=result, **artifact)
    return bool(done)


def fail_run(run: Run, sentence: str) -> bool:
    return bool(_mine(run).update(status=Run.Status.FAILED, error=sentence, finished_at=now()))


def end_cancelled(run: Run) -> bool:
    return bool(_mine(run).update(status=Run.Status.CANCELLED, finished_at=now()))


def requeue_run(run: Run, *, lost: bool) -> bool:
    """Put a run back: it goes on from its last checkpoint. A lost attempt counts, a stopped worker's does not."""
    if lost and run.attempts_lost + 1 >= settings.MAX_ATTEMPTS:
        return fail_run(
            run,
            f"The training process ended {run.attempts_lost + 1} times without a word; out of memory is the usual "
            "cause: try a smaller batch_size.",
        )
    back = _mine(run).update(
        status=Run.Status.QUEUED, worker="", rung_at=now(), attempts_lost=F("attempts_lost") + (1 if lost else 0)
    )
    if back:
        ring("workers.train", run.pk)
    return bool(back)


def reconcile_runs() -> None:
    """Take back silent runs and ring again for queued ones that nobody came for."""
    for run in Run.objects.silent():
        if run.cancel_requested:
            end_cancelled(run)
        else:
            requeue_run(run, lost=True)
    # Where every train worker has a run, nobody could come: messages would pile up behind it.
    workers = WorkerProcess.objects.filter(queue=WorkerProcess.Queue.TRAIN, seen_at__gte=now() - ALIVE).count()
    if 0 < workers <= Run.objects.filter(status=Run.Status.RUNNING).count():
        return
    late = now() - timedelta(seconds=2 * settings.RECONCILE_SECONDS)
    for pk in Run.objects.queued().filter(rung_at__lt=late).values_list("pk", flat=True):
        if ring("workers.train", pk):
            Run.objects.queued().filter(pk=pk).update(rung_at=now())
