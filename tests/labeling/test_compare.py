"""Policies side by side: who stands in the table, by what measure, and what is still to be measured."""

from pathlib import Path
from typing import Any

import pytest

from accounts.models import Project
from labeling.compare import compare, evaluate_missing, method_of
from labeling.errors import LabelingError
from registry.models import Dataset, ModelVersion, Run
from tests.make import make_model, make_prompt, make_run, succeed


@pytest.fixture(autouse=True)
def _own_artifacts(artifacts: Path) -> None: ...


class World:
    """A reference, a reward model, and runs that made something of them."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.reference, self.judge = make_model(project, "sft"), make_model(project, "reward")
        make_prompt(project, "¿Secreto?", "holdout")

    def trained(self, stage: str, **config: Any) -> Run:
        judge = None if stage == "dpo" else self.judge
        run = make_run(self.project, stage, base=self.reference, reward_model=judge, config=config)
        return succeed(run, "policy", seconds=10.0)

    def prompts(self, sha256: str = "a" * 64) -> Dataset:
        return Dataset.objects.create(
            project=self.project,
            kind="prompts",
            name="p",
            path="p",
            sha256=sha256,
            rows=1,
            manifest={"role": "prompts"},
        )

    def evaluated(self, model: ModelVersion, win_rate: float, prompts: Dataset | None = None, **config: Any) -> Run:
        run = make_run(
            self.project, "evaluate", base=model, reference=self.reference, reward_model=self.judge, config=config
        )
        run.datasets.add(prompts or self.prompts())
        sides = {f"{name}_{side}": value for name, value in (("length", 9.0), ("eos", 0.9)) for side in ("new", "old")}
        interval = {"win_rate_low": win_rate - 0.05, "win_rate_high": win_rate + 0.05}
        return succeed(run, None, win_rate=win_rate, **interval, kl=1.0, reward_new=0.4, reward_old=0.1, **sides)


@pytest.fixture
def world(project: Project) -> World:
    return World(project)


def test_an_empty_project_has_nothing_to_compare(project: Project) -> None:
    comparison = compare(project)
    assert (comparison.protocol, comparison.rows, comparison.missing) == (None, [], [])
    with pytest.raises(LabelingError, match="nothing to evaluate"):
        evaluate_missing(comparison)


def test_the_reference_is_first_and_the_best_policy_next(world: World) -> None:
    ppo, dpo = world.trained("ppo"), world.trained("dpo")
    world.evaluated(ppo.model, 0.6)
    world.evaluated(dpo.model, 0.7)
    rows = compare(world.project).rows
    assert [row.method for row in rows] == ["Reference", "DPO", "PPO", "Best of n"]
    assert rows[0].figures == {"win_rate": 0.5, "kl": 0.0, "reward": 0.1, "length": 9.0, "eos_share": 0.9}
    assert (rows[1].figures["win_rate"], rows[1].figures["reward"], rows[1].model) == (0.7, 0.4, dpo.model)
    assert [row.is_missing for row in rows] == [False, False, False, True]


def test_methods_have_the_names_of_the_literature(project: Project) -> None:
    named = {("ppo", ""): "PPO", ("dpo", ""): "DPO", ("grpo", "grpo"): "GRPO", ("grpo", "rloo"): "RLOO"}
    for (stage, estimator), name in named.items():
        assert method_of(Run(stage=stage, config={"estimator": estimator} if estimator else {})) == name
    assert method_of(Run(stage="grpo")) == "RLOO"


def test_only_one_protocol_stands_in_a_table(world: World) -> None:
    """An evaluation with another temperature or on other prompts measures something else."""
    ppo, dpo, grpo = world.trained("ppo"), world.trained("dpo"), world.trained("grpo")
    world.evaluated(ppo.model, 0.6, temperature=0.6)
    world.evaluated(dpo.model, 0.7, temperature=0.6)
    world.evaluated(grpo.model, 0.9, temperature=1.0)
    world.evaluated(grpo.model, 0.9, world.prompts("b" * 64), temperature=0.6)
    comparison = compare(world.project)
    assert comparison.protocol is not None
    assert comparison.protocol.sampling["temperature"] == 0.6
    assert [row.method for row in comparison.missing] == ["RLOO", "Best of n"]


def test_another_base_or_project_is_another_table(world: World, other_project: Project) -> None:
    world.trained("dpo")
    other = make_model(world.project, "sft", 2)
    succeed(make_run(world.project, "ppo", base=other, reward_model=world.judge), "policy")
    stranger = World(other_project)
    stranger.trained("ppo")
    assert [row.method for row in compare(world.project, world.reference).rows] == ["Reference", "DPO", "Best of n"]
    assert [row.method for row in compare(world.project, other).rows] == ["Reference", "PPO", "Best of n"]


def test_what_is_missing_is_queued_once_on_the_same_prompts_with_the_same_sampling(world: World) -> None:
    ppo = world.trained("ppo", temperature=0.6, max_new_tokens=40)
    world.trained("dpo")
    started = evaluate_missing(compare(world.project))
    assert sorted(run.stage for run in started) == ["best_of_n", "evaluate", "evaluate"]
    sampled = {"temperature": 0.6, "max_new_tokens": 40}
    assert {run.config["temperature"] for run in started} == {0.6}
    assert next(run.config for run in started if run.stage == "best_of_n") == sampled
    assert {run.config.get("samples_per_prompt") for run in started if run.stage == "evaluate"} == {2}
    assert len({run.datasets.get().pk for run in started}) == 1
    again = compare(world.project)
    assert again.missing == []
    assert again.is_busy
    assert ppo.model in [row.model for row in again.rows]


def test_a_new_policy_is_measured_on_the_prompts_of_the_others_though_there_are_more_now(world: World) -> None:
    asked = world.prompts()
    world.evaluated(world.trained("ppo").model, 0.6, asked)
    make_prompt(world.project, "¿Otro secreto?", "holdout")
    dpo = world.trained("dpo")
    started = evaluate_missing(compare(world.project))
    measured = next(run for run in started if run.stage == "evaluate")
    assert measured.base == dpo.model
    assert list(measured.datasets.all()) == [asked]


def test_a_failed_evaluation_counts_as_missing(world: World) -> None:
    world.trained("dpo")
    for run in evaluate_missing(compare(world.project)):
        Run.objects.filter(pk=run.pk).update(status="failed", error="The disk was full (0 bytes left).")
    missing = compare(world.project).missing
    assert [row.method for row in missing] == ["DPO", "Best of n"]


def test_best_of_n_has_a_row_for_each_n(world: World) -> None:
    asked = world.prompts()
    world.evaluated(world.trained("ppo").model, 0.6, asked)
    run = make_run(world.project, "best_of_n", base=world.reference, reward_model=world.judge)
    run.datasets.add(asked)
    figures = {"win_rate_low": 0.6, "win_rate_high": 0.8, "kl": 0.3, "length": 8.0, "eos_share": 1.0}
    by_n = [{"n": n, "score": 0.1 * n, "win_rate": n / (n + 1), **figures} for n in (1, 2, 4)]
    succeed(run, None, by_n=by_n)
    rows = compare(world.project).rows[2:]
    assert [(row.method, row.figures["reward"]) for row in rows] == [("Best of 2", 0.2), ("Best of 4", 0.4)]
    assert compare(world.project).missing == []


def _learned(run: Run, rankings: list[int]) -> None:
    run.datasets.add(
        Dataset.objects.create(
            project=run.project, kind="rankings", name="r", path="r", sha256="c" * 64, rows=2,
            manifest={"role": "data", "rankings": rankings},
        )
    )  # fmt: skip


def test_a_policy_that_learned_other_rankings_says_so(world: World) -> None:
    reward = succeed(make_run(world.project, "reward", base=world.reference), "reward")
    _learned(reward, [1, 2])
    same, other = world.trained("dpo"), world.trained("dpo")
    _learned(same, [2, 1])
    _learned(other, [1, 2, 3])
    rows = {row.made_by: row for row in compare(world.project, judge=reward.model).rows}
    assert (rows[same].other_rankings, rows[other].other_rankings) == (False, True)


def test_the_table_costs_the_same_for_many_methods(world: World, django_assert_max_num_queries: Any) -> None:
    for _ in range(6):
        world.evaluated(world.trained("ppo").model, 0.6)
    with django_assert_max_num_queries(24):
        assert len(compare(world.project).rows) == 8


def test_a_proxy_that_judges_itself_is_known(world: World) -> None:
    world.trained("dpo")
    assert not compare(world.project).judged_by_its_teacher
    world.trained("ppo")
    assert compare(world.project).judged_by_its_teacher


def test_the_bar_of_a_row_knows_which_way_it_went(world: World) -> None:
    for win_rate, verdict in ((0.7, "better"), (0.52, "open"), (0.3, "worse")):
        world.evaluated(world.trained("dpo").model, win_rate)
        row = next(row for row in compare(world.project).rows if row.figures.get("win_rate") == win_rate)
        assert row.place is not None
        assert row.place["verdict"] == verdict
        assert row.place["at"] == f"{100 * win_rate:.1f}"
