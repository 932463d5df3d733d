"""The two screens where people work: writing an answer, ranking completions; and what those pages send meanwhile."""

from typing import Any

from django import forms
from django.contrib import messages
from django.http import HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.models import Role
from accounts.permissions import MemberRequest, role_required
from labeling.errors import LabelingError
from labeling.forms import (
    DemonstrationForm,
    RankingForm,
    demonstration_initial,
    draft_data,
    fresh_key,
    is_worth_keeping,
    ranking_initial,
)
from labeling.judging import draft_of, save_draft, shown_completions, submit_demonstration, submit_ranking
from labeling.models import Demonstration, Draft, Ranking, Round, Task
from labeling.queue import counts, next_task, release, renew, task_for, why_nothing

Judgement = Ranking | Demonstration


@never_cache
@require_GET
@role_required(Role.ANNOTATOR)
def write(request: MemberRequest) -> HttpResponse:
    return _next(request, Task.Kind.WRITE)


@never_cache
@require_GET
@role_required(Role.ANNOTATOR)
def rank(request: MemberRequest) -> HttpResponse:
    return _next(request, Task.Kind.RANK)


def _next(request: MemberRequest, kind: str) -> HttpResponse:
    """Lend a task and go there, or say why there is none."""
    slot = next_task(request.project, request.user, kind)
    if slot is not None:
        return redirect("task", request.project.slug, slot.task_id)
    other = Task.Kind.RANK if kind == Task.Kind.WRITE else Task.Kind.WRITE
    return render(
        request,
        "labeling/nothing.html",
        {
            "kind": kind,
            "why": why_nothing(request.project, request.user, kind),
            "other": other,
            "other_count": counts(request.project, request.user)[other],
        },
    )


@never_cache
@require_http_methods(["GET", "POST"])
@role_required(Role.ANNOTATOR)
def task(request: MemberRequest, pk: int) -> HttpResponse:
    task = task_for(request.project, request.user, pk)
    earlier = _judgement(task, request)
    if request.method == "POST":
        form = _form(task, request, data=request.POST)
        if form.is_valid():
            try:
                _submit(task, request, form)
            except LabelingError as error:
                form.add_error(None, str(error))
            else:
                return _done(request, task, edited=earlier is not None)
        if _wants_json(request):
            return JsonResponse({"errors": _sentences(form)}, status=422)
    else:
        form = _form(task, request, initial=_initial(task, request, earlier))
    return _page(request, task, form, earlier)


def _judgement(task: Task, request: MemberRequest) -> Judgement | None:
    """What this person has sent for the task already."""
    if task.kind == Task.Kind.RANK:
        return Ranking.objects.filter(task=task, annotator=request.user).first()
    return Demonstration.objects.filter(task=task, author=request.user).first()


def _form(task: Task, request: MemberRequest, **kwargs: Any) -> RankingForm | DemonstrationForm:
    if task.kind == Task.Kind.RANK:
        return RankingForm(completions=shown_completions(task, request.user), **kwargs)
    return DemonstrationForm(**kwargs)


def _initial(task: Task, request: MemberRequest, earlier: Judgement | None) -> dict[str, Any]:
    """What was begun, else what was sent: a draft is always the newest. The key is this page's own: two devices
    that go on from one draft send two judgements, and the later one is an edit."""
    sent: dict[str, Any] = {}
    if isinstance(earlier, Ranking):
        sent = ranking_initial(earlier)
    elif isinstance(earlier, Demonstration):
        sent = demonstration_initial(earlier)
    draft = draft_of(task, request.user)
    return {**(draft or sent), "key": fresh_key()}


def _submit(task: Task, request: MemberRequest, form: forms.Form) -> None:
    given = form.cleaned_data
    if isinstance(form, RankingForm):
        submit_ranking(
            task=task, user=request.user, key=given["key"], tiers=form.tiers(), none_good=given["none_good"],
            scores=form.scores(), comment=given["comment"], seconds=given["seconds"] or 0,
        )  # fmt: skip
    else:
        submit_demonstration(task=task, user=request.user, key=given["key"], response=given["response"])


def _done(request: MemberRequest, task: Task, *, edited: bool) -> HttpResponse:
    """On to the next task; whoever came back to change something goes home."""
    here = reverse("task", args=[request.project.slug, task.pk])
    said = _("Your change is saved.") if edited else _("Saved.")
    messages.success(request, format_html('{} <a href="{}">{}</a>', said, here, _("Change it")))
    target = reverse("home") if edited else reverse(task.kind, args=[request.project.slug])
    return JsonResponse({"next": target}) if _wants_json(request) else redirect(target)


def _wants_json(request: MemberRequest) -> bool:
    return request.headers.get("Accept") == "application/json"


def _sentences(form: forms.Form) -> list[str]:
    return [
        str(error) if name == "__all__" else f"{form.fields[name].label}: {error}"
        for name, errors in form.errors.items()
        for error in errors
    ]


def _page(request: MemberRequest, task: Task, form: forms.Form, earlier: Judgement | None) -> HttpResponse:
    until = renew(task, request.user) if request.method == "GET" else _lease_end(task, request)
    draft = Draft.objects.filter(task=task, user=request.user).first()
    return render(
        request,
        f"labeling/task_{task.kind}.html",
        {
            "task": task,
            "form": form,
            "earlier": earlier,
            "until": until,
            "passed_on": until is None and earlier is None,
            "is_closed": earlier is not None and not _may_change(task),
            "draft_at": draft.updated_at if draft and is_worth_keeping(draft.data) else None,
            "waiting": counts(request.project, request.user)[task.kind],
            "page_data": {
                "draft": reverse("task_draft", args=[request.project.slug, task.pk]),
                "renew": reverse("task_renew", args=[request.project.slug, task.pk]),
                "until": until.isoformat() if until else None,
                "held": until is not None,
            },
        },
        status=422 if form.is_bound else 200,
    )


def _may_change(task: Task) -> bool:
    return task.round is None or task.round.status in {Round.Status.GENERATING, Round.Status.RANKING}


def _lease_end(task: Task, request: MemberRequest) -> Any:
    return task.slots.filter(holder=request.user, done_at=None).values_list("leased_until", flat=True).first()


@require_POST
@role_required(Role.ANNOTATOR)
def draft(request: MemberRequest, pk: int) -> HttpResponse:
    """Keep what has been done so far; what arrives after its own form was sent is old news."""
    task = task_for(request.project, request.user, pk)
    form = _form(task, request, data=request.POST)
    data = draft_data(form)
    earlier = _judgement(task, request)
    if earlier is not None and str(earlier.key) == data.get("key"):
        return JsonResponse({"saved": False})
    return JsonResponse({"saved": True, "at": save_draft(task, request.user, data).updated_at.isoformat()})


@require_POST
@role_required(Role.ANNOTATOR)
def renew_lease(request: MemberRequest, pk: int) -> HttpResponse:
    """A page that is open and in use keeps its slot."""
    until = renew(task_for(request.project, request.user, pk), request.user)
    return JsonResponse({"until": until.isoformat() if until else None})


@require_POST
@role_required(Role.ANNOTATOR)
def skip(request: MemberRequest, pk: int) -> HttpResponse:
    """Give the slot back and take another; what was begun stays as a draft."""
    task = task_for(request.project, request.user, pk)
    if "key" in request.POST:
        data = draft_data(_form(task, request, data=request.POST))
        if is_worth_keeping(data):
            save_draft(task, request.user, data)
    release(task, request.user)
    slot = next_task(request.project, request.user, task.kind, leaving=task)
    if slot is not None and slot.task_id == task.pk:
        messages.info(request, _("This is the only task left, so here it is again."))
    return redirect(task.kind, request.project.slug)
