"""The list of runs, and one run with its live curves."""

from collections.abc import AsyncIterator
from contextlib import aclosing

from asgiref.sync import sync_to_async
from django.contrib import messages
from django.core.paginator import Paginator
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import get_language
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_POST

from accounts.models import Role
from accounts.permissions import MemberRequest, role_required
from registry import figures, refresh, reports, sse
from registry.health import missing_queues
from registry.models import Run
from registry.news import Reader, news_of
from registry.services import cancel_run, live_model

SAMPLES = 20  # the newest ones
INPUTS = ("tokenizer", "base", "reference", "reward_model", "model")


@require_GET
@role_required(Role.MANAGER)
def runs(request: MemberRequest) -> HttpResponse:
    rows = Run.objects.filter(project=request.project).select_related("model", "created_by")
    shown = Paginator(rows, 30).get_page(request.GET.get("page"))
    waiting = Run.objects.filter(project=request.project).active().exists()
    context = {
        "project": request.project,
        "runs": shown,
        "stages": Run.Stage,
        "missing": [queue for queue in missing_queues() if waiting and queue == "train"],
    }
    part = refresh.part(request, "registry/_runs.html", context, every="3s", lasting=waiting)
    return refresh.page(request, "registry/runs.html", part, context)


@require_GET
@role_required(Role.MANAGER)
def run(request: MemberRequest, pk: int) -> HttpResponse:
    row = get_object_or_404(Run.objects.select_related(*INPUTS, "created_by"), pk=pk, project=request.project)
    reader = Reader(get_language() or "en")
    news = news_of(row.pk, reader)
    return render(
        request,
        "registry/run.html",
        {
            "project": request.project,
            "run": row,
            "state": news["run"],
            "missing": news["missing"],
            "waits_for": ["train"],  # written into the page, shown when it is so
            "inputs": _inputs(row),
            "datasets": row.datasets.all(),
            "model": getattr(row, "model", None),
            "live_model": live_model(request.project),
            "settings": sorted(row.config.items()),
            "result": figures.table(row.result),
            "quality": reports.reward_report(row.result),
            "phases": reports.phases(news["metrics"]),
            "samples": news["samples"][::-1][:SAMPLES],
            "headline": figures.live_headline(row.stage, news["run"]["figures"]),
            "page_data": {
                "charts": figures.charts(),
                "metrics": news["metrics"],
                "over": row.is_over,
                "after": {"metric": reader.metric, "sample": reader.sample},
            },
        },
    )


def _inputs(row: Run) -> list[tuple[str, object]]:
    names = {
        "tokenizer": _("Tokenizer"),
        "base": _("New policy") if row.stage == Run.Stage.EVALUATE else _("Starts from"),
        "reference": _("Judge, a reward model of other rankings") if row.stage == Run.Stage.PPO else _("Old policy"),
        "reward_model": _("Reward model"),
    }
    return [(label, getattr(row, name)) for name, label in names.items() if getattr(row, name)]


@require_POST
@role_required(Role.MANAGER)
def run_cancel(request: MemberRequest, pk: int) -> HttpResponse:
    row = get_object_or_404(Run, pk=pk, project=request.project)
    if not cancel_run(row):
        messages.info(request, _("%(run)s was already over.") % {"run": row})
    return redirect("run", request.project.slug, row.pk)


async def run_events(request: HttpRequest, slug: str, pk: int) -> HttpResponseBase:
    """News of a run as server-sent events; with ?poll=1 once, as JSON, for browsers whose stream breaks."""
    project = await sse.project_for(request, slug, Role.MANAGER)
    if not await Run.objects.filter(pk=pk, project=project).aexists():
        raise Http404
    reader = Reader(get_language() or "en", _whole(request, "metric"), _whole(request, "sample"))
    if "poll" in request.GET:
        news = await sync_to_async(news_of)(pk, reader)
        return JsonResponse({**news, "after": {"metric": reader.metric, "sample": reader.sample}})
    return sse.answer(_events(pk, reader))


def _whole(request: HttpRequest, name: str) -> int:
    value = request.GET.get(name, "")
    return int(value) if value.isascii() and value.isdecimal() and len(value) < 19 else 0


async def _events(pk: int, reader: Reader) -> AsyncIterator[str]:
    """The database says what is new; Redis only says when to look."""
    news = await sync_to_async(news_of)(pk, reader)
    yield sse.event(news)
    async with aclosing(sse.bell(f"run:{pk}")) as bell:
        while not news["run"]["over"]:
            await anext(bell)
            before, news = news, await sync_to_async(news_of)(pk, reader)
            same = (before["run"], before["missing"]) == (news["run"], news["missing"])
            yield ": still here\n\n" if same and not news["metrics"] and not news["samples"] else sse.event(news)
    yield sse.event({}, "end")
