"""What the queues carry: a primary key. The row decides; a message that comes twice or late is harmless."""

import logging
from datetime import timedelta

from celery import shared_task
from django.db.models import Exists, OuterRef
from django.utils.timezone import now

from labeling.models import Completion, Round
from labeling.rounds import advance_round
from registry.bell import ring
from registry.lifecycle import claim_run, reconcile_runs
from workers import supervise
from workers.life import worker_name

log = logging.getLogger(__name__)


@shared_task(name="workers.train")
def train(run_id: int) -> None:
    run = claim_run(run_id, worker_name("train"))
    if run is None:
        return
    log.info("Run %d: %s, attempt %d", run.pk, run.stage, run.attempt)
    supervise.execute(run)
    for round in Round.objects.filter(project=run.project).exclude(status__in=Round.OVER):
        advance_round(round)


@shared_task(name="workers.reconcile")
def reconcile() -> None:
    """Put right what a lost message, a killed worker or a restarted Redis left behind. Runs every few seconds."""
    reconcile_runs()
    reconcile_completions()
    for round in Round.objects.exclude(status__in=Round.OVER):
        advance_round(round)


def reconcile_completions() -> None:
    """Take back completions whose writer fell silent, and ring again for those that nobody came for."""
    status = Completion.Status
    Completion.objects.filter(status=status.WRITING, leased_until__lt=now()).update(status=status.PENDING, claim=None)
    late = Completion.objects.filter(status=status.PENDING, created_at__lt=now() - timedelta(seconds=10))
    # A round that somebody is writing needs no second writer: it would keep the playground waiting.
    writing = Completion.objects.filter(status=status.WRITING, task__round=OuterRef("pk"))
    waiting = Round.objects.filter(~Exists(writing), Exists(late.filter(task__round=OuterRef("pk"))))
    for pk in waiting.values_list("pk", flat=True):
        ring("workers.serve.write_round", pk)
    for pk in late.filter(task=None).values_list("pk", flat=True)[:100]:
        ring("workers.serve.write", pk)


@shared_task(name="workers.serve.write_round")
def write_round(round_id: int) -> None:
    from workers import serving

    serving.write_round(round_id)
    round = Round.objects.filter(pk=round_id).first()
    if round is not None:
        advance_round(round)


@shared_task(name="workers.serve.write")
def write(completion_id: int) -> None:
    from workers import serving

    serving.write_one(completion_id)


@shared_task(name="workers.serve.warm")
def warm(model_id: int) -> None:
    from workers import serving

    serving.warm(model_id)
