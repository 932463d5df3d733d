"""Starting a training stage from what a project has: sensible inputs, and a sentence where something is missing."""

from typing import Any

from django.db.models import QuerySet
from django.utils.translation import gettext as _

from accounts.models import Project, User
from labeling import exports
from labeling.errors import LabelingError
from labeling.models import Prompt
from registry.models import Dataset, ModelVersion, Run
from registry.services import live_model, start_run

Kind = ModelVersion.Kind
# Which kinds of model may be given to a stage, the usual one first.
ACCEPTS: dict[str, dict[str, list[str]]] = {
    "tokenizer": {},
    "pretrain": {"tokenizer": [Kind.TOKENIZER], "base": [Kind.BASE]},
    "sft": {"base": [Kind.BASE, Kind.SFT, Kind.POLICY]},
    "reward": {"base": [Kind.SFT, Kind.POLICY, Kind.BASE]},
    "ppo": {"base": [Kind.SFT, Kind.POLICY], "reward_model": [Kind.REWARD], "reference": [Kind.REWARD]},
    "dpo": {"base": [Kind.SFT, Kind.POLICY]},
    "grpo": {"base": [Kind.SFT, Kind.POLICY], "reward_model": [Kind.REWARD]},
    "rejection": {"base": [Kind.SFT, Kind.POLICY], "reward_model": [Kind.REWARD]},
    "best_of_n": {"base": [Kind.SFT, Kind.POLICY, Kind.BASE], "reward_model": [Kind.REWARD]},
    "evaluate": {
        "base": [Kind.POLICY, Kind.SFT, Kind.BASE],
        "reference": [Kind.SFT, Kind.POLICY, Kind.BASE],
        "reward_model": [Kind.REWARD],
    },
}
OPTIONAL = {("pretrain", "base"), ("ppo", "reference")}
# Stages that go on from the model people judged: the live one.
FROM_LIVE = {"reward", "ppo", "dpo", "grpo", "rejection", "best_of_n"}


def choices_for(project: Project, stage: str) -> dict[str, QuerySet[ModelVersion]]:
    """What may be picked for each input of a stage, newest first."""
    return {
        name: ModelVersion.objects.filter(project=project, kind__in=kinds).order_by("-pk")
        for name, kinds in ACCEPTS[stage].items()
    }


def default_input(project: Project, stage: str, name: str) -> ModelVersion | None:
    """The live model where it fits, else the newest of the usual kind."""
    kinds = ACCEPTS[stage][name]
    live = live_model(project)
    if stage in FROM_LIVE and name == "base" and live is not None and live.kind in kinds:
        return live
    for kind in kinds:
        newest = ModelVersion.objects.filter(project=project, kind=kind).order_by("-number").first()
        if newest is not None:
            return newest
    return None


def start_stage(
    *,
    project: Project,
    stage: str,
    by: User | None = None,
    config: dict[str, Any] | None = None,
    datasets: list[Dataset] | None = None,
    **chosen: ModelVersion | None,
) -> Run:
    """Queue a stage with the models given, or the usual ones; raises LabelingError where something is missing."""
    if unused := [name for name in chosen if chosen[name] is not None and name not in ACCEPTS[stage]]:
        raise LabelingError(
            _("Stage %(stage)s does not use a %(input)s: leave it out.") % {"stage": stage, "input": unused[0]}
        )
    inputs: dict[str, Any] = {}
    for name, kinds in ACCEPTS[stage].items():
        model = chosen.get(name)
        if model is None and (stage, name) not in OPTIONAL:
            model = default_input(project, stage, name)
            if model is None:
                raise LabelingError(
                    _("There is no %(kind)s in this project yet: train one first, or choose another model.")
                    % {"kind": Kind(kinds[0]).label}
                )
        if model is not None and model.kind not in kinds:
            raise LabelingError(
                _("%(name)s cannot be the %(input)s of stage %(stage)s: choose one of kind %(kinds)s.")
                % {"name": model.name, "input": name, "stage": stage, "kinds": ", ".join(kinds)}
            )
        inputs[name] = model
    check_data(project, stage, config or {})
    if stage in {"tokenizer", "pretrain"} and not datasets:
        datasets = list(corpora(project))
    return start_run(project=project, stage=stage, config=config, datasets=datasets, by=by, **inputs)


def corpora(project: Project) -> QuerySet[Dataset]:
    return Dataset.objects.filter(project=project, kind=Dataset.Kind.CORPUS).order_by("pk")


def check_data(project: Project, stage: str, config: dict[str, Any] | None = None) -> None:
    """Raise a sentence now instead of a failed run later."""
    config = config or {}
    needs_text = stage == "pretrain" or (stage == "tokenizer" and not config.get("encoding"))
    if needs_text and not corpora(project).exists():
        raise LabelingError(_("There is no corpus in this project yet: add a text file on the data page."))
    if (stage == "sft" or config.get("ptx_coef")) and not exports.demonstrations(project).exists():
        raise LabelingError(_("There are no demonstrations yet: write some, or import a file on the data page."))
    if stage in {"reward", "dpo"} and not exports.rankings(project).exists():
        raise LabelingError(_("There are no rankings yet: open a round and rank, or import a file on the data page."))
    if stage in {"ppo", "grpo", "rejection"} and not exports.prompts(project, Prompt.Split.TRAIN).exists():
        raise LabelingError(_("There are no training prompts yet: add some on the data page."))
    if stage in {"evaluate", "best_of_n"} and not exports.prompts(project).exists():
        raise LabelingError(_("There are no prompts yet: add some on the data page."))


def freeze_inputs(run: Run) -> dict[str, Dataset]:
    """The datasets a run trains on, frozen at its first attempt and the same at every later one."""
    frozen = {d.manifest["role"]: d for d in run.datasets.all() if d.manifest.get("role") and d.rows}
    if frozen or run.stage in {"tokenizer", "pretrain"}:
        return frozen
    project, by = run.project, run.created_by
    if run.stage == "sft":
        frozen["data"] = exports.freeze_demonstrations(project, by)
    elif run.stage == "reward":
        frozen["data"] = exports.freeze_rankings(project, validation=False, by=by)
        frozen["val"] = exports.freeze_rankings(project, validation=True, by=by)
        frozen["demonstrations"] = exports.freeze_demonstrations(project, by)
    elif run.stage == "dpo":
        frozen["data"] = exports.freeze_rankings(project, validation=False, by=by)
        frozen["val"] = exports.freeze_rankings(project, validation=True, by=by)
    elif run.stage in {"ppo", "grpo", "rejection"}:
        frozen["prompts"] = exports.freeze_prompts(project, Prompt.Split.TRAIN, by)
        if run.config.get("ptx_coef"):
            frozen["demonstrations"] = exports.freeze_demonstrations(project, by)
    elif run.stage in {"evaluate", "best_of_n"}:
        split = Prompt.Split.HOLDOUT if exports.prompts(project, Prompt.Split.HOLDOUT).exists() else Prompt.Split.TRAIN
        frozen["prompts"] = exports.freeze_prompts(project, split, by)
    for role, dataset in frozen.items():
        dataset.manifest["role"] = role
        dataset.save(update_fields=["manifest"])
    run.datasets.add(*frozen.values())
    return {role: dataset for role, dataset in frozen.items() if dataset.rows}
