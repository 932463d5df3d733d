"""manage.py compare: policies and baselines of a project side by side, by the same reference, judge and prompts."""

from typing import Any

from django.core.management import CommandParser

from labeling.compare import Comparison, Row, compare, evaluate_missing
from registry.commands import ReportCommand
from registry.services import find_model, find_project

COLUMNS = ("win_rate", "win_rate_low", "win_rate_high", "reward", "kl", "length", "eos_share")


class Command(ReportCommand):
    help = "Show what was trained from one model, by whichever method, beside simple baselines."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--project", required=True)
        parser.add_argument("--reference", metavar="MODEL", help="default: what the newest policy began with")
        parser.add_argument("--reward-model", metavar="MODEL", help="the judge; default: the newest policy's")
        parser.add_argument("--evaluate", action="store_true", help="queue an evaluation for every row without figures")

    def report(self, **options: Any) -> tuple[dict[str, Any], str]:
        project = find_project(options["project"])
        reference, judge = (
            find_model(options[name], project) if options[name] else None for name in ("reference", "reward_model")
        )
        comparison = compare(project, reference, judge)
        started = evaluate_missing(comparison) if options["evaluate"] else []
        said = {**_describe(comparison), "started": [run.pk for run in started]}
        return said, _table(comparison)


def _describe(comparison: Comparison) -> dict[str, Any]:
    protocol = comparison.protocol
    if protocol is None:
        return {"reference": None, "judge": None, "rows": []}
    return {
        "reference": protocol.reference.name,
        "judge": protocol.judge.name,
        "sampling": protocol.sampling,
        "prompts_sha256": protocol.prompts or None,
        "judged_by_its_teacher": comparison.judged_by_its_teacher,
        "rows": [_row(row) for row in comparison.rows],
    }


def _row(row: Row) -> dict[str, Any]:
    seconds = (row.made_by.result or {}).get("seconds") if row.made_by else None
    made = {"model": row.model and row.model.name, "run": row.made_by and row.made_by.pk, "seconds": seconds}
    measured = {"evaluation": row.measured_by and row.measured_by.pk, "missing": row.is_missing}
    return {"method": row.method, **made, **measured, "other_rankings": row.other_rankings, **row.figures}


def _table(comparison: Comparison) -> str:
    lines = [f"{'method':<20}{'model':<12}" + "".join(f"{name:>15}" for name in COLUMNS)]
    for row in comparison.rows:
        figures = [row.figures.get(name) for name in COLUMNS]
        written = "".join(f"{'-' if value is None else f'{value:.3f}':>15}" for value in figures)
        lines.append(f"{row.method:<20}{row.model.name if row.model else '-':<12}{written}")
    return "\n".join(lines)
