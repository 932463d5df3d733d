"""The models of a project: where each came from, and which one is live."""

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_POST

from accounts.models import Role
from accounts.permissions import MemberRequest, role_required
from registry import figures
from registry.models import Deployment, ModelVersion
from registry.services import RegistryError, live_model, promote


@require_GET
@role_required(Role.MANAGER)
def models(request: MemberRequest) -> HttpResponse:
    rows = ModelVersion.objects.filter(project=request.project).select_related("parent", "run")
    deployments = Deployment.objects.filter(project=request.project).select_related("model", "promoted_by")
    return render(
        request,
        "registry/models.html",
        {
            "project": request.project,
            "models": rows,
            "live_model": live_model(request.project),
            "deployments": deployments[:8],
        },
    )


@require_GET
@role_required(Role.MANAGER)
def model(request: MemberRequest, pk: int) -> HttpResponse:
    found = ModelVersion.objects.select_related("run__reward_model", "run__tokenizer", "parent", "run__created_by")
    row = get_object_or_404(found, pk=pk, project=request.project)
    return render(
        request,
        "registry/model.html",
        {
            "project": request.project,
            "model": row,
            "lineage": lineage_of(row),
            "children": row.children.all(),
            "result": figures.table(row.figures),
            "datasets": row.run.datasets.all() if row.run else [],
            "live_model": live_model(request.project),
            "deployments": row.deployments.select_related("promoted_by"),
        },
    )


def lineage_of(model: ModelVersion) -> list[ModelVersion]:
    """The model, its parent, the parent's parent ... up to the first."""
    line, seen = [model], {model.pk}
    while line[-1].parent_id and line[-1].parent_id not in seen:
        parent = ModelVersion.objects.select_related("run").get(pk=line[-1].parent_id)
        line.append(parent)
        seen.add(parent.pk)
    return line


@require_POST
@role_required(Role.MANAGER)
def model_promote(request: MemberRequest, pk: int) -> HttpResponse:
    row = get_object_or_404(ModelVersion, pk=pk, project=request.project)
    try:
        promote(model=row, by=request.user)
        messages.success(request, _("%(model)s is live: it writes the next round's completions.") % {"model": row.name})
    except RegistryError as error:
        messages.error(request, str(error))
    return redirect("model", request.project.slug, row.pk)
