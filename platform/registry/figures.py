"""What the figures of runs and models are called, and how people read them."""

import math
from dataclasses import dataclass
from typing import Any

from django.utils.formats import number_format
from django.utils.functional import Promise
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

NUMBER, PERCENT, COUNT, RATE, SECONDS = "number", "percent", "count", "rate", "seconds"

NOTHING = 1e-7  # what is smaller is the rounding of a float

# name: (label, form)
FIGURES: dict[str, tuple[str | Promise, str]] = {
    "loss": (_("Loss"), NUMBER),
    "train_loss": (_("Training loss"), NUMBER),
    "n": (_("Best of"), COUNT),
    "val_loss": (_("Validation loss"), NUMBER),
    "val_bits_per_byte": (_("Validation bits per byte"), NUMBER),
    "best_val_loss": (_("Best validation loss"), NUMBER),
    "lr": (_("Learning rate"), NUMBER),
    "learning_rate": (_("Learning rate"), NUMBER),
    "grad_norm": (_("Gradient norm"), NUMBER),
    "value_grad_norm": (_("Gradient norm of the value model"), NUMBER),
    "learned_share": (_("Tokens that are learned"), PERCENT),
    "tokens": (_("Tokens"), COUNT),
    "tokens_per_s": (_("Tokens per second"), RATE),
    "samples_per_s": (_("Samples per second"), RATE),
    "seconds": (_("Duration"), SECONDS),
    "vocab_size": (_("Vocabulary"), COUNT),
    "bytes_per_token": (_("Bytes per token"), NUMBER),
    "bytes_per_token_by_text": (_("Bytes per token of each text"), NUMBER),
    "read_mb": (_("Megabytes read"), COUNT),
    "encoded_mb": (_("Megabytes encoded"), COUNT),
    "parameters": (_("Parameters"), COUNT),
    "epoch": (_("Pass over the data"), NUMBER),
    "accuracy": (_("Accuracy"), PERCENT),
    "val_accuracy": (_("Accuracy on held-out pairs"), PERCENT),
    "val_accuracy_low": (_("Accuracy, lower bound (95 %)"), PERCENT),
    "val_accuracy_high": (_("Accuracy, upper bound (95 %)"), PERCENT),
    "val_pairs": (_("Held-out pairs"), COUNT),
    "comparisons": (_("Comparisons"), COUNT),
    "length_baseline": (_("Accuracy of “the longer answer wins”"), PERCENT),
    "calibration_error": (_("Calibration error"), PERCENT),
    "mean_on_demonstrations": (_("Mean reward of demonstrations"), NUMBER),
    "reward_std": (_("Spread of rewards"), NUMBER),
    "reward": (_("Reward with KL price"), NUMBER),
    "reward_best": (_("Implicit reward, best answers"), NUMBER),
    "reward_mean": (_("Implicit reward, all answers"), NUMBER),
    "margin": (_("Implicit reward, better minus worse"), NUMBER),
    "reward_before": (_("Reward with KL price, at first"), NUMBER),
    "score": (_("Reward model's score"), NUMBER),
    "score_best": (_("Reward model's score, best answers"), NUMBER),
    "score_spread": (_("Spread of scores among a prompt's answers"), NUMBER),
    "score_before": (_("Reward model's score, at first"), NUMBER),
    "updates": (_("Updates"), COUNT),
    "episodes": (_("Answers sampled"), COUNT),
    "answers": (_("Answers written"), COUNT),
    "skipped_too_long": (_("Prompts left out as too long"), COUNT),
    "kl": (_("KL from the reference"), NUMBER),
    "kl_bound": (_("KL, log n - (n - 1) / n"), NUMBER),
    "kl_coef": (_("Price of KL"), NUMBER),
    "entropy": (_("Entropy"), NUMBER),
    "clipfrac": (_("Share of clipped steps"), PERCENT),
    "approx_kl": (_("Approximate KL of a step"), NUMBER),
    "value_loss": (_("Value loss"), NUMBER),
    "policy_loss": (_("Policy loss"), NUMBER),
    "ratio_first": (_("First ratio (must be 1)"), NUMBER),
    "explained_variance": (_("Explained variance"), PERCENT),
    "eos_share": (_("Answers that end"), PERCENT),
    "length": (_("Answer length in tokens"), NUMBER),
    "reward_new": (_("Reward, new policy"), NUMBER),
    "reward_old": (_("Reward, old policy"), NUMBER),
    "win_rate": (_("Win rate"), PERCENT),
    "win_rate_low": (_("Win rate, lower bound (95 %)"), PERCENT),
    "win_rate_high": (_("Win rate, upper bound (95 %)"), PERCENT),
    "length_new": (_("Answer length, new"), NUMBER),
    "length_old": (_("Answer length, old"), NUMBER),
    "eos_new": (_("Answers that end, new"), PERCENT),
    "eos_old": (_("Answers that end, old"), PERCENT),
    "prompts": (_("Prompts"), COUNT),
    "kl_k1": (_("KL, the estimate that is charged"), NUMBER),
    "judge_score": (_("Judge's score"), NUMBER),
    "judge_score_before": (_("Judge's score, at first"), NUMBER),
    "model_update": (_("Updates behind the model"), COUNT),
    "stopped_by_judge": (_("Ended by its judge"), NUMBER),
    "stopped_by_kl_budget": (_("Ended by its KL budget"), NUMBER),
    "sampler_gap": (_("Sampler against trainer, log-probabilities"), NUMBER),
    "seconds_rollout": (_("Seconds of sampling"), NUMBER),
    "seconds_scoring": (_("Seconds of scoring"), NUMBER),
    "seconds_update": (_("Seconds of learning"), NUMBER),
    "rankings": (_("Rankings"), COUNT),
    "train_pairs": (_("Comparisons learned from"), COUNT),
    "rows": (_("Rows learned from"), COUNT),
    "val_rows": (_("Held-out rows"), COUNT),
    "steps": (_("Steps"), COUNT),
    "hash": (_("Vocabulary's hash"), NUMBER),
}

# The figures that say most about a stage, best first.
HEADLINES = {
    "tokenizer": ["vocab_size", "bytes_per_token"],
    "pretrain": ["val_loss", "loss", "tokens_per_s"],
    "sft": ["val_loss", "loss", "tokens_per_s"],
    "reward": ["val_accuracy", "loss", "val_pairs"],
    "ppo": ["score", "kl", "reward"],
    "dpo": ["val_accuracy", "kl", "val_loss"],
    "grpo": ["score", "kl", "reward"],
    "rejection": ["score", "kl", "score_best"],
    "best_of_n": ["score", "kl", "n"],
    "evaluate": ["win_rate", "reward_new", "kl"],
}


# While a run works: the figures of its metrics.
LIVE = {
    "pretrain": ["loss", "val_loss", "tokens_per_s"],
    "sft": ["loss", "val_loss", "tokens_per_s"],
    "reward": ["loss", "accuracy"],
    "ppo": ["score", "kl", "entropy", "eos_share"],
    "dpo": ["loss", "accuracy", "margin"],
    "grpo": ["score", "kl", "entropy", "eos_share"],
    "rejection": ["score", "score_best", "loss"],
    "best_of_n": ["score", "score_best"],
}


@dataclass(frozen=True)
class Curve:
    """One chart: the figures that are drawn together."""

    keys: list[str]
    title: str | Promise
    main: bool = True


CURVES = [
    Curve(["loss", "val_loss"], _("Loss")),
    Curve(["score", "score_best", "reward", "judge_score"], _("Reward")),
    Curve(["margin"], _("Implicit reward, better minus worse")),
    Curve(["reward_best", "reward_mean"], _("Implicit reward")),
    Curve(["accuracy", "val_accuracy"], _("Accuracy")),
    Curve(["kl"], _("KL from the reference")),
    Curve(["entropy"], _("Entropy")),
    Curve(["length"], _("Answer length in tokens")),
    Curve(["eos_share"], _("Answers that end")),
    Curve(["tokens_per_s"], _("Tokens per second"), main=False),
    Curve(["lr", "learning_rate"], _("Learning rate"), main=False),
    Curve(["policy_loss"], _("Policy loss"), main=False),
    Curve(["value_loss"], _("Value loss"), main=False),
    Curve(["score_spread"], _("Spread of scores among a prompt's answers"), main=False),
    Curve(["clipfrac"], _("Share of clipped steps"), main=False),
    Curve(["approx_kl"], _("Approximate KL of a step"), main=False),
    Curve(["kl_coef"], _("Price of KL"), main=False),
    Curve(["seconds_rollout", "seconds_scoring", "seconds_update"], _("Seconds of an update"), main=False),
    Curve(["sampler_gap"], _("Sampler against trainer, log-probabilities"), main=False),
]


def charts() -> list[dict[str, Any]]:
    """What the page's script draws: titles and labels in the reader's language."""
    return [
        {
            "title": str(curve.title),
            "main": curve.main,
            "series": [{"key": key, "label": label(key), "percent": form(key) == PERCENT} for key in curve.keys],
        }
        for curve in CURVES
    ]


def label(key: str) -> str:
    return str(FIGURES[key][0]) if key in FIGURES else key.replace("_", " ").capitalize()


def form(key: str) -> str:
    return FIGURES[key][1] if key in FIGURES else NUMBER


def shown(key: str, value: Any) -> str:
    """A figure as people read it, in the language that is active."""
    if isinstance(value, bool):
        return gettext("yes") if value else gettext("no")
    if isinstance(value, dict):
        return ", ".join(f"{name}: {shown(name, each)}" for name, each in value.items())
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return "–" if value is None or isinstance(value, float) else str(value)
    return {PERCENT: percent, COUNT: compact, RATE: compact, SECONDS: duration}.get(form(key), number)(value)


def number(value: float) -> str:
    """Three significant digits: 0.0012, 3.14, 127, 12,300."""
    size = abs(value)
    if size < NOTHING or float(value).is_integer():
        return number_format(int(value), force_grouping=True)
    if size < 0.001:
        mantissa, _e, exponent = f"{value:.1e}".partition("e")
        return f"{number_format(mantissa)}e{int(exponent)}"
    digits = max(0, 2 - math.floor(math.log10(size)))
    exact = f"{value:.{digits}f}"
    digits = len(exact.rstrip("0").partition(".")[2])  # 0.900 says no more than 0.9
    return number_format(exact, decimal_pos=digits, force_grouping=True)


def percent(value: float) -> str:
    digits = 0 if value in {0, 1} else 1
    # Rounded first: number_format only cuts off.
    return gettext("%(number)s%%") % {"number": number_format(f"{100 * value:.{digits}f}", decimal_pos=digits)}


def compact(value: float) -> str:
    """1,234 · 56.7 k · 1.24 M: exact while it is short."""
    for limit, unit, letter, digits in ((1e9, 1e9, "G", 2), (1e6, 1e6, "M", 2), (1e4, 1e3, "k", 1)):
        if abs(value) >= limit:
            return f"{number_format(f'{value / unit:.{digits}f}', decimal_pos=digits)}\N{NO-BREAK SPACE}{letter}"
    return number_format(round(value), force_grouping=True)


def duration(seconds: float) -> str:
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}\N{NO-BREAK SPACE}s"
    if seconds < 3600:
        return gettext("%(minutes)d min %(seconds)d s") % {"minutes": seconds // 60, "seconds": seconds % 60}
    return gettext("%(hours)d h %(minutes)d min") % {"hours": seconds // 3600, "minutes": seconds % 3600 // 60}


def table(values: dict[str, Any]) -> list[tuple[str, str]]:
    """(label, value) of every figure, those with a known name first."""
    known = [key for key in FIGURES if key in values]
    rest = [key for key in values if key not in FIGURES and isinstance(values[key], (int, float, str, bool))]
    return [(label(key), shown(key, values[key])) for key in [*known, *rest]]


def live_headline(stage: str, shown_figures: dict[str, str]) -> list[tuple[str, str, str]]:
    """(key, label, value) of the figures a run shows large while it works."""
    return [(key, label(key), shown_figures.get(key, "–")) for key in LIVE.get(stage, [])]


def headline(stage: str, values: dict[str, Any], most: int = 2) -> list[tuple[str, str]]:
    keys = [key for key in HEADLINES.get(stage, []) if values.get(key) is not None]
    return [(label(key), shown(key, values[key])) for key in keys[:most]]
