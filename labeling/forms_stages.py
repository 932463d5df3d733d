"""The form of a new run, made from the stage's own settings."""

import dataclasses
import typing
from types import UnionType
from typing import Any

from django import forms
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from accounts.models import Project
from labeling.stages import OPTIONAL, choices_for, corpora, default_input
from registry.models import Dataset, ModelVersion
from registry.services import settings_of
from training.config import STAGES

INPUT_LABELS: dict[str, Any] = {
    "tokenizer": _("Tokenizer"),
    "base": _("Start from"),
    "reference": _("Old policy"),
    "reward_model": _("Reward model"),
}
# Where an input means something else than its name says.
STAGE_LABELS: dict[tuple[str, str], Any] = {
    ("evaluate", "base"): _("New policy"),
    ("ppo", "reference"): _("Judge, a reward model of other rankings"),
}
LABELS: dict[str, Any] = {
    "accuracy": _("Accuracy"),
    "batch_size": _("Batch size"),
    "beta": _("Price of KL (beta)"),
    "beta2": _("AdamW beta 2"),
    "checkpoint_every": _("Steps between checkpoints"),
    "cliprange": _("Clip range of the policy"),
    "cliprange_value": _("Clip range of the value"),
    "compile": _("Compile the network"),
    "device": _("Device"),
    "devices": _("Number of devices"),
    "document_mask": _("Documents kept apart"),
    "dropout": _("Dropout"),
    "encoding": _("Named encoding"),
    "epochs": _("Passes over the data"),
    "estimator": _("Estimator"),
    "gamma": _("Discount (gamma)"),
    "grad_accum": _("Gradient accumulation"),
    "grad_clip": _("Gradient clipping"),
    "group_size": _("Answers per prompt"),
    "judge_patience": _("Patience of the judge"),
    "keep_checkpoints": _("Checkpoints that are kept"),
    "kl_coef": _("Price of KL"),
    "kl_budget": _("KL budget"),
    "kl_samples": _("Answers for the final KL"),
    "kl_horizon": _("Horizon of the KL price"),
    "kl_snapshots": _("Distance between kept policies"),
    "kl_target": _("Target KL"),
    "label_smoothing": _("Label smoothing"),
    "lam": _("Lambda of the advantage estimate"),
    "learning_rate": _("Learning rate"),
    "log_every": _("Steps between points of the curves"),
    "max_new_tokens": _("Longest answer in tokens"),
    "min_comparisons": _("Fewest comparisons"),
    "min_lr_ratio": _("Final learning rate (share)"),
    "minibatches": _("Minibatches"),
    "missing_eos_penalty": _("Penalty for an answer that does not end"),
    "n": _("Answers per prompt"),
    "n_embd": _("Width"),
    "n_head": _("Attention heads"),
    "n_layer": _("Blocks"),
    "n_positions": _("Context length in tokens"),
    "norm": _("LayerNorm"),
    "packing": _("Pack short demonstrations"),
    "pairing": _("Company of a comparison"),
    "pool": _("Answers written per prompt"),
    "positions": _("Position embeddings"),
    "precision": _("Precision"),
    "preset": _("Size of the model"),
    "sample_every": _("Steps between samples"),
    "sample_prompt": _("How samples begin"),
    "sample_tokens": _("Length of a sample in tokens"),
    "ptx_coef": _("Weight of the demonstrations"),
    "save_best": _("Keep the best step's model"),
    "samples_per_prompt": _("Answers per prompt"),
    "score_clip": _("Largest score"),
    "scale_scores": _("Scale the scores"),
    "seed": _("Seed"),
    "sharded": _("Spread over the devices"),
    "steps": _("Steps"),
    "target_kl": _("KL at which an update ends early"),
    "temperature": _("Temperature"),
    "threads": _("CPU threads"),
    "tie_head": _("Tied head"),
    "top_k": _("Top-k"),
    "top_p": _("Top-p"),
    "updates": _("Updates"),
    "val_batches": _("Batches of a validation"),
    "val_every": _("Steps between validations"),
    "val_fraction": _("Share kept for validation"),
    "value_learning_rate": _("Learning rate of the value model"),
    "value_warmup": _("Updates that warm up the value model"),
    "vf_coef": _("Weight of the value loss"),
    "vocab_size": _("Size of the vocabulary"),
    "warmup_steps": _("Warm-up steps"),
    "weight_decay": _("Weight decay"),
    "whiten_rewards": _("Whiten rewards"),
    "write_batch": _("Answers at once"),
}
# Shown at once; everything else is folded away.
BASIC = {
    "tokenizer": ["vocab_size", "encoding"],
    "pretrain": ["preset", "steps", "batch_size", "learning_rate", "seed"],
    "sft": ["epochs", "batch_size", "learning_rate", "seed"],
    "reward": ["epochs", "batch_size", "learning_rate", "min_comparisons", "seed"],
    "ppo": ["updates", "batch_size", "learning_rate", "kl_coef", "max_new_tokens", "seed"],
    "dpo": ["epochs", "batch_size", "learning_rate", "beta", "seed"],
    "grpo": ["estimator", "updates", "batch_size", "group_size", "learning_rate", "kl_coef", "max_new_tokens", "seed"],
    "rejection": ["n", "epochs", "batch_size", "learning_rate", "max_new_tokens", "seed"],
    "best_of_n": ["n", "temperature", "max_new_tokens", "seed"],
    "evaluate": ["samples_per_prompt", "temperature", "max_new_tokens", "seed"],
}
UNSET = ""
# What an optional input is without a choice.
EMPTY: dict[tuple[str, str], Any] = {("pretrain", "base"): _("random weights"), ("ppo", "reference"): _("none")}


class ModelChoice(forms.ModelChoiceField):  # type: ignore[type-arg]
    def label_from_instance(self, obj: ModelVersion) -> str:
        return f"{obj.name} · {obj.get_kind_display()}"


class StageForm(forms.Form):
    """Inputs as selects, the usual ones chosen; of the settings only those that differ from the defaults are kept."""

    def __init__(self, *args: Any, project: Project, stage: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stage = stage
        self.inputs, self.chosen = [], settings_of(stage)
        for name, models in choices_for(project, stage).items():
            self.fields[f"in_{name}"] = self._input(project, name, models)
            self.inputs.append(f"in_{name}")
        if stage in {"tokenizer", "pretrain"}:
            self.fields["in_datasets"] = _texts(project)
            self.inputs.append("in_datasets")
        hints = typing.get_type_hints(STAGES[stage])
        for setting in self.chosen:
            self.fields[setting.name] = control(setting, hints[setting.name])

    def _input(self, project: Project, name: str, models: Any) -> ModelChoice:
        optional = (self.stage, name) in OPTIONAL
        return ModelChoice(
            queryset=models,
            label=STAGE_LABELS.get((self.stage, name), INPUT_LABELS[name]),
            required=False,
            empty_label=EMPTY.get((self.stage, name), _("the usual one")),
            initial=None if optional else default_input(project, self.stage, name),
        )

    def basic(self) -> list[forms.BoundField]:
        return [self[name] for name in BASIC[self.stage] if name in self.fields]

    def advanced(self) -> list[forms.BoundField]:
        return [self[f.name] for f in self.chosen if f.name not in BASIC[self.stage]]

    def advanced_wrong(self) -> bool:
        """Whether a mistake hides in the folded part."""
        return any(field.errors for field in self.advanced())

    def input_fields(self) -> list[forms.BoundField]:
        return [self[name] for name in self.inputs]

    def config(self) -> dict[str, Any]:
        """What was chosen otherwise than the default."""
        given = {f.name: self.cleaned_data[f.name] for f in self.chosen}
        defaults = {f.name: f.default for f in self.chosen}
        return {name: value for name, value in given.items() if value != defaults[name] and value not in (None, UNSET)}

    def models(self) -> dict[str, ModelVersion | None]:
        return {name[3:]: self.cleaned_data[name] for name in self.inputs if name != "in_datasets"}

    def datasets(self) -> list[Dataset]:
        return list(self.cleaned_data.get("in_datasets") or [])


class Texts(forms.ModelMultipleChoiceField):  # type: ignore[type-arg]
    def label_from_instance(self, obj: Dataset) -> str:
        return obj.name


def _texts(project: Project) -> Texts:
    found = corpora(project)
    return Texts(
        queryset=found, label=_("Texts"), initial=found, required=False, widget=forms.CheckboxSelectMultiple,
        help_text=_("None chosen means all of them, in the mixture of the data page."),
    )  # fmt: skip


def control(setting: "dataclasses.Field[Any]", hint: Any) -> forms.Field:
    """A form field with the limits of a setting; empty stands for the default."""
    kinds = typing.get_args(hint) if isinstance(hint, UnionType) else (hint,)
    limits = setting.metadata
    common: dict[str, Any] = {
        "label": LABELS.get(setting.name, setting.name.replace("_", " ").capitalize()),
        "help_text": gettext(limits["help"]),
        "initial": setting.default,
        "required": False,
    }
    if "choices" in limits:
        choices = [(c, c or _("none: learn it from the texts")) for c in limits["choices"]]
        if type(None) in kinds:
            choices.insert(0, (UNSET, _("as the preset")))
        return forms.ChoiceField(choices=choices, **common)
    if bool in kinds and type(None) in kinds:
        yes_or_no = [(UNSET, _("as the preset")), ("true", _("yes")), ("false", _("no"))]
        return forms.TypedChoiceField(choices=yes_or_no, coerce=lambda v: v == "true", empty_value=None, **common)
    if bool in kinds:
        return forms.BooleanField(**common)
    if str in kinds:
        return forms.CharField(max_length=500, **common)
    kind = forms.FloatField if float in kinds else forms.IntegerField
    field = kind(min_value=limits.get("low"), max_value=limits.get("high"), localize=False, **common)
    if type(None) in kinds:
        field.widget.attrs["placeholder"] = gettext("as the preset")
    if kind is forms.FloatField:
        field.widget.attrs["step"] = "any"
    return field
