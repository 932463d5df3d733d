"""The built-in small world, from raw text to a promoted policy: every step through the services that people use.

Each step looks first whether it has been done, so that an interrupted demo goes on where it stopped.
"""

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from django.conf import settings
from django.utils.text import slugify

from accounts.models import Membership, Project, Role
from accounts.services import add_member, create_project
from labeling import rounds, world
from labeling.imports import import_file
from labeling.models import Round
from labeling.simulation import simulate
from labeling.stages import start_stage
from labeling.world import recipe
from registry.health import missing_queues
from registry.models import Dataset, Metric, ModelVersion, Run
from registry.services import RegistryError, live_model, promote

PEOPLE = {"alice": Role.MANAGER, "bob": Role.ANNOTATOR, "dana": Role.ANNOTATOR, "rita": Role.REVIEWER}
MISSING_FOR = 60.0  # seconds a worker may be away before the demo gives up
SAY_EVERY = 5.0  # seconds between two lines about the same step

Say = Callable[[str], None]


def folder() -> Path:
    return Path(settings.BUCLE_HOME) / "demo"


NAMES = {"es": "La plaza", "en": "The market"}


def project_for(seed: int, language: str = "es") -> Project:
    name = NAMES[language] if seed == 1 else f"{NAMES[language]} ({seed})"
    slug = slugify(NAMES[language]) + ("" if seed == 1 else f"-{seed}")
    found = Project.objects.filter(slug=slug).first()
    return found or create_project(name=name, slug=slug)


def people(project: Project, password: str = "") -> dict[str, str]:
    """alice, bob, dana and rita with their passwords, kept where only the owner of this home can read them."""
    file = folder() / "passwords.json"
    passwords: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    for name, role in PEOPLE.items():
        if Membership.objects.filter(project=project, user__username=name).exists():
            continue
        membership, made = add_member(project=project, username=name, role=role)
        if made and password:
            membership.user.set_password(password)
            membership.user.save()
        if made:
            passwords[name] = password or made
    file.touch(mode=0o600)
    file.write_text(json.dumps(passwords))
    return passwords


def data(project: Project, seed: int, language: str) -> None:
    """Text, questions and demonstrations of the small world, through the importer."""
    kinds = Dataset.Kind
    have = set(Dataset.objects.filter(project=project).values_list("name", flat=True))
    if "town.txt" not in have:
        text = "\n\n".join(world.corpus(seed, recipe.CHARACTERS, language)) + "\n"
        _import(project, kinds.CORPUS, "town.txt", text, documents="paragraphs")
    questions = world.prompts(seed, recipe.PROMPTS["train"], language, split="train")
    left_to_people = {question.text for question in questions[: recipe.LEFT_TO_WRITE]}
    if "demonstrations.jsonl" not in have:
        shown = world.demonstrations(seed, recipe.DEMONSTRATIONS, language)
        rows = [
            {"instruction": row["instruction"], "response": row["response"]}
            for row in shown
            if row["instruction"] not in left_to_people
        ]
        _import(project, kinds.DEMONSTRATIONS, "demonstrations.jsonl", _jsonl(rows))
    for split, name in (("train", "prompts.jsonl"), ("holdout", "held-out.jsonl")):
        if name not in have:
            drawn = world.prompts(seed, recipe.PROMPTS[split], language, split=split)
            _import(project, kinds.PROMPTS, name, _jsonl({"prompt": p.text} for p in drawn), split=split)


def _jsonl(rows: Iterable[dict[str, str]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _import(project: Project, kind: str, name: str, text: str, **options: Any) -> None:
    path = folder() / project.slug / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    import_file(project=project, kind=kind, path=path, name=name, by=None, **options)


def stage(project: Project, name: str, config: dict[str, Any], say: Say) -> Run:
    """The project's finished run of a stage, else a new one, watched to its end."""
    done = Run.objects.filter(project=project, stage=name).exclude(status__in=["failed", "cancelled"]).last()
    run = done or start_stage(project=project, stage=name, config=config)
    return wait_for(run, say)


def wait_for(run: Run, say: Say) -> Run:
    told_at = missing_since = 0.0
    while not run.is_over:
        time.sleep(0.3)
        run.refresh_from_db()
        missing_since = _still_missing("train", missing_since)
        if time.monotonic() - told_at > SAY_EVERY and run.steps:
            say(f"    {run.stage}: step {run.step} of {run.steps}{_latest(run)}")
            told_at = time.monotonic()
    if run.status != Run.Status.SUCCEEDED:
        raise RegistryError(f"The {run.stage} run {run.status}: {run.error or 'no reason was given'}")
    return run


def _still_missing(queue: str, since: float) -> float:
    """When the queue's worker was first seen missing (0: it is there); raises when that is too long ago."""
    if queue not in missing_queues():
        return 0.0
    since = since or time.monotonic()
    if time.monotonic() - since > MISSING_FOR:
        log = settings.BUCLE_HOME / "logs" / f"{queue}.log"
        raise RegistryError(f"No {queue} worker for {MISSING_FOR:.0f} seconds: look at {log}.")
    return since


def _latest(run: Run) -> str:
    metric = Metric.objects.filter(run=run).last()
    names = ("loss", "val_loss", "reward", "score", "kl", "tokens_per_s")
    shown = [(name, metric.values[name]) for name in names if metric and name in metric.values]
    return "".join(f", {name} {value:.3g}" if value < 1000 else f", {name} {value:,.0f}" for name, value in shown)


def one_round(project: Project, seed: int, say: Say) -> Round:
    """Completions, simulated rankings, reward model, PPO, evaluation, promotion."""
    done = Round.objects.filter(project=project, number=1).first()
    round = done or rounds.open_round(
        project=project, seed=seed, **recipe.ROUND,
        plan={"reward": {"seed": seed, **recipe.REWARD}, "ppo": {"seed": seed, **recipe.PPO},
              "evaluate": {"seed": seed, **recipe.EVALUATE}},
    )  # fmt: skip
    watch = {Round.Status.GENERATING: "serve"}
    said = ""
    missing_since = told_at = 0.0
    while not round.is_over:
        if round.error:
            raise RegistryError(f"Round {round.number} stands still ({round.status}): {round.error}")
        if round.status == Round.Status.RANKING:
            count = simulate(project, **recipe.ANNOTATORS, seed=seed)
            say(f"    {count} simulated rankings")
            rounds.close_round(round)
        elif round.status == Round.Status.AWAITING_APPROVAL:
            rounds.promote_round(round)
        missing_since = _still_missing(watch.get(Round.Status(round.status), "train"), missing_since)
        news = _news(round)
        if news != said and (time.monotonic() - told_at > SAY_EVERY or news.split(":")[0] != said.split(":")[0]):
            say(f"    {news}")
            said, told_at = news, time.monotonic()
        time.sleep(0.3)
        round.refresh_from_db()
    return round


def _news(round: Round) -> str:
    if round.status == Round.Status.GENERATING:
        counted = rounds.progress(round)
        return f"{round.status}: {counted['completions_done']} of {counted['completions']} completions"
    run = {
        Round.Status.TRAINING_REWARD: round.reward_run,
        Round.Status.OPTIMIZING: round.ppo_run,
        Round.Status.EVALUATING: round.evaluate_run,
    }.get(Round.Status(round.status))
    if run is None or not run.steps:
        return str(round.status)
    return f"{round.status}: step {run.step} of {run.steps}{_latest(run)}"


def loop(seed: int, language: str, say: Say) -> tuple[Project, Round]:
    """The whole circle."""
    project = project_for(seed, language)
    say("1/6  Text: a market town is written")
    people(project)
    data(project, seed, language)
    say("2/6  Tokens: a vocabulary is learned")
    stage(project, "tokenizer", recipe.TOKENIZER, say)
    say("3/6  Pretraining: the model learns to continue text")
    stage(project, "pretrain", {"seed": seed, **recipe.PRETRAIN}, say)
    say("4/6  Demonstrations: the model learns to answer")
    stage(project, "sft", {"seed": seed, **recipe.SFT}, say)
    if live_model(project) is None:
        promote(model=ModelVersion.objects.filter(project=project, kind=ModelVersion.Kind.SFT).earliest("pk"))
    say("5/6  The round: completions, rankings, reward model, PPO, evaluation")
    round = one_round(project, seed, say)
    say("6/6  Figures; and the promoted policy writes the next round, for you to rank")
    if rounds.current_round(project) is None and round.status == Round.Status.PROMOTED:
        rounds.open_round(project=project, **recipe.NEXT_ROUND)
    return project, round
