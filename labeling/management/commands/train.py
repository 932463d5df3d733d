"""manage.py train: queue a training stage, and wait for its end if asked to."""

import ast
import time
from typing import Any

from django.core.management import CommandParser

from labeling.stages import start_stage
from registry.commands import ReportCommand
from registry.health import missing_queues
from registry.models import ModelVersion, Run
from registry.services import RegistryError, find_model, find_project
from training.config import ConfigError
from training.parse import field_type


class Command(ReportCommand):
    help = "Queue a training stage; the train worker runs it."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("stage", choices=Run.Stage.values)
        parser.add_argument("--project", required=True)
        for name in ("tokenizer", "base", "reference", "reward-model"):
            parser.add_argument(f"--{name}", metavar="MODEL", help="default: the newest that fits")
        parser.add_argument("--set", metavar="KEY=VALUE", nargs="+", action="extend", default=[], help="a setting")
        parser.add_argument("--wait", action="store_true", help="return when the run is over")

    def report(self, **options: Any) -> tuple[dict[str, Any], str]:
        project = find_project(options["project"])
        inputs: dict[str, Any] = {
            name: find_model(options[name], project)
            for name in ("tokenizer", "base", "reference", "reward_model")
            if options[name]
        }
        config = dict(parse_setting(options["stage"], text) for text in options["set"])
        run = start_stage(project=project, stage=options["stage"], config=config, **inputs)
        if options["wait"]:
            run = self.wait(run)
        return describe(run), f"Run {run.pk} ({run.stage}): {run.status}. {describe(run).get('model', '')}".strip()

    def wait(self, run: Run) -> Run:
        """Until the run is over; says each few seconds how far it is, and who is missing."""
        said = ""
        while not run.is_over:
            time.sleep(0.5)
            run.refresh_from_db()
            if run.status == Run.Status.QUEUED and "train" in missing_queues():
                now_said = "No train worker is running: start one with `python manage.py up`."
            else:
                now_said = f"{run.stage} {run.status}: step {run.step} of {run.steps}" if run.steps else run.status
            if now_said != said:
                self.progress(now_said)
                said = now_said
        if run.status != Run.Status.SUCCEEDED:
            raise RegistryError(f"Run {run.pk} ({run.stage}) {run.status}: {run.error or 'no reason was given'}")
        return run


def parse_setting(stage: str, text: str) -> tuple[str, Any]:
    """key=value in the setting's own type: texts need no quotes."""
    key, equals, value = text.partition("=")
    if not equals:
        raise RegistryError(f"--set {text}: write it as key=value.")
    try:
        if field_type(stage, key) is str:
            return key, value
    except ConfigError as error:
        raise RegistryError(str(error)) from error
    try:
        return key, ast.literal_eval({"true": "True", "false": "False"}.get(value.lower(), value))
    except (ValueError, SyntaxError):
        return key, value


def describe(run: Run) -> dict[str, Any]:
    model = ModelVersion.objects.filter(run=run).first()
    said = {"run": run.pk, "stage": run.stage, "status": run.status, "result": run.result, "directory": run.directory}
    return {**said, "model": model.name} if model else said
