"""Rounds: opening one, watching it, deciding about its policy."""

from collections.abc import Callable
from typing import Any

from django.contrib import messages
from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.models import Role
from accounts.permissions import MemberRequest, role_required
from labeling import rounds as services
from labeling.errors import LabelingError
from labeling.forms_rounds import RoundForm
from labeling.loop import active_run
from labeling.models import Completion, Prompt, Round
from labeling.rounds import current_round, open_round, progress
from registry import refresh
from registry.health import missing_queues
from registry.models import Run, Sample
from registry.services import RegistryError, live_model

Status = Round.Status
# The stepper; OPEN is over at once and PROMOTED or REJECTED is the last step.
STEPS = [
    Status.OPEN,
    Status.GENERATING,
    Status.RANKING,
    Status.TRAINING_REWARD,
    Status.OPTIMIZING,
    Status.EVALUATING,
    Status.AWAITING_APPROVAL,
]
NEEDS = {
    Status.GENERATING: ["serve"],
    Status.TRAINING_REWARD: ["train", "default"],
    Status.OPTIMIZING: ["train", "default"],
    Status.EVALUATING: ["train", "default"],
}
ACTIONS: dict[str, Callable[..., Round]] = {
    "close": services.close_round,
    "promote": services.promote_round,
    "reject": services.reject_round,
    "retry": services.retry_round,
    "reopen": services.reopen_ranking,
    "continue": services.continue_anyway,
}
EXAMPLES = 12


@require_GET
@role_required(Role.MANAGER)
def rounds(request: MemberRequest) -> HttpResponse:
    found = Round.objects.filter(project=request.project).select_related(
        "policy", "evaluate_run", "reward_run__model", "ppo_run__model", "opened_by"
    )
    context = {"project": request.project, "rounds": found, "current": current_round(request.project)}
    return render(request, "labeling/rounds.html", context)


@require_http_methods(["GET", "POST"])
@role_required(Role.MANAGER)
def round_new(request: MemberRequest) -> HttpResponse:
    form, error = RoundForm(request.POST or None, project=request.project), ""
    if request.method == "POST" and form.is_valid():
        given = form.cleaned_data
        try:
            made = open_round(
                project=request.project, by=request.user, policy=given["policy"], prompts=given["prompts"],
                k=given["k"], overlap=given["overlap"], min_accuracy=given["min_accuracy"],
                sampling=form.sampling(), plan=form.plan(),
            )  # fmt: skip
            return redirect("round", request.project.slug, made.number)
        except (LabelingError, RegistryError) as problem:
            error = str(problem)
    context = {"project": request.project, "form": form, "error": error, "current": current_round(request.project)}
    return render(request, "labeling/round_new.html", context)


@require_GET
@role_required(Role.MANAGER)
def round(request: MemberRequest, number: int) -> HttpResponse:
    found = Round.objects.select_related(
        "policy", "reward_run__model", "ppo_run__model", "evaluate_run", "opened_by", "decided_by"
    )
    row = get_object_or_404(found, project=request.project, number=number)
    far = progress(row)
    context = {
        "project": request.project,
        "round": row,
        "steps": _steps(row),
        "progress": far,
        "shares": {
            "completions": 100 * far["completions_done"] // max(1, far["completions"]),
            "slots": 100 * far["slots_done"] // max(1, far["slots"]),
        },
        "stages": [run for run in (row.reward_run, row.ppo_run, row.evaluate_run) if run is not None],
        "run": active_run(row),
        "missing": [q for q in missing_queues() if q in NEEDS.get(Status(row.status), [])],
        "at_the_gate": row.status == Status.TRAINING_REWARD and bool(row.error) and row.reward_model is not None,
        "evaluation": _evaluation(row),
        "examples": _examples(row.evaluate_run),
        "written": _written(row),
        "live_model": live_model(request.project),
    }
    part = refresh.part(request, "labeling/_round.html", context, every="3s", lasting=not row.is_over)
    return refresh.page(request, "labeling/round.html", part, context)


def _steps(row: Round) -> list[dict[str, Any]]:
    """Every step with its state: done, now, stuck or ahead."""
    at = len(STEPS) if row.is_over else STEPS.index(Status(row.status))
    steps = []
    for place, status in enumerate(STEPS):
        state = "done" if place < at else "now" if place == at else "ahead"
        steps.append({"label": status.label, "state": "stuck" if state == "now" and row.error else state})
    if row.status == Status.REJECTED:  # where it stopped is not known, so the way is not called done
        return [*({**step, "state": "past"} for step in steps), {"label": Status.REJECTED.label, "state": "bad"}]
    decided = row.status == Status.PROMOTED
    last = {"label": Status.PROMOTED.label if decided else _("Decision"), "state": "done" if decided else "ahead"}
    return [*steps, last]


def _evaluation(row: Round) -> dict[str, Any]:
    """The figures, and the win rate's place on a bar from 0 to 100."""
    result = row.evaluation
    if "win_rate" not in result:
        return {}
    low, high = result.get("win_rate_low", result["win_rate"]), result.get("win_rate_high", result["win_rate"])
    asked = row.evaluate_run.datasets.all() if row.evaluate_run else []
    return {
        **result,
        "seen_in_training": any(dataset.manifest.get("part") == Prompt.Split.TRAIN for dataset in asked),
        "at": f"{100 * result['win_rate']:.1f}",
        "from": f"{100 * low:.1f}",
        "wide": f"{100 * max(high - low, 0.005):.1f}",
        "verdict": "better" if low > 0.5 else "worse" if high < 0.5 else "open",
    }


def _examples(run: Run | None) -> list[dict[str, Any]]:
    if run is None:
        return []
    rows = [sample.values for sample in Sample.objects.filter(run=run)[:EXAMPLES]]
    return [row for row in rows if "new" in row and "old" in row]


def _written(row: Round) -> list[Completion]:
    """The newest completions, so that one sees what is being written."""
    if row.status != Status.GENERATING:
        return []
    done = Completion.objects.filter(task__round=row, status=Completion.Status.DONE)
    return list(done.order_by("-written_at")[:3])


@require_POST
@role_required(Role.MANAGER)
def round_act(request: MemberRequest, number: int, action: str) -> HttpResponse:
    row = get_object_or_404(Round, project=request.project, number=number)
    if action not in ACTIONS:
        raise Http404
    try:
        done = ACTIONS[action](row, request.user)
        if action == "promote" and done.candidate:
            said = _("%(model)s is live: it writes the next round's completions.")
            messages.success(request, said % {"model": done.candidate.name})
    except (LabelingError, RegistryError) as problem:
        messages.error(request, str(problem))
    return redirect("round", request.project.slug, row.number)
