"""Numbers for humans in templates."""

from typing import Any

from django import template
from django.utils.timezone import now

from registry import figures
from registry.models import ModelVersion, Run

register = template.Library()

register.filter("compact", figures.compact)
register.filter("percent", figures.percent)
register.filter("number", figures.number)
register.filter("duration", figures.duration)
register.filter("table", figures.table)


@register.filter
def unlocalized(value: float) -> str:
    """A number as an input of type number wants it: 0.5 in every language."""
    return f"{value:g}"


@register.filter
def short_sha(sha256: str) -> str:
    return sha256[:10]


@register.filter
def figure(values: dict[str, Any], key: str) -> str:
    """{{ result|figure:"win_rate" }}: as people read it, a dash where there is none."""
    return figures.shown(key, (values or {}).get(key))


@register.filter
def run_headline(run: Run) -> list[tuple[str, str]]:
    return figures.headline(run.stage, run.result)


@register.filter
def model_headline(model: ModelVersion) -> list[tuple[str, str]]:
    stages = {"tokenizer": "tokenizer", "base": "pretrain", "sft": "sft", "reward": "reward", "policy": "ppo"}
    return figures.headline(model.run.stage if model.run else stages[model.kind], model.figures)


@register.filter
def took(run: Run) -> str:
    """How long it ran, or has been running."""
    if run.started_at is None:
        return ""
    return figures.duration(((run.finished_at or now()) - run.started_at).total_seconds())
