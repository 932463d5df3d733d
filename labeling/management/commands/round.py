"""manage.py round: open, close, reject a round, or say how it stands."""

import time
from collections.abc import Callable
from typing import Any

from django.core.management import CommandParser

from labeling import rounds
from labeling.errors import LabelingError
from labeling.management.commands.train import parse_setting
from labeling.models import Round
from registry.commands import ReportCommand
from registry.health import missing_queues
from registry.services import find_model, find_project

ACTIONS: dict[str, Callable[[Round], Round]] = {
    "close": rounds.close_round,
    "retry": rounds.retry_round,
    "reopen": rounds.reopen_ranking,
    "continue": rounds.continue_anyway,
    "promote": rounds.promote_round,
    "reject": rounds.reject_round,
}


PLANNED = ("reward", "ppo", "evaluate")


class Command(ReportCommand):
    help = "Open, close or look at a round of the feedback loop."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("action", choices=["open", "status", *ACTIONS])
        parser.add_argument("--project", required=True)
        parser.add_argument("--policy", metavar="MODEL", help="default: the live model")
        parser.add_argument("--prompts", type=int, default=40)
        parser.add_argument("--k", type=int, default=4, help="completions per prompt")
        parser.add_argument("--overlap", type=int, default=1, help="rankings per prompt")
        parser.add_argument("--temperature", type=float, default=1.0)
        parser.add_argument("--top-p", type=float, default=1.0)
        parser.add_argument("--max-new-tokens", type=int, default=48)
        parser.add_argument("--min-accuracy", type=float, default=0.55, help="the reward model's gate")
        parser.add_argument(
            "--set", metavar="STAGE.KEY=VALUE", nargs="+", action="extend", default=[],
            help="a setting of a run this round starts, such as ppo.updates=40",
        )  # fmt: skip
        parser.add_argument("--seed", type=int)
        parser.add_argument("--wait", action="store_true", help="return when people, or a manager, are next")

    def report(self, **options: Any) -> tuple[dict[str, Any], str]:
        project = find_project(options["project"])
        if options["action"] == "open":
            round = rounds.open_round(
                project=project, prompts=options["prompts"], k=options["k"], overlap=options["overlap"],
                policy=find_model(options["policy"], project) if options["policy"] else None, seed=options["seed"],
                plan=parse_plan(options["set"]), min_accuracy=options["min_accuracy"],
                sampling={name: options[name] for name in ("temperature", "top_p", "max_new_tokens")},
            )  # fmt: skip
        else:
            found = rounds.current_round(project)
            if found is None and options["action"] == "status":
                found = Round.objects.filter(project=project).first()
            if found is None:
                raise LabelingError(f"No round is open in {project.slug}: open one with `manage.py round open`.")
            round = found
            if options["action"] in ACTIONS:
                ACTIONS[options["action"]](round)
        if options["wait"]:
            self.wait(round)
        round.refresh_from_db()
        said = describe(round)
        return said, ", ".join(f"{name} {value}" for name, value in said.items() if value not in (None, "", {}))

    def wait(self, round: Round) -> None:
        """Until nobody but a person can take the next step."""
        busy = {Round.Status.GENERATING, Round.Status.TRAINING_REWARD, Round.Status.OPTIMIZING, Round.Status.EVALUATING}
        said = ""
        while round.status in busy and not round.error:
            missing = missing_queues()
            now_said = f"round {round.number}: {round.status}" + (f"; no worker for {missing}" if missing else "")
            if now_said != said:
                self.progress(now_said)
                said = now_said
            time.sleep(0.5)
            round.refresh_from_db()


def parse_plan(texts: list[str]) -> dict[str, dict[str, Any]]:
    """{"ppo": {"updates": 40}} from ["ppo.updates=40"]."""
    plan: dict[str, dict[str, Any]] = {}
    for text in texts:
        stage, dot, setting = text.partition(".")
        if not dot or stage not in PLANNED:
            raise LabelingError(f"--set {text}: write it as STAGE.KEY=VALUE with a stage of {', '.join(PLANNED)}.")
        key, value = parse_setting(stage, setting)
        plan.setdefault(stage, {})[key] = value
    return plan


def describe(round: Round) -> dict[str, Any]:
    return {
        "round": round.number,
        "status": round.status,
        "error": round.error,
        "policy": round.policy.name,
        "reward_model": round.reward_model and round.reward_model.name,
        "candidate": round.candidate and round.candidate.name,
        "evaluation": round.evaluation,
        **rounds.progress(round),
    }
