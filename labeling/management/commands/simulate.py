"""manage.py simulate: simulated annotators rank what waits."""

from typing import Any

from django.core.management import CommandParser

from labeling.simulation import simulate
from registry.commands import ReportCommand
from registry.services import find_project


class Command(ReportCommand):
    help = "Let simulated annotators rank all open tasks of the small world; their rankings are marked as simulated."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--project", required=True)
        parser.add_argument("--annotators", type=int, default=3)
        parser.add_argument("--noise", type=float, default=0.25, help="share of comparisons judged wrongly")
        parser.add_argument("--seed", type=int, default=0)

    def report(self, **options: Any) -> tuple[dict[str, Any], str]:
        project = find_project(options["project"])
        count = simulate(project, options["annotators"], options["noise"], options["seed"])
        return (
            {"project": project.slug, "simulated_rankings": count},
            f"{count} simulated rankings in {project.slug}.",
        )
