"""A stage starts from what the project has, or says what is missing; what it trains on is frozen once."""

from pathlib import Path
from typing import Any

import pytest

from accounts.models import Project, User
from labeling.errors import LabelingError
from labeling.models import Demonstration, Ranking
from labeling.stages import ACCEPTS, choices_for, freeze_inputs, start_stage
from registry.models import Dataset, Run
from registry.services import promote
from tests.make import ids, make_model, make_prompt, make_task


@pytest.fixture(autouse=True)
def _own_artifacts(artifacts: Path) -> None: ...


def _corpus(project: Project, name: str = "town.txt") -> Dataset:
    return Dataset.objects.create(project=project, kind="corpus", name=name, path=name, sha256="0")


def _demonstrate(project: Project, text: str = "¿Sube?", split: str = "train", response: str = "Sí.") -> Demonstration:
    return Demonstration.objects.create(project=project, prompt=make_prompt(project, text, split), response=response)


def _rank(project: Project) -> Ranking:
    task = make_task(project)
    return Ranking.objects.create(project=project, task=task, tiers=[[pk] for pk in ids(task)])


def test_every_stage_of_the_platform_has_its_inputs() -> None:
    assert set(ACCEPTS) == set(Run.Stage.values)


def test_text_stages_take_all_corpora_unless_told_which(project: Project, other_project: Project) -> None:
    one, two = _corpus(project), _corpus(project, "tales.txt")
    _corpus(other_project)
    make_model(project, "tokenizer")
    assert set(start_stage(project=project, stage="pretrain").datasets.all()) == {one, two}
    assert set(start_stage(project=project, stage="tokenizer", datasets=[two]).datasets.all()) == {two}


def test_a_named_encoding_needs_no_text(project: Project) -> None:
    run = start_stage(project=project, stage="tokenizer", config={"encoding": "gpt2"})
    assert run.config == {"encoding": "gpt2"}
    with pytest.raises(LabelingError):
        start_stage(project=project, stage="tokenizer")


@pytest.mark.parametrize("stage", Run.Stage.values)
def test_an_empty_project_starts_nothing_and_says_why(project: Project, stage: str) -> None:
    with pytest.raises(LabelingError, match=r".{20,}[.]$"):
        start_stage(project=project, stage=stage)
    assert not Run.objects.exists()


def test_missing_data_is_said_before_a_run_fails(project: Project) -> None:
    for kind in ("tokenizer", "base", "sft", "reward", "policy"):
        make_model(project, kind)
    for stage in Run.Stage.values:
        with pytest.raises(LabelingError):
            start_stage(project=project, stage=stage)
    make_prompt(project, split="holdout")
    with pytest.raises(LabelingError):
        start_stage(project=project, stage="ppo")
    assert start_stage(project=project, stage="evaluate").pk


def test_held_out_judgements_are_no_training_data(project: Project) -> None:
    make_model(project, "base")
    _demonstrate(project, split="holdout")
    with pytest.raises(LabelingError):
        start_stage(project=project, stage="sft")


def test_the_newest_of_the_usual_kind_is_taken_and_the_live_one_where_it_fits(project: Project) -> None:
    old, new = make_model(project, "sft", 1), make_model(project, "sft", 2)
    make_model(project, "reward")
    make_prompt(project)
    assert start_stage(project=project, stage="ppo").base == new
    promote(model=old)
    assert start_stage(project=project, stage="ppo").base == old
    assert start_stage(project=project, stage="ppo", base=new).base == new


def test_a_model_of_the_wrong_kind_or_project_is_refused(project: Project, other_project: Project) -> None:
    _demonstrate(project)
    with pytest.raises(LabelingError, match="reward-1"):
        start_stage(project=project, stage="sft", base=make_model(project, "reward"))
    with pytest.raises(Exception, match="belongs to another project"):
        start_stage(project=project, stage="sft", base=make_model(other_project, "base"))
    assert not Run.objects.exists()


def test_choices_are_the_projects_own_models_of_the_kinds_that_fit(project: Project, other_project: Project) -> None:
    base, sft, reward = (make_model(project, kind) for kind in ("base", "sft", "reward"))
    make_model(other_project, "sft")
    found = choices_for(project, "ppo")
    assert {name: list(models) for name, models in found.items()} == {
        "base": [sft],
        "reward_model": [reward],
        "reference": [reward],
    }
    assert set(choices_for(project, "sft")["base"]) == {base, sft}


def test_inputs_are_frozen_at_the_first_attempt_and_the_same_at_the_next(project: Project, bob: User) -> None:
    make_model(project, "base")
    first = _demonstrate(project)
    run = start_stage(project=project, stage="sft", by=bob)
    frozen = freeze_inputs(run)
    _demonstrate(project, "¿Y ahora?")
    again = freeze_inputs(Run.objects.get(pk=run.pk))
    assert frozen == again
    assert list(again) == ["data"]
    assert again["data"].manifest == {"frozen": True, "role": "data", "demonstrations": [first.pk]}
    assert (again["data"].rows, again["data"].created_by) == (1, bob)
    assert Dataset.objects.count() == 1


def test_a_reward_run_is_measured_on_prompts_it_did_not_learn_from(project: Project) -> None:
    make_model(project, "sft")
    _demonstrate(project)
    ranked = {_rank(project).pk for _ in range(40)}
    frozen = freeze_inputs(start_stage(project=project, stage="reward"))
    assert set(frozen) == {"data", "val", "demonstrations"}
    learned, measured = (set(frozen[role].manifest["rankings"]) for role in ("data", "val"))
    assert learned | measured == ranked
    assert not learned & measured
    assert learned
    assert measured


def test_ppo_learns_on_training_prompts_and_evaluation_asks_the_held_out_ones(project: Project) -> None:
    make_model(project, "sft")
    make_model(project, "reward")
    train, held_out = make_prompt(project), make_prompt(project, "¿Secreto?", "holdout")
    ppo = freeze_inputs(start_stage(project=project, stage="ppo"))
    assert ppo["prompts"].manifest["prompts"] == [train.pk]
    make_model(project, "policy")
    evaluate = freeze_inputs(start_stage(project=project, stage="evaluate"))
    assert evaluate["prompts"].manifest["prompts"] == [held_out.pk]


@pytest.mark.parametrize(("stage", "split"), [("grpo", "train"), ("rejection", "train"), ("best_of_n", "holdout")])
def test_a_baseline_asks_what_its_rival_is_asked(project: Project, stage: str, split: str) -> None:
    """Those that train learn on PPO's prompts; best of n answers those of an evaluation."""
    make_model(project, "sft")
    make_model(project, "reward")
    asked = {"train": make_prompt(project), "holdout": make_prompt(project, "¿Secreto?", "holdout")}
    frozen = freeze_inputs(start_stage(project=project, stage=stage))
    assert frozen["prompts"].manifest["prompts"] == [asked[split].pk]


def test_dpo_learns_the_rankings_that_the_reward_model_learns_and_is_measured_on_the_others(project: Project) -> None:
    make_model(project, "sft")
    for _ in range(40):
        _rank(project)
    dpo, reward = (freeze_inputs(start_stage(project=project, stage=stage)) for stage in ("dpo", "reward"))
    assert set(dpo) == {"data", "val"}
    for role in dpo:
        assert dpo[role].manifest["rankings"] == reward[role].manifest["rankings"]


def test_baselines_begin_where_ppo_begins(project: Project) -> None:
    live = make_model(project, "sft", 1)
    make_model(project, "sft", 2)
    make_model(project, "reward")
    make_prompt(project)
    _rank(project)
    promote(model=live)
    for stage in ("ppo", "dpo", "grpo", "rejection", "best_of_n"):
        assert start_stage(project=project, stage=stage).base == live, stage


def test_ppo_with_demonstrations_in_its_loss_gets_them(project: Project) -> None:
    make_model(project, "sft")
    make_model(project, "reward")
    make_prompt(project, "¿Otra?")
    options: dict[str, Any] = {"project": project, "stage": "ppo", "config": {"ptx_coef": 0.5}}
    with pytest.raises(LabelingError):
        start_stage(**options)
    _demonstrate(project)
    assert set(freeze_inputs(start_stage(**options))) == {"prompts", "demonstrations"}
