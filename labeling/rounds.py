"""One turn of the loop. Status moves only by a conditional UPDATE, so that each step happens once."""

import random
import secrets
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import Max
from django.utils.timezone import now
from django.utils.translation import gettext as _

from accounts.models import Project, User
from labeling import exports
from labeling.errors import LabelingError
from labeling.models import Completion, Prompt, Ranking, Round, Slot, Task
from labeling.playground import check_sampling
from labeling.stages import start_stage
from registry.bell import ring_on_commit
from registry.models import ModelVersion, Run
from registry.services import RegistryError, cancel_run, check_settings, live_model, promote

Status = Round.Status


def current_round(project: Project) -> Round | None:
    return Round.objects.filter(project=project).exclude(status__in=Round.OVER).first()


def move(round: Round, source: str, target: str, **changes: Any) -> bool:
    """Take a round from one status to the next; False when somebody else already did."""
    moved = Round.objects.filter(pk=round.pk, status=source).update(status=target, **{"error": "", **changes})
    round.refresh_from_db()
    return bool(moved)


def open_round(
    *,
    project: Project,
    by: User | None = None,
    policy: ModelVersion | None = None,
    prompts: int = 40,
    k: int = 4,
    overlap: int = 1,
    sampling: dict[str, Any] | None = None,
    plan: dict[str, Any] | None = None,
    min_accuracy: float = 0.55,
    seed: int | None = None,
) -> Round:
    """A round, its tasks and the empty completions that the serve worker fills; a seed makes its draws repeatable."""
    rng = random.Random(secrets.randbits(64) if seed is None else seed)
    policy = policy or live_model(project) or _newest_writer(project)
    if policy is None:
        raise LabelingError(_("There is no model that can write yet: train a base model and fine-tune it first."))
    if policy.project_id != project.pk or not policy.can_write:
        raise LabelingError(_("%(name)s cannot write here: choose another model.") % {"name": policy.name})
    if not 2 <= k <= 9:
        raise LabelingError(_("%(k)d completions per prompt: choose from 2 to 9.") % {"k": k})
    if not 1 <= overlap <= 20:
        raise LabelingError(_("%(n)d rankings per prompt: choose from 1 to 20.") % {"n": overlap})
    for stage, config in (plan or {}).items():
        check_settings(stage, config)
    chosen = _choose_prompts(project, prompts, rng)
    sampling = check_sampling(sampling or {})
    try:
        with transaction.atomic():
            number = (Round.objects.filter(project=project).aggregate(last=Max("number"))["last"] or 0) + 1
            round = Round.objects.create(
                project=project, number=number, policy=policy, k=k, overlap=overlap, sampling=sampling,
                plan=plan or {}, min_accuracy=min_accuracy, opened_by=by, status=Status.GENERATING,
            )  # fmt: skip
            _make_tasks(round, chosen, rng)
            ring_on_commit("workers.serve.write_round", round.pk)
    except IntegrityError:
        raise LabelingError(_("A round is already open in this project: finish or reject it first.")) from None
    return round


def _newest_writer(project: Project) -> ModelVersion | None:
    kinds = [ModelVersion.Kind.SFT, ModelVersion.Kind.POLICY]
    writers = ModelVersion.objects.filter(project=project, kind__in=kinds)
    return writers.order_by("-pk").first()


def _choose_prompts(project: Project, count: int, rng: random.Random) -> list[Prompt]:
    """Training prompts at random, those that no round has used first."""
    prompts = list(exports.prompts(project, Prompt.Split.TRAIN))
    rng.shuffle(prompts)
    if not prompts:
        raise LabelingError(_("There are no training prompts yet: add some on the data page."))
    if not 1 <= count <= len(prompts):
        raise LabelingError(
            _("%(count)d prompts were asked for, and this project has %(all)d: choose from 1 to %(all)d.")
            % {"count": count, "all": len(prompts)}
        )
    used = set(Task.objects.filter(project=project, round__isnull=False).values_list("prompt_id", flat=True))
    return sorted(prompts, key=lambda prompt: prompt.pk in used)[:count]


def _make_tasks(round: Round, prompts: list[Prompt], rng: random.Random) -> None:
    tasks = Task.objects.bulk_create(
        Task(project=round.project, kind=Task.Kind.RANK, status=Task.Status.WAITING, prompt=prompt, round=round)
        for prompt in prompts
    )
    Slot.objects.bulk_create(Slot(task=task, number=n) for task in tasks for n in range(round.overlap))
    Completion.objects.bulk_create(
        Completion(
            project=round.project, task=task, position=position, prompt_text=task.prompt.text, model=round.policy,
            sampling=round.sampling, seed=rng.randrange(2**31),
        )
        for task in tasks
        for position in range(round.k)
    )  # fmt: skip


def progress(round: Round) -> dict[str, int]:
    completions = Completion.objects.filter(task__round=round)
    slots = Slot.objects.filter(task__round=round)
    rankings = Ranking.objects.filter(task__round=round)
    return {
        "completions": completions.count(),
        "completions_done": completions.filter(status=Completion.Status.DONE).count(),
        "completions_failed": completions.filter(status=Completion.Status.FAILED).count(),
        "slots": slots.count(),
        "slots_done": slots.exclude(done_at=None).count(),
        "rankings": rankings.count(),
        "simulated": rankings.filter(source="simulated").count(),
        "comparisons": rankings.count() * round.k * (round.k - 1) // 2,
    }


def completions_written(round: Round) -> None:
    """Open the tasks whose completions are all there; when all are, the round goes on to ranking."""
    done = Completion.Status.DONE
    unfinished = Completion.objects.filter(task__round=round).exclude(status=done).values("task")
    round.tasks.filter(status=Task.Status.WAITING).exclude(pk__in=unfinished).update(status=Task.Status.OPEN)
    failed = Completion.objects.filter(task__round=round, status=Completion.Status.FAILED).first()
    if failed is not None:
        Round.objects.filter(pk=round.pk, status=Status.GENERATING).update(error=failed.error)
    elif not round.tasks.filter(status=Task.Status.WAITING).exists():
        move(round, Status.GENERATING, Status.RANKING)


@transaction.atomic
def close_round(round: Round, by: User | None = None) -> Round:
    """No more rankings: train the reward model on what there is."""
    if not Ranking.objects.filter(task__round=round).exists():
        raise LabelingError(_("Nobody has ranked anything in this round yet: rank at least one task first."))
    if not move(round, Status.RANKING, Status.TRAINING_REWARD, closed_at=now()):
        raise LabelingError(
            _("This round is in the state '%(state)s' and cannot be closed.") % {"state": round.get_status_display()}
        )
    round.tasks.update(status=Task.Status.CLOSED)
    _start_run(round, "reward_run", "reward", by, base=round.policy)
    return round


def _start_run(round: Round, field: str, stage: str, by: User | None, **inputs: Any) -> None:
    run = start_stage(
        project=round.project, stage=stage, by=by or round.opened_by, config=round.plan.get(stage, {}), **inputs
    )
    Round.objects.filter(pk=round.pk).update(**{field: run})
    round.refresh_from_db()


def advance_round(round: Round) -> None:
    """Take the next step if the last one is done. Harmless to call at any time, by anybody, twice."""
    try:
        _advance(round)
    except RegistryError as error:  # it stands on the round, and no other round waits for this one
        Round.objects.filter(pk=round.pk).exclude(status__in=Round.OVER).update(error=str(error))


@transaction.atomic
def _advance(round: Round) -> None:
    round = Round.objects.select_for_update(of=("self",)).get(pk=round.pk)
    if round.status == Status.GENERATING:
        completions_written(round)
        return
    run = {
        Status.TRAINING_REWARD: round.reward_run,
        Status.OPTIMIZING: round.ppo_run,
        Status.EVALUATING: round.evaluate_run,
    }.get(Status(round.status))
    if run is None or not run.is_over:
        return
    if run.status != Run.Status.SUCCEEDED:
        Round.objects.filter(pk=round.pk).update(error=run.error or _("The run was cancelled: try it again."))
        return
    if round.status == Status.TRAINING_REWARD:
        if shortfall := _gate(round):
            Round.objects.filter(pk=round.pk).update(error=shortfall)
        else:
            _optimize(round)
    elif round.status == Status.OPTIMIZING:
        if move(round, Status.OPTIMIZING, Status.EVALUATING):
            _start_run(
                round, "evaluate_run", "evaluate", None,
                base=round.candidate, reference=round.policy, reward_model=round.reward_model,
            )  # fmt: skip
    elif round.status == Status.EVALUATING:
        move(round, Status.EVALUATING, Status.AWAITING_APPROVAL)


def _gate(round: Round) -> str:
    """Why the reward model must not steer PPO yet; empty when it may."""
    result = round.reward_run.result if round.reward_run else {}
    accuracy, count = result.get("val_accuracy"), result.get("val_pairs", 0)
    if accuracy is None:
        return _(
            "The reward model could not be measured: no held-out comparison. Collect more rankings, or go on anyway."
        )
    if accuracy < round.min_accuracy:
        return _(
            "The reward model orders %(accuracy).2f of %(count)d held-out comparisons rightly, below the gate of "
            "%(gate).2f: collect more rankings, or go on anyway."
        ) % {"accuracy": accuracy, "count": count, "gate": round.min_accuracy}
    return ""


def _optimize(round: Round) -> None:
    if move(round, Status.TRAINING_REWARD, Status.OPTIMIZING):
        _start_run(round, "ppo_run", "ppo", None, base=round.policy, reward_model=round.reward_model)


@transaction.atomic
def continue_anyway(round: Round, by: User | None = None) -> Round:
    """Pass the gate by a manager's decision."""
    if round.status != Status.TRAINING_REWARD or round.reward_model is None:
        raise LabelingError(_("There is no reward model waiting at the gate."))
    _optimize(round)
    return round


@transaction.atomic
def reopen_ranking(round: Round, by: User | None = None) -> Round:
    """Back to ranking, to collect more; the reward model trained so far stays in the registry."""
    if not round.error or not move(round, Status.TRAINING_REWARD, Status.RANKING, closed_at=None):
        raise LabelingError(_("Only a round that stands still at its reward model can be reopened."))
    round.tasks.update(status=Task.Status.OPEN)
    if not Slot.objects.filter(task__round=round, done_at=None).exists():
        _one_more_each(round)
    return round


def _one_more_each(round: Round) -> None:
    """Every task has all the rankings it asked for: it asks for another, by somebody else."""
    Slot.objects.bulk_create(Slot(task=task, number=round.overlap) for task in round.tasks.all())
    Round.objects.filter(pk=round.pk).update(overlap=round.overlap + 1)
    round.refresh_from_db()


@transaction.atomic
def retry_round(round: Round, by: User | None = None) -> Round:
    """Do the step again that failed."""
    if round.status == Status.GENERATING:
        failed = Completion.objects.filter(task__round=round, status=Completion.Status.FAILED)
        failed.update(status=Completion.Status.PENDING, error="", claim=None)
        Round.objects.filter(pk=round.pk).update(error="")
        ring_on_commit("workers.serve.write_round", round.pk)
        round.refresh_from_db()
        return round
    inputs: dict[str, tuple[str, str, dict[str, ModelVersion | None]]] = {
        Status.TRAINING_REWARD: ("reward_run", "reward", {"base": round.policy}),
        Status.OPTIMIZING: ("ppo_run", "ppo", {"base": round.policy, "reward_model": round.reward_model}),
        Status.EVALUATING: (
            "evaluate_run", "evaluate",
            {"base": round.candidate, "reference": round.policy, "reward_model": round.reward_model},
        ),
    }  # fmt: skip
    still = Round.objects.filter(pk=round.pk, status=round.status).exclude(error="")
    if round.status not in inputs or not still.update(error=""):  # two clicks start one run
        raise LabelingError(_("There is nothing to try again in this round."))
    field, stage, models = inputs[round.status]
    _start_run(round, field, stage, by, **models)
    return round


@transaction.atomic
def promote_round(round: Round, by: User | None = None) -> Round:
    """The new policy becomes the live model and writes the next round's completions."""
    if not move(round, Status.AWAITING_APPROVAL, Status.PROMOTED, decided_by=by, decided_at=now()):
        raise LabelingError(_("This round is not awaiting approval."))
    candidate = round.candidate
    if candidate is None:
        raise RegistryError(_("This round has no new policy to promote."))
    promote(model=candidate, by=by)
    return round


@transaction.atomic
def reject_round(round: Round, by: User | None = None) -> Round:
    """End the round without a new live model; rankings and models stay. Runs still under way are cancelled."""
    ended = Round.objects.filter(pk=round.pk).exclude(status__in=Round.OVER)
    if not ended.update(status=Status.REJECTED, error="", decided_by=by, decided_at=now()):
        raise LabelingError(_("This round is already over."))
    round.refresh_from_db()
    Completion.objects.filter(task__round=round, status=Completion.Status.PENDING).update(
        status=Completion.Status.FAILED, error=_("The round was rejected.")
    )
    round.tasks.update(status=Task.Status.CLOSED)
    for run in (round.reward_run, round.ppo_run, round.evaluate_run):
        if run is not None and not run.is_over:
            cancel_run(run)
    return round
