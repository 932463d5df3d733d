"""Home: the next piece of work for those who write and rank, where the loop stands for those who manage."""

from dataclasses import dataclass
from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET

from accounts.models import Project, Role, User
from accounts.permissions import MemberRequest, role_in
from labeling.forms import is_worth_keeping
from labeling.models import Demonstration, Draft, Ranking, Round, Task
from labeling.queue import counts
from labeling.rounds import current_round, progress
from registry.services import live_model

LATELY = 8


@dataclass(frozen=True)
class Standing:
    """Where a project's loop stands, in a sentence, and what a manager does next."""

    round: Round | None
    sentence: str
    action: str
    url: str
    stuck: bool = False
    percent: int | None = None


@never_cache
@require_GET
@login_required
def home(request: MemberRequest) -> HttpResponse:
    projects = [_project(each, request.user) for each in Project.objects.seen_by(request.user).distinct()]
    projects.sort(key=_is_quiet)
    return render(
        request,
        "labeling/home.html",
        {
            "projects": projects,
            "drafts": _drafts(request.user),
            "lately": _lately(request.user),
            "can_make_projects": request.user.is_superuser or any(each["manages"] for each in projects),
        },
    )


def _project(project: Project, user: User) -> dict[str, Any]:
    manages = role_in(user, project) == Role.MANAGER
    return {
        "project": project,
        "manages": manages,
        "waiting": counts(project, user),
        "standing": standing(project) if manages else None,
    }


def _is_quiet(entry: dict[str, Any]) -> bool:
    """No work waits and no round is open: such projects come last."""
    return not any(entry["waiting"].values()) and (entry["standing"] is None or entry["standing"].round is None)


def standing(project: Project) -> Standing:
    round = current_round(project)
    if round is not None:
        return _round_standing(round)
    model = live_model(project)
    if model is not None:
        sentence = _("%(model)s is live and no round is open.") % {"model": model.name}
        return Standing(None, sentence, _("Open a round"), reverse("round_new", args=[project.slug]))
    if project.models.exists():
        sentence = _("There are models, but none is live yet.")
        return Standing(None, sentence, _("See what comes next"), reverse("overview", args=[project.slug]))
    if project.datasets.exists():
        sentence = _("There is data, but nothing has been trained on it yet.")
        return Standing(None, sentence, _("Start the first run"), reverse("runs", args=[project.slug]))
    sentence = _("The loop begins with text: bring in a corpus, then demonstrations.")
    return Standing(None, sentence, _("Bring in data"), reverse("data", args=[project.slug]))


def _round_standing(round: Round) -> Standing:
    url = reverse("round", args=[round.project.slug, round.number])
    done = progress(round)
    if round.error:
        return Standing(round, round.error, _("See what to do"), url, stuck=True)
    if round.status in {Round.Status.OPEN, Round.Status.GENERATING}:
        return Standing(
            round,
            _("%(model)s is writing: %(done)d of %(all)d completions.")
            % {"model": round.policy.name, "done": done["completions_done"], "all": done["completions"]},
            _("Watch the round"), url, percent=_share(done["completions_done"], done["completions"]),
        )  # fmt: skip
    if round.status == Round.Status.RANKING:
        sentence = ngettext(
            "People are ranking: %(done)d of %(all)d ranking is in.",
            "People are ranking: %(done)d of %(all)d rankings are in.",
            done["slots"],
        ) % {"done": done["slots_done"], "all": done["slots"]}
        action = _("Close the round") if done["slots_done"] == done["slots"] else _("Watch the round")
        return Standing(round, sentence, action, url, percent=_share(done["slots_done"], done["slots"]))
    if round.status == Round.Status.AWAITING_APPROVAL:
        return Standing(round, _("A new policy waits for your decision."), _("Decide"), url)
    run = {
        Round.Status.TRAINING_REWARD: round.reward_run,
        Round.Status.OPTIMIZING: round.ppo_run,
        Round.Status.EVALUATING: round.evaluate_run,
    }.get(Round.Status(round.status))
    sentence = f"{round.get_status_display()}."
    return Standing(round, sentence, _("Watch the round"), url, percent=run.percent if run else None)


def _share(done: int, of: int) -> int:
    return 100 * done // of if of else 0


def _drafts(user: User) -> list[Draft]:
    """What this person has begun and not sent, newest first."""
    mine = Draft.objects.filter(user=user, task__project__in=Project.objects.seen_by(user))
    mine = mine.select_related("task__prompt", "task__project").order_by("-updated_at")[: 2 * LATELY]
    return [draft for draft in mine if is_worth_keeping(draft.data)][:LATELY]


def _lately(user: User) -> list[dict[str, Any]]:
    """The last things this person sent, newest first; those without a task came in from a file."""
    seen = Project.objects.seen_by(user)
    rankings = Ranking.objects.filter(annotator=user, project__in=seen).select_related("task__prompt", "project")
    written = Demonstration.objects.filter(author=user, project__in=seen).exclude(task=None)
    written = written.select_related("task__prompt", "project")
    entries: list[dict[str, Any]] = [
        {"kind": kind, "task": row.task, "project": row.project, "at": row.created_at, "edited": bool(row.history)}
        for kind, rows in ((Task.Kind.RANK, rankings[:LATELY]), (Task.Kind.WRITE, written[:LATELY]))
        for row in rows
    ]
    return sorted(entries, key=lambda entry: entry["at"], reverse=True)[:LATELY]
