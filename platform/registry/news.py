"""What happened to a run since a reader last looked, read from the database."""

from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import override

from registry import figures
from registry.health import missing_queues
from registry.models import Metric, Run, Sample
from registry.templatetags.figures import took

MOST = 4_000  # points of a curve sent at once; a longer run is thinned, its newest point always kept


@dataclass
class Reader:
    """How far one browser has read; a row's key grows, also where a resumed run reports a step again."""

    language: str
    metric: int = 0
    sample: int = 0


def news_of(pk: int, reader: Reader) -> dict[str, Any]:
    """The state of the run and the metrics and samples this reader has not had; moves the reader on."""
    with override(reader.language):
        run = Run.objects.select_related("model").get(pk=pk)
        metrics = list(Metric.objects.filter(run=run, pk__gt=reader.metric).order_by("step"))
        samples = list(Sample.objects.filter(run=run, pk__gt=reader.sample).order_by("position"))
        reader.metric = max([reader.metric, *(m.pk for m in metrics)])
        reader.sample = max([reader.sample, *(s.pk for s in samples)])
        return {
            "run": state_of(run, {key: value for m in metrics for key, value in m.values.items()}),
            "metrics": [{"step": m.step, **m.values} for m in thinned(metrics)],
            "samples": [{"position": s.position, **s.values} for s in samples],
            "missing": [] if run.is_over else [queue for queue in missing_queues() if queue == "train"],
        }


def state_of(run: Run, newest: dict[str, Any]) -> dict[str, Any]:
    return {
        "status": run.status,
        "label": _("Stopping …") if run.cancel_requested and not run.is_over else run.get_status_display(),
        "percent": run.percent,
        "progress": progress_of(run),
        "took": took(run),
        "error": run.error,
        "figures": {key: figures.shown(key, value) for key, value in newest.items()},
        "over": run.is_over,
    }


def progress_of(run: Run) -> str:
    if not run.steps:
        return ""
    return _("step %(step)s of %(steps)s") % {"step": figures.number(run.step), "steps": figures.number(run.steps)}


def thinned(metrics: list[Metric]) -> list[Metric]:
    stride = -(-len(metrics) // MOST) if metrics else 1
    return metrics[:-1:stride] + metrics[-1:]
