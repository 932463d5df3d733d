"""Forms of rounds and of the playground."""

from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from accounts.models import Project
from labeling.models import Prompt
from registry.models import ModelVersion
from registry.services import live_model, settings_of


class WriterChoice(forms.ModelChoiceField):  # type: ignore[type-arg]
    """A model that can write, newest first; the live one is marked."""

    live: ModelVersion | None = None

    def label_from_instance(self, obj: ModelVersion) -> str:
        mark = f" · {_('live')}" if self.live == obj else ""
        return f"{obj.name} · {obj.get_kind_display()}{mark}"


def writers(project: Project, label: Any, initial: ModelVersion | None = None, **more: Any) -> WriterChoice:
    kinds = [ModelVersion.Kind.POLICY, ModelVersion.Kind.SFT, ModelVersion.Kind.BASE]
    found = ModelVersion.objects.filter(project=project, kind__in=kinds).order_by("-pk")
    field = WriterChoice(queryset=found, label=label, initial=initial or live_model(project) or found.first(), **more)
    field.live = live_model(project)
    return field


def number(label: Any, initial: float, low: float, high: float, whole: bool = True, help_text: Any = "") -> forms.Field:
    kind = forms.IntegerField if whole else forms.FloatField
    field = kind(label=label, initial=initial, min_value=low, max_value=high, help_text=help_text)  # type: ignore[arg-type]
    if not whole:
        field.widget.attrs["step"] = "any"
    field.widget.attrs["inputmode"] = "numeric" if whole else "decimal"
    return field


def default(stage: str, name: str) -> Any:
    return next(setting.default for setting in settings_of(stage) if setting.name == name)


class SamplingForm(forms.Form):
    """How texts are sampled."""

    temperature = number(_("Temperature"), 1.0, 0, 10, whole=False)
    top_p = number(_("Top-p"), 1.0, 0, 1, whole=False)
    max_new_tokens = number(_("Longest answer in tokens"), 48, 1, 4096)

    def sampling(self) -> dict[str, Any]:
        return {name: self.cleaned_data[name] for name in ("temperature", "top_p", "max_new_tokens")}


class RoundForm(SamplingForm):
    prompts = number(_("Prompts"), 40, 1, 100_000)
    k = number(_("Completions per prompt"), 4, 2, 9, help_text=_("K completions give K·(K−1)/2 comparisons."))
    overlap = number(_("Rankings per prompt"), 1, 1, 20, help_text=_("How many people rank the same completions."))
    min_accuracy = number(
        _("Reward model's gate"), 0.55, 0, 1, whole=False,
        help_text=_("A reward model that orders fewer held-out pairs rightly does not steer PPO."),
    )  # fmt: skip
    ppo_updates = number(_("PPO updates"), default("ppo", "updates"), 1, 100_000)
    ppo_kl_coef = number(_("Price of KL"), default("ppo", "kl_coef"), 0, 100, whole=False)
    ppo_learning_rate = number(_("PPO learning rate"), default("ppo", "learning_rate"), 0, 1, whole=False)
    reward_epochs = number(_("Passes over the rankings"), default("reward", "epochs"), 1, 100)

    def __init__(self, *args: Any, project: Project, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["policy"] = writers(project, _("Model that writes"))
        self.available = Prompt.objects.filter(project=project, split=Prompt.Split.TRAIN).count()
        self.fields["prompts"].initial = min(40, self.available)
        self.fields["prompts"].help_text = _("%(n)d training prompts are there.") % {"n": self.available}

    def plan(self) -> dict[str, dict[str, Any]]:
        """The settings of the round's runs, where they differ from the defaults."""
        plan: dict[str, dict[str, Any]] = {}
        for name in ("ppo_updates", "ppo_kl_coef", "ppo_learning_rate", "reward_epochs"):
            stage, _sep, setting = name.partition("_")
            if self.cleaned_data[name] != self.fields[name].initial:
                plan.setdefault(stage, {})[setting] = self.cleaned_data[name]
        new_tokens = self.cleaned_data["max_new_tokens"]
        for stage in ("ppo", "evaluate"):
            plan.setdefault(stage, {})["max_new_tokens"] = new_tokens
        return plan

    def basic(self) -> list[forms.BoundField]:
        return [self[name] for name in ("policy", "prompts", "k", "overlap")]

    def writing(self) -> list[forms.BoundField]:
        return [self[name] for name in ("temperature", "top_p", "max_new_tokens")]

    def learning_wrong(self) -> bool:
        """Whether a mistake hides in the folded part."""
        return any(field.errors for field in self.learning())

    def learning(self) -> list[forms.BoundField]:
        return [
            self[name] for name in ("min_accuracy", "reward_epochs", "ppo_updates", "ppo_kl_coef", "ppo_learning_rate")
        ]


class PlaygroundForm(SamplingForm):
    prompt = forms.CharField(label=_("Prompt"), max_length=20_000, widget=forms.Textarea(attrs={"rows": 3}))
    seed = forms.IntegerField(
        label=_("Seed"), min_value=0, max_value=2**31 - 1, required=False, help_text=_("Empty: another one every time.")
    )

    def __init__(self, *args: Any, project: Project, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        live = live_model(project)
        self.fields["left"] = writers(project, _("First model"))
        other = self.fields["left"].queryset.exclude(pk=live.pk if live else None).first()  # type: ignore[attr-defined]
        self.fields["right"] = writers(project, _("Second model"), initial=other, required=False, empty_label=_("none"))
