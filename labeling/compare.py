"""Policies and baselines of one origin side by side: the same reference, judge, prompts and sampling for all."""

import dataclasses
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _

from accounts.models import Project, User
from labeling.errors import LabelingError
from labeling.stages import freeze_inputs, start_stage
from registry.models import Dataset, ModelVersion, Run
from training.config import STAGES

Stage, Status = Run.Stage, Run.Status
TRAINED = (Stage.PPO, Stage.GRPO, Stage.DPO, Stage.REJECTION)
# What evaluations must share to stand in one table; best of n has two of these settings.
SAMPLING = ("samples_per_prompt", "temperature", "max_new_tokens", "seed")
SHARED = ("temperature", "max_new_tokens")
OWN = {"reward": "reward", "length": "length", "eos_share": "eos"}  # a row's figure: an evaluation's, by side


@dataclass(frozen=True)
class Protocol:
    """How every row is measured; `prompts` is the sha256 of the rows asked, empty while nothing was measured."""

    reference: ModelVersion
    judge: ModelVersion
    sampling: dict[str, Any]
    prompts: str


@dataclass(frozen=True)
class Row:
    """One method: the run that made it, the run that measured it, and its figures (none = not measured yet)."""

    method: str
    made_by: Run | None = None
    model: ModelVersion | None = None
    measured_by: Run | None = None
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)
    other_rankings: bool = False

    @property
    def is_missing(self) -> bool:
        """Nobody measures it: there is no run for it, or the last one failed."""
        return not self.figures and (self.measured_by is None or self.measured_by.is_over)

    @property
    def place(self) -> dict[str, str] | None:
        """Where the win rate and its interval stand on a bar from 0 to 100."""
        if "win_rate_low" not in self.figures:
            return None
        rate, low, high = (self.figures[name] for name in ("win_rate", "win_rate_low", "win_rate_high"))
        verdict = "better" if low > 0.5 else "worse" if high < 0.5 else "open"
        places = {"at": 100 * rate, "start": 100 * low, "wide": 100 * max(high - low, 0.005)}
        return {name: f"{value:.1f}" for name, value in places.items()} | {"verdict": verdict}


@dataclass(frozen=True)
class Comparison:
    """The rows of a project for one reference and judge; without a protocol there is nothing to compare yet."""

    protocol: Protocol | None
    rows: list[Row]

    @property
    def missing(self) -> list[Row]:
        return [row for row in self.rows if row.is_missing]

    @property
    def is_busy(self) -> bool:
        return any(row.measured_by and not row.measured_by.is_over for row in self.rows)

    @property
    def judged_by_its_teacher(self) -> bool:
        """Whether a policy learned from the very model that judges it here."""
        judge = self.protocol and self.protocol.judge
        return any(row.made_by and row.made_by.reward_model == judge for row in self.rows if judge)


def compare(project: Project, reference: ModelVersion | None = None, judge: ModelVersion | None = None) -> Comparison:
    """The table for a reference and a judge; by default those that the newest policy began with."""
    reference = reference or _usual(project, "base")
    judge = judge or _usual(project, "reward_model", base=reference)
    if reference is None or judge is None:
        return Comparison(None, [])
    made = list(_runs(project, stage__in=TRAINED, base=reference, status=Status.SUCCEEDED, model__isnull=False))
    evaluations = list(_runs(project, stage=Stage.EVALUATE, reference=reference, reward_model=judge))
    best = list(_runs(project, stage=Stage.BEST_OF_N, base=reference, reward_model=judge))
    protocol = _protocol(reference, judge, made, evaluations)
    measured = [run for run in evaluations if _fits(run, protocol, SAMPLING)]
    standard = _rankings_behind(judge.run)
    trained = [_trained_row(run, measured, standard) for run in made]
    trained.sort(key=lambda row: row.figures.get("win_rate", -1.0), reverse=True)
    rows = [*trained, *_best_of_n_rows([run for run in best if _fits(run, protocol, SHARED)])]
    return Comparison(protocol, [_reference_row(reference, measured), *rows] if made or best else [])


def evaluate_missing(comparison: Comparison, by: User | None = None) -> list[Run]:
    """Queue a run for every row that nobody measures, all on the same frozen prompts."""
    protocol = comparison.protocol
    if protocol is None or not comparison.missing:
        raise LabelingError(_("There is nothing to evaluate: 0 rows of the comparison are without figures."))
    project, started = protocol.reference.project, list[Run]()
    asked = _dataset(project, protocol.prompts)
    for row in comparison.missing:
        if row.model is not None:
            models = {"base": row.model, "reference": protocol.reference, "reward_model": protocol.judge}
            stage, config = Stage.EVALUATE, protocol.sampling
        else:
            models = {"base": protocol.reference, "reward_model": protocol.judge}
            stage, config = Stage.BEST_OF_N, {name: protocol.sampling[name] for name in SHARED}
        changed = {name: value for name, value in config.items() if value != _default(stage, name)}
        run = start_stage(project=project, stage=stage, by=by, config=changed, datasets=asked, **models)
        asked = asked or list(freeze_inputs(run).values())
        started.append(run)
    return started


def method_of(run: Run) -> str:
    """PPO, RLOO, DPO ...: what a run is called in the literature."""
    if run.stage == Stage.GRPO:
        return str(run.config.get("estimator", _default(run.stage, "estimator"))).upper()
    return str(run.get_stage_display())


def _runs(project: Project, **which: Any) -> "Iterable[Run]":
    found = Run.objects.filter(project=project, **which).order_by("-pk")
    return found.select_related("model", "reward_model__run", "base").prefetch_related(
        "datasets", "reward_model__run__datasets"
    )


def _usual(project: Project, name: str, **which: Any) -> ModelVersion | None:
    """What the newest finished run of a method began with, else the newest model of that kind."""
    runs = Run.objects.filter(project=project, stage__in=[*TRAINED, Stage.BEST_OF_N], status=Status.SUCCEEDED, **which)
    newest = runs.exclude(**{f"{name}__isnull": True}).select_related(name).order_by("-pk").first()
    if newest is not None:
        return getattr(newest, name)  # type: ignore[no-any-return]
    kind = ModelVersion.Kind.REWARD if name == "reward_model" else ModelVersion.Kind.SFT
    return ModelVersion.objects.filter(project=project, kind=kind).order_by("-pk").first()


def _protocol(reference: ModelVersion, judge: ModelVersion, made: list[Run], evaluations: list[Run]) -> Protocol:
    """The sampling and prompts that most evaluations share (the newest where that is open).

    Where nothing was measured yet: two answers a prompt, sampled as the newest policy was in its training.
    """
    lost = {Status.FAILED, Status.CANCELLED}
    kept = [run for run in evaluations if run.status not in lost and _asked(run)]
    seen = Counter((tuple(_sampling(run, SAMPLING).items()), _asked(run)) for run in kept)
    if seen:
        sampling, prompts = seen.most_common(1)[0][0]
        return Protocol(reference, judge, dict(sampling), prompts)
    newest = next((run for run in made if run.stage != Stage.DPO), None)
    own = _sampling(newest, SHARED) if newest else {}
    defaults = {name: _default(Stage.EVALUATE, name) for name in SAMPLING}
    return Protocol(reference, judge, {**defaults, "samples_per_prompt": 2, **own}, "")


def _fits(run: Run, protocol: Protocol, names: Iterable[str]) -> bool:
    """Whether a run measures as the table does; one in the queue may not have frozen its prompts yet."""
    same = all(value == protocol.sampling[name] for name, value in _sampling(run, names).items())
    return same and _asked(run) in ({protocol.prompts} if run.is_over else {protocol.prompts, ""})


def _sampling(run: Run, names: Iterable[str]) -> dict[str, Any]:
    return {name: run.config.get(name, _default(run.stage, name)) for name in names}


def _default(stage: str, name: str) -> Any:
    return next(field.default for field in dataclasses.fields(STAGES[stage]) if field.name == name)


def _asked(run: Run) -> str:
    return next((d.sha256 for d in run.datasets.all() if d.manifest.get("role") == "prompts"), "")


def _dataset(project: Project, sha256: str) -> list[Dataset]:
    found = Dataset.objects.filter(project=project, kind=Dataset.Kind.PROMPTS, sha256=sha256, manifest__role="prompts")
    return list(found.order_by("-pk")[:1]) if sha256 else []


def _trained_row(run: Run, evaluations: list[Run], standard: frozenset[int]) -> Row:
    mine = [each for each in evaluations if each.base_id == run.model.pk]
    measured = next((each for each in mine if each.status == Status.SUCCEEDED), mine[0] if mine else None)
    figures = _figures(measured.result, "new") if measured and measured.status == Status.SUCCEEDED else {}
    learned_by = run if run.stage == Stage.DPO else getattr(run.reward_model, "run", None)
    behind = _rankings_behind(learned_by)
    other = bool(behind and standard and behind != standard)
    return Row(method_of(run), run, run.model, measured, figures, other)


def _figures(result: dict[str, Any], side: str) -> dict[str, Any]:
    """The figures of one side of an evaluation, under the names that all rows share."""
    figures = {name: result.get(f"{theirs}_{side}") for name, theirs in OWN.items()}
    if side == "new":
        figures |= {name: result[name] for name in ("win_rate", "win_rate_low", "win_rate_high", "kl")}
    return figures


def _reference_row(reference: ModelVersion, evaluations: list[Run]) -> Row:
    """What everything is measured against: half of the wins and no KL, by definition."""
    measured = next((run for run in evaluations if run.status == Status.SUCCEEDED), None)
    figures = _figures(measured.result, "old") if measured else {"reward": None}
    return Row(_("Reference"), None, reference, measured, {"win_rate": 0.5, "kl": 0.0, **figures})


def _best_of_n_rows(runs: list[Run]) -> list[Row]:
    """A row per n of the newest finished run; one without figures where there is none."""
    done = next((run for run in runs if run.status == Status.SUCCEEDED), None)
    if done is None:
        return [Row(_("Best of n"), None, None, runs[0] if runs else None)]
    rows: list[Row] = []
    for entry in done.result.get("by_n", []):
        if entry["n"] > 1:
            names = ("win_rate", "win_rate_low", "win_rate_high", "kl", "length", "eos_share", "n")
            figures = {"reward": entry["score"], **{name: entry[name] for name in names}}
            rows.append(Row(_("Best of %(n)d") % {"n": entry["n"]}, None, None, done, figures))
    return rows


def _rankings_behind(run: Run | None) -> frozenset[int]:
    """Ids of the rankings that a reward or DPO run learned from; none where it is not known."""
    if run is None:
        return frozenset()
    data = next((d for d in run.datasets.all() if d.manifest.get("role") == "data"), None)
    return frozenset(data.manifest.get("rankings", [])) if data else frozenset()
