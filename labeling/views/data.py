"""The data page: what came in, how the texts are mixed, and downloads."""

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from django.contrib import messages
from django.core.files.uploadedfile import TemporaryUploadedFile, UploadedFile
from django.db.models import Count, Q
from django.http import FileResponse, Http404, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.timezone import localdate
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as lazy
from django.utils.translation import ngettext
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.models import Project, Role
from accounts.permissions import MemberRequest, role_required
from labeling.errors import LabelingError
from labeling.exports import FORMATS, KINDS, write_rows
from labeling.forms_data import ImportForm, WeightForm
from labeling.imports import ImportFailed, import_or_find
from labeling.models import Demonstration, Prompt, Ranking
from registry.figures import number
from registry.models import Dataset

DOWNLOADS = {
    "prompts": lazy("Prompts"),
    "demonstrations": lazy("Demonstrations"),
    "preferences": lazy("Preferences"),
    "rankings": lazy("Rankings"),
}


@require_GET
@role_required(Role.MANAGER)
def data(request: MemberRequest) -> HttpResponse:
    return _page(request, ImportForm(initial={"kind": request.GET.get("kind", "corpus")}))


def _page(request: MemberRequest, form: ImportForm, error: str = "", status: int = 200) -> HttpResponse:
    rows = list(Dataset.objects.filter(project=request.project).select_related("created_by"))
    texts = [d for d in rows if d.kind == Dataset.Kind.CORPUS]
    whole = sum(d.weight for d in texts)
    context = {
        "project": request.project,
        "form": form,
        "error": error,
        "texts": [(d, round(100 * d.weight / whole) if whole else 0) for d in texts],
        "imported": [d for d in rows if d.kind != Dataset.Kind.CORPUS and not d.manifest.get("frozen")],
        "frozen": [d for d in rows if d.manifest.get("frozen")][:20],
        "counts": counts_of(request.project),
        "downloads": [
            (kind, DOWNLOADS[kind], [f for f in FORMATS if (kind, f) != ("rankings", "trl")]) for kind in KINDS
        ],
    }
    return render(request, "labeling/data.html", context, status=status)


def counts_of(project: Project) -> dict[str, dict[str, int]]:
    """How many rows people, imports and simulations have brought in."""
    prompts = Prompt.objects.filter(project=project)
    return {
        "prompts": prompts.aggregate(all=Count("pk"), holdout=Count("pk", Q(split=Prompt.Split.HOLDOUT))),
        "demonstrations": Demonstration.objects.filter(project=project).aggregate(
            all=Count("pk"), human=Count("pk", Q(source="human"))
        ),
        "rankings": Ranking.objects.filter(project=project).aggregate(
            all=Count("pk"), simulated=Count("pk", Q(source="simulated"))
        ),
    }


@require_http_methods(["GET", "POST"])
@role_required(Role.MANAGER)
def data_import(request: MemberRequest) -> HttpResponse:
    if request.method == "GET":  # the language was switched, or one signed in again, on a page with a refused file
        return redirect("data", request.project.slug)
    form = ImportForm(request.POST, request.FILES)
    if not form.is_valid():
        return _page(request, form, status=422)
    given = form.cleaned_data
    try:
        with _on_disk(given["file"]) as path:
            made, is_new = import_or_find(
                project=request.project, kind=given["kind"], name=given["file"].name, path=path, by=request.user,
                split=given["split"], weight=given["weight"], documents=given["documents"],
                ignore_unknown=given["ignore_unknown"],
            )  # fmt: skip
    except (ImportFailed, LabelingError) as problem:
        return _page(request, form, str(problem), status=422)
    if is_new:
        said = ngettext("%(name)s is in: %(rows)s row.", "%(name)s is in: %(rows)s rows.", made.rows)
    else:
        said = _("%(name)s was there already; nothing has changed.")
    messages.success(request, said % {"name": made.name, "rows": number(made.rows)})
    return redirect("data", request.project.slug)


@contextmanager
def _on_disk(file: "UploadedFile[Any]") -> Iterator[Path]:
    """The upload as a file; a small one is kept in memory by Django."""
    if isinstance(file, TemporaryUploadedFile):
        yield Path(file.temporary_file_path())
        return
    with tempfile.NamedTemporaryFile() as aside:
        for chunk in file.chunks():
            aside.write(chunk)
        aside.flush()
        yield Path(aside.name)


@require_POST
@role_required(Role.MANAGER)
def data_weight(request: MemberRequest, pk: int) -> HttpResponse:
    """The share of a text in the next pretraining."""
    text = get_object_or_404(Dataset, pk=pk, project=request.project, kind=Dataset.Kind.CORPUS)
    form = WeightForm(request.POST)
    if form.is_valid():
        text.weight = form.cleaned_data["weight"]
        text.save(update_fields=["weight"])
    else:
        messages.error(request, _("%(name)s: the weight must be a number above 0, at most 1000.") % {"name": text.name})
    return redirect("data", request.project.slug)


@require_GET
@role_required(Role.MANAGER)  # type: ignore[arg-type]  # a file is a response too
def data_export(request: MemberRequest, kind: str, format: str) -> HttpResponse | FileResponse:
    if kind not in KINDS or format not in FORMATS:
        raise Http404
    file = tempfile.TemporaryFile()  # noqa: SIM115 (the response closes it)
    text = io.TextIOWrapper(cast(IO[Any], file), encoding="utf-8", write_through=True)
    try:
        write_rows(request.project, kind, format, text)
    except LabelingError as problem:
        messages.error(request, str(problem))
        return redirect("data", request.project.slug)
    text.detach()
    file.seek(0)
    trl = "-trl" if format == "trl" else ""
    name = f"{request.project.slug}-{kind}{trl}-{localdate():%Y-%m-%d}.jsonl"
    return FileResponse(file, as_attachment=True, filename=name, content_type="application/x-ndjson")
