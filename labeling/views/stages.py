"""Starting a run by hand."""

from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext_lazy as _
from django.views.decorators.http import require_http_methods

from accounts.models import Role
from accounts.permissions import MemberRequest, role_required
from labeling.errors import LabelingError
from labeling.forms_stages import StageForm
from labeling.stages import check_data, start_stage
from registry.models import Run
from registry.services import RegistryError

ABOUT = {
    "tokenizer": _("Cuts text into tokens: learns the vocabulary from the texts, or takes a named one."),
    "pretrain": _("Learns to continue text, from random weights or from an earlier base model."),
    "sft": _("Learns to answer from demonstrations; only the answer and its end are learned."),
    "reward": _("Learns from rankings which answers people prefer."),
    "ppo": _("Raises the reward of the policy's answers while it stays near the model it starts from."),
    "dpo": _("Learns from rankings directly: the policy is its own reward model, and nothing is sampled."),
    "grpo": _("Raises the reward without a value model: a prompt's other answers are the baseline."),
    "rejection": _("Answers each prompt several times and learns the answer that the reward model likes best."),
    "best_of_n": _("Trains nothing: answers n times, takes the best by the reward model, and measures the cost."),
    "evaluate": _("Lets two policies answer the same held-out prompts and compares them by the reward model."),
}


@require_http_methods(["GET", "POST"])
@role_required(Role.MANAGER)
def run_new(request: MemberRequest, stage: str) -> HttpResponse:
    if stage not in Run.Stage.values:
        raise Http404
    form = StageForm(request.POST or None, project=request.project, stage=stage)
    error = ""
    if request.method == "POST" and form.is_valid():
        try:
            run = start_stage(
                project=request.project, stage=stage, by=request.user, config=form.config(),
                datasets=form.datasets(), **form.models(),
            )  # fmt: skip
            return redirect("run", request.project.slug, run.pk)
        except (LabelingError, RegistryError) as problem:
            error = str(problem)
    return render(
        request,
        "labeling/run_new.html",
        {
            "project": request.project,
            "stage": Run.Stage(stage),
            "stages": Run.Stage,
            "form": form,
            "about": ABOUT[stage],
            "error": error,
            "lacking": "" if error else _lacking(request, stage),
        },
    )


def _lacking(request: MemberRequest, stage: str) -> str:
    """What the stage still needs, said before anybody fills in a form."""
    try:
        check_data(request.project, stage)
    except LabelingError as problem:
        return str(problem)
    return ""
