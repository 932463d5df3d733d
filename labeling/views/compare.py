"""Policies and baselines side by side, and the button that measures what has no figures yet."""

from typing import Any

from django.contrib import messages
from django.http import HttpResponse, QueryDict
from django.shortcuts import get_object_or_404, redirect
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_GET, require_POST

from accounts.models import Role
from accounts.permissions import MemberRequest, role_required
from labeling import compare as services
from labeling.errors import LabelingError
from registry import figures, refresh
from registry.health import missing_queues
from registry.models import ModelVersion
from registry.services import RegistryError

Kind = ModelVersion.Kind
KINDS = {"reference": [Kind.SFT, Kind.POLICY, Kind.BASE], "judge": [Kind.REWARD]}


@require_GET
@role_required(Role.MANAGER)
def compare(request: MemberRequest) -> HttpResponse:
    comparison = services.compare(request.project, **_chosen(request, request.GET))
    busy = comparison.is_busy
    context = {
        "project": request.project,
        "comparison": comparison,
        "protocol": comparison.protocol,
        "missing": [queue for queue in missing_queues() if busy and queue == "train"],
        "page_data": _chart(comparison),
    }
    part = refresh.part(request, "labeling/_compare.html", context, every="4s", lasting=busy)
    choices = {
        name: ModelVersion.objects.filter(project=request.project, kind__in=kinds) for name, kinds in KINDS.items()
    }
    return refresh.page(request, "labeling/compare.html", part, {**context, "choices": choices})


@require_POST
@role_required(Role.MANAGER)
def compare_evaluate(request: MemberRequest) -> HttpResponse:
    chosen = _chosen(request, request.POST)
    try:
        started = services.evaluate_missing(services.compare(request.project, **chosen), request.user)
        said = ngettext("%(n)d run is in the queue.", "%(n)d runs are in the queue.", len(started))
        messages.success(request, said % {"n": len(started)})
    except (LabelingError, RegistryError) as problem:
        messages.error(request, str(problem))
    query = QueryDict(mutable=True)
    query.update({name: str(model.pk) for name, model in chosen.items() if model})
    return redirect(reverse("compare", args=[request.project.slug]) + (f"?{query.urlencode()}" if query else ""))


def _chosen(request: MemberRequest, given: QueryDict) -> dict[str, ModelVersion | None]:
    """The reference and the judge that were asked for; a model of another project or kind is not found."""
    chosen: dict[str, ModelVersion | None] = {}
    for name, kinds in KINDS.items():
        pk = given.get(name, "")
        whole = pk.isascii() and pk.isdecimal() and len(pk) < 19
        own = ModelVersion.objects.filter(project=request.project, kind__in=kinds)
        chosen[name] = get_object_or_404(own, pk=int(pk) if whole else 0) if pk else None
    return chosen


def _chart(comparison: services.Comparison) -> dict[str, Any]:
    """Points of reward and win rate over the square root of the KL; best of n is one line."""
    series: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in comparison.rows:
        if row.figures.get("reward") is None:
            continue
        kind = "policy" if row.made_by else "baseline" if "n" in row.figures else "reference"
        name = _("Best of n") if kind == "baseline" else f"{row.method} · {row.model.name if row.model else ''}"
        point = {"kl": max(row.figures["kl"], 0.0) ** 0.5}
        series.setdefault((name, kind), []).append(point | {key: row.figures[key] for key in ("reward", "win_rate")})
    charts = [("reward", _("Mean reward")), ("win_rate", figures.label("win_rate"))]
    return {
        "series": [{"label": label, "kind": kind, "points": points} for (label, kind), points in series.items()],
        "charts": [{"key": key, "title": title, "percent": key == "win_rate"} for key, title in charts],
        "across": _("square root of the KL from the reference"),
    }
