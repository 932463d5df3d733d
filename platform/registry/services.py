"""Starting and cancelling runs, promoting models: what people ask for."""

import dataclasses
from typing import Any

from django.db import transaction
from django.db.models import Max
from django.utils.timezone import now
from django.utils.translation import gettext as _

from accounts.models import Project, User
from registry.bell import ring_on_commit
from registry.models import Dataset, Deployment, ModelVersion, Run
from training.config import STAGES, ConfigError
from training.parse import parse

# Settings that name files: the platform fills them in from a run's inputs, people choose the rest.
FILLED_IN = {
    "tokenizer", "files", "sources", "base", "data", "val", "demonstrations", "prompts", "reward_model", "judge_model",
    "new", "old"
}  # fmt: skip


class RegistryError(Exception):
    """What was asked for cannot be done: one sentence with the next step."""


def settings_of(stage: str) -> list["dataclasses.Field[Any]"]:
    """The fields of a stage that people may set, in order."""
    return [f for f in dataclasses.fields(STAGES[stage]) if f.name not in FILLED_IN]


def check_settings(stage: str, config: dict[str, Any]) -> None:
    """Raise RegistryError where a setting is unknown or out of range; nothing has been written then."""
    filled = {f.name: "filled in" for f in dataclasses.fields(STAGES[stage]) if f.metadata.get("required")}
    if "sources" in filled:
        filled["sources"] = [{"path": "filled in", "weight": 1.0}]  # type: ignore[assignment]
    if config.get("ptx_coef"):
        filled["demonstrations"] = "filled in"
    known = {f.name for f in settings_of(stage)}
    if hidden := (set(config) & FILLED_IN) - known:
        raise RegistryError(
            _("%(setting)s is chosen by the platform from the run's inputs: leave it out.")
            % {"setting": sorted(hidden)[0]}
        )
    try:
        parse(stage, {**filled, **config})
    except ConfigError as error:
        raise RegistryError(str(error)) from error


@transaction.atomic
def start_run(
    *,
    project: Project,
    stage: str,
    config: dict[str, Any] | None = None,
    tokenizer: ModelVersion | None = None,
    base: ModelVersion | None = None,
    reference: ModelVersion | None = None,
    reward_model: ModelVersion | None = None,
    datasets: list[Dataset] | None = None,
    by: User | None = None,
) -> Run:
    """Queue a run; a worker is told of it when the transaction is committed."""
    config = config or {}
    check_settings(stage, config)
    for given in (tokenizer, base, reference, reward_model, *(datasets or [])):
        if given is not None and given.project_id != project.pk:
            raise RegistryError(
                _("%(name)s belongs to another project: choose one of %(project)s.")
                % {"name": given.name, "project": project.name}
            )
    run = Run.objects.create(
        project=project, stage=stage, config=config, tokenizer=tokenizer, base=base, reference=reference,
        reward_model=reward_model, created_by=by, rung_at=now(),
    )  # fmt: skip
    run.datasets.set(datasets or [])
    ring_on_commit("workers.train", run.pk)
    return run


def cancel_run(run: Run) -> bool:
    """A queued run ends at once, a running one at its worker's next look; False if it was already over."""
    at_once = (
        Run.objects.queued()
        .filter(pk=run.pk)
        .update(status=Run.Status.CANCELLED, cancel_requested=True, finished_at=now())
    )
    if at_once:
        return True
    return bool(Run.objects.filter(pk=run.pk, status=Run.Status.RUNNING).update(cancel_requested=True))


def register_model(
    *,
    project: Project,
    kind: str,
    path: str,
    sha256: str,
    parameters: int,
    run: Run | None = None,
    parent: ModelVersion | None = None,
    figures: dict[str, Any] | None = None,
) -> ModelVersion:
    """Enter an artifact under the next free number of its kind. Call inside a transaction."""
    Project.objects.select_for_update().get(pk=project.pk)  # two runs ending at once get two numbers
    last = ModelVersion.objects.filter(project=project, kind=kind).aggregate(last=Max("number"))["last"] or 0
    return ModelVersion.objects.create(
        project=project, kind=kind, number=last + 1, path=path, sha256=sha256, parameters=parameters,
        run=run, parent=parent, figures=figures or {},
    )  # fmt: skip


def live_model(project: Project) -> ModelVersion | None:
    """The model that answers and writes the next round's completions: the newest promotion."""
    newest = Deployment.objects.filter(project=project).select_related("model").first()
    return newest.model if newest else None


@transaction.atomic
def promote(*, model: ModelVersion, by: User | None = None) -> Deployment:
    """Move the pointer: from now on this model is live."""
    if not model.can_write:
        raise RegistryError(
            _("%(name)s is of kind '%(kind)s' and cannot write text: promote a policy.")
            % {"name": model.name, "kind": model.get_kind_display()}
        )
    deployment = Deployment.objects.create(project=model.project, model=model, promoted_by=by)
    ring_on_commit("workers.serve.warm", model.pk)
    return deployment


def find_model(text: str, project: Project | None = None) -> ModelVersion:
    """A model by "policy-3" or "town/policy-3"; raises RegistryError with the names there are."""
    slug, _sep, name = text.rpartition("/")
    kind, _sep, number = name.rpartition("-")
    models = ModelVersion.objects.filter(kind=kind, number=int(number) if number.isdecimal() else 0)
    if project is not None:
        models = models.filter(project=project)
    if slug:
        models = models.filter(project__slug=slug)
    found = list(models.select_related("project")[:3])
    if len(found) == 1:
        return found[0]
    if found:
        raise RegistryError(
            _("%(n)d projects have a %(name)s: write %(slug)s/%(name)s.")
            % {"n": len(found), "name": name, "slug": found[0].project.slug}
        )
    known = ModelVersion.objects.filter(**({"project": project} if project else {}))[:6]
    names = ", ".join(f"{m.project.slug}/{m.name}" for m in known.select_related("project"))
    raise RegistryError(
        _("There is no model '%(name)s'; there are: %(known)s.") % {"name": text, "known": names or _("none yet")}
    )


def find_project(slug: str) -> Project:
    project = Project.objects.filter(slug=slug).first()
    if project is None:
        known = ", ".join(Project.objects.values_list("slug", flat=True)[:8])
        raise RegistryError(
            _("There is no project '%(slug)s'; there are: %(known)s.") % {"slug": slug, "known": known or _("none yet")}
        )
    return project
