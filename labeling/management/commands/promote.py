"""manage.py promote: make a model the live one."""

from typing import Any

from django.core.management import CommandParser

from labeling.models import Round
from labeling.rounds import current_round, promote_round
from registry.commands import ReportCommand
from registry.services import find_model, find_project, promote


class Command(ReportCommand):
    help = "Make a model the live one: it answers and writes the next round's completions."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("model", help="a name such as policy-3")
        parser.add_argument("--project", required=True)

    def report(self, **options: Any) -> tuple[dict[str, Any], str]:
        project = find_project(options["project"])
        model = find_model(options["model"], project)
        round = current_round(project)
        if round is not None and round.status == Round.Status.AWAITING_APPROVAL and round.candidate == model:
            promote_round(round)
        else:
            promote(model=model)
        return {"project": project.slug, "live": model.name}, f"{model.name} is live in {project.slug}."
