"""The playground: one prompt, two models, both answers as they are written."""

import secrets
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from asgiref.sync import sync_to_async
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods

from accounts.models import Role
from accounts.permissions import MemberRequest, role_required
from labeling.errors import LabelingError
from labeling.forms_rounds import PlaygroundForm
from labeling.models import Completion
from labeling.playground import ask
from registry import sse
from registry.health import missing_queues

Status = Completion.Status


@require_GET
@role_required(Role.MANAGER)
def playground(request: MemberRequest) -> HttpResponse:
    picked = {side: request.GET[side] for side in ("left", "right") if side in request.GET}
    form = PlaygroundForm(project=request.project, initial=picked)
    context = {"project": request.project, "form": form, "past": _past(request)}
    return render(request, "labeling/playground.html", context)


def _past(request: MemberRequest) -> QuerySet[Completion]:
    asked = Completion.objects.filter(project=request.project, task=None, created_by=request.user)
    return asked.select_related("model").order_by("-pk")[:6]


@require_http_methods(["GET", "POST"])
@role_required(Role.MANAGER)
def playground_ask(request: MemberRequest) -> HttpResponse:
    """Queue an answer a model; the fragment opens their streams. Without scripts the whole page comes back."""
    if request.method == "GET":
        return redirect("playground", request.project.slug)
    form, error = PlaygroundForm(request.POST, project=request.project), ""
    answers: list[Completion] = []
    if form.is_valid():
        given = form.cleaned_data
        models = [given["left"], *([given["right"]] if given["right"] else [])]
        try:
            seed = secrets.randbelow(2**31) if given["seed"] is None else given["seed"]  # one for both models
            asked = {"prompt": given["prompt"], "sampling": form.sampling(), "seed": seed}
            answers = [ask(project=request.project, user=request.user, model=model, **asked) for model in models]
        except LabelingError as problem:
            error = str(problem)
    context = {"project": request.project, "form": form, "answers": answers, "error": error, "waits_for": ["serve"]}
    template = "labeling/_answers.html" if request.htmx else "labeling/playground.html"
    return render(request, template, context)


async def completion_events(request: HttpRequest, slug: str, pk: int) -> HttpResponseBase:
    """A completion as it is written; with ?poll=1 once, as JSON."""
    project = await sse.project_for(request, slug, Role.MANAGER)
    if not await Completion.objects.filter(pk=pk, project=project).aexists():
        raise Http404
    if "poll" in request.GET:
        return JsonResponse(await sync_to_async(state_of)(pk))
    return sse.answer(_events(pk))


def state_of(pk: int) -> dict[str, Any]:
    """The completion as the database has it."""
    row = Completion.objects.get(pk=pk)
    if row.status == Status.FAILED:
        return {"error": row.error, "done": True}
    if row.status == Status.DONE:
        return {"text": row.text, "done": True, "finish_reason": row.finish_reason, "tokens": len(row.tokens)}
    return {"missing": [queue for queue in missing_queues() if queue == "serve"]}


async def _events(pk: int) -> AsyncIterator[str]:
    state = await sync_to_async(state_of)(pk)
    yield sse.event(state)
    async with aclosing(sse.bell(f"completion:{pk}", after="0")) as bell:
        while not state.get("done"):
            news = await anext(bell)
            if news is not None and not news.get("done") and "error" not in news:
                yield sse.event({"text": news["text"], "missing": []})
                continue
            before, state = state, await sync_to_async(state_of)(pk)
            yield sse.event(state) if state != before else ": still here\n\n"
    yield sse.event({}, "end")
