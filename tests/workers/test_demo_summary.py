"""The figures of the demo come from what was stored, by the hidden utility, and are complete."""

import json
from pathlib import Path
from typing import Any

import pytest

from accounts.models import Project
from labeling import world
from labeling.exports import freeze
from labeling.models import Round
from registry.models import Run, Sample
from tests.make import make_model, make_run
from workers.demo_summary import ORDER, summarise, table

RESULTS: dict[str, dict[str, float]] = {
    "pretrain": {"tokens_per_s": 1234.5, "val_loss": 1.25},
    "sft": {"val_loss": 1.5},
    "reward": {"val_accuracy": 0.7},
    "ppo": {},
    "evaluate": {"kl": 3.5},
}
QUESTIONS = [p.text for p in world.prompts(1, 5, "es", split="holdout")]


def _finished(project: Project) -> Round:
    runs = {stage: make_run(project, stage, status="succeeded", result=figures) for stage, figures in RESULTS.items()}
    make_model(project, "policy", run=runs["ppo"])
    rows = [{"prompt": QUESTIONS[0], "responses": ["a\u2028b", "c"], "ranking": [0, 1]}]
    held_out = freeze(project, "rankings", rows, {"role": "val"})
    runs["reward"].datasets.add(held_out)
    return Round.objects.create(
        project=project, number=1, status="promoted", policy=make_model(project), reward_run=runs["reward"],
        ppo_run=runs["ppo"], evaluate_run=runs["evaluate"],
    )  # fmt: skip


def _samples() -> list[dict[str, Any]]:
    return [{"prompt": question, "old": "zzz\u2028", "new": "Con gusto te lo digo."} for question in QUESTIONS]


@pytest.fixture
def round(project: Project, settings: Any, tmp_path: Path) -> Round:
    settings.ARTIFACTS = tmp_path
    return _finished(project)


def test_all_figures_of_the_file_are_there(project: Project, round: Round) -> None:
    for position, values in enumerate(_samples()):
        Sample.objects.create(run=round.evaluate_run, position=position, values=values)
    summary = summarise(project, round, 61.23, 2)
    assert set(ORDER) <= set(summary)
    named = {"seconds": 61.2, "val_loss": 1.25, "sft_loss": 1.5, "rm_accuracy": 0.7, "kl": 3.5, "seed": 2}
    assert {name: summary[name] for name in named} == named
    assert 0 <= summary["win_rate_low"] <= summary["win_rate"] <= summary["win_rate_high"] <= 1
    assert (summary["comparisons"], summary["model"], len(summary["examples"])) == (5, "policy-1", 3)
    assert json.loads(json.dumps(summary)) == summary
    shown = table(summary)
    assert all(example["new"] in shown for example in summary["examples"])


def test_equal_answers_count_half(project: Project, round: Round) -> None:
    for position, values in enumerate(_samples()):
        Sample.objects.create(run=round.evaluate_run, position=position, values={**values, "new": values["old"]})
    summary = summarise(project, round, 1.0, 1)
    assert summary["win_rate"] == 0.5
    assert summary["utility_before"] == summary["utility_after"]


def test_samples_are_read_from_the_run_where_the_database_has_none(project: Project, round: Round) -> None:
    folder = round.evaluate_run.directory
    folder.mkdir(parents=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in _samples()]
    (folder / "samples.jsonl").write_text("".join(lines), encoding="utf-8")
    assert summarise(project, round, 1.0, 1)["comparisons"] == 5


def test_the_rounds_own_runs_count_not_an_earlier_try(project: Project, round: Round) -> None:
    for values in _samples():
        Sample.objects.create(run=round.evaluate_run, position=0, values=values)
        break
    again = make_run(project, "reward", status="succeeded", result={"val_accuracy": 0.9})
    again.datasets.set(round.reward_run.datasets.all())
    Round.objects.update(reward_run=again)
    round.refresh_from_db()
    assert Run.objects.filter(stage="reward").count() == 2
    assert summarise(project, round, 1.0, 1)["rm_accuracy"] == 0.9
