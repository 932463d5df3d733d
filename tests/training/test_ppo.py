"""Stage ppo: whole runs, what they start from, what ends them, and runs that are killed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.conftest import curve, jsonl, kill_at, rows_of, run_stage
from tests.training.tiny import make_reward_model, make_tokenizer
from training import ppo
from training.checkpoint import save_model
from training.config import PPOConfig, TrainingError
from training.parse import parse
from training.report import Report


def _run(run_dir: Path) -> dict[str, Any]:
    settings = json.loads((run_dir / "config.json").read_text())
    return ppo.run(parse("ppo", settings), run_dir, Report(run_dir))


@pytest.fixture
def ppo_run(make_run: Callable[..., Path], base_dir: Path, reward_dir: Path) -> Callable[..., Path]:
    prompts = jsonl([{"prompt": f"pan {i}"} for i in range(10)])

    def build(name: str = "run", **changes: Any) -> Path:
        config = {
            "base": str(base_dir), "reward_model": str(reward_dir), "updates": 12, "batch_size": 8,
            "max_new_tokens": 8, "value_warmup": 2, "checkpoint_every": 3, "sample_every": 4, "kl_target": 2.0,
            "kl_horizon": 100, "learning_rate": 1e-3,
        }  # fmt: skip
        return make_run({**config, **changes}, {"prompts.jsonl": prompts}, name)

    return build


def test_a_run_killed_anywhere_ends_like_an_undisturbed_one(ppo_run):
    whole, broken = ppo_run("whole"), ppo_run("broken")
    assert run_stage("ppo", whole).returncode == 0
    kill_at("ppo", broken, 2)
    kill_at("ppo", broken, 8)
    assert run_stage("ppo", broken).returncode == 0
    assert curve(broken) == curve(whole)
    assert rows_of(broken / "samples.jsonl") == rows_of(whole / "samples.jsonl")
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (broken, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    results = [json.loads((run / "result.json").read_text()) for run in (broken, whole)]
    assert {**results[0], "seconds": 0} == {**results[1], "seconds": 0}
    assert len({row["kl_coef"] for row in curve(whole)}) > 5
    assert rows_of(whole / "metrics.jsonl")[0]["steps"] == 12


def test_a_python_function_may_score_instead_of_a_reward_model(ppo_run, tok):
    run_dir = ppo_run(reward_model="", updates=3)
    seen = []

    def score(prompts, completions):
        seen.extend(zip(prompts, completions, strict=True))
        return [0.25] * len(prompts)

    settings = json.loads((run_dir / "config.json").read_text())
    ppo.run(PPOConfig(**settings), run_dir, Report(run_dir), score)
    assert len(seen) == 24
    assert {prompt for prompt, _ in seen} <= {f"pan {i}" for i in range(10)}
    rows = rows_of(run_dir / "samples.jsonl")
    assert [(row["prompt"], row["text"]) for row in rows if row["step"] == 1] == seen[:4]
    assert json.loads((run_dir / "model" / "bucle.json").read_text())["kind"] == "policy"
    other = ppo_run("other", reward_model="")
    with pytest.raises(TrainingError, match="score gave 1 rewards for 8 answers"):
        ppo.run(PPOConfig(**settings), other, Report(other), lambda *_: [1.0])


def test_a_kl_budget_ends_the_run_and_says_so(ppo_run):
    run_dir = ppo_run(kl_budget=1e-6, value_warmup=0)
    result = _run(run_dir)
    assert result["stopped_by_kl_budget"]
    assert result["updates"] == 2  # the first update's answers still come from the base
    again = _run(run_dir)  # killed after its last checkpoint, before its result
    assert (again["updates"], again["stopped_by_kl_budget"]) == (2, True)


def test_the_value_model_begins_as_the_reward_model_and_only_it_learns(ppo_run):
    run_dir = ppo_run()
    learner, frozen, _ = ppo._load(parse("ppo", json.loads((run_dir / "config.json").read_text())), run_dir, None)
    theirs = frozen.reward_model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in learner.value_model.state_dict().items())
    assert learner.value_model is not frozen.reward_model
    assert all(p.requires_grad for p in learner.value_model.parameters())
    assert not any(p.requires_grad for model in (frozen.reward_model, frozen.ref_policy) for p in model.parameters())


def test_scores_are_divided_by_the_reward_models_spread(ppo_run, reward_dir):
    run_dir = ppo_run()
    settings = json.loads((run_dir / "config.json").read_text())
    raw = ppo._load(parse("ppo", {**settings, "scale_scores": False}), run_dir, None)[1].reward_model
    scaled = ppo._load(parse("ppo", settings), run_dir, None)[1].reward_model
    tokens, at = torch.tensor([[1, 2, 3]]), torch.tensor([2])
    assert scaled.score(tokens, at).item() == pytest.approx(2 * raw.score(tokens, at).item(), abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"reward_model": "nowhere"}, "There is no model at"),
        ({"max_new_tokens": 63}, "None of 10 prompts leaves room for an answer of 63 tokens in the model's 64"),
        ({"minibatches": 3}, "batch_size is 8 and minibatches is 3"),
        ({"prompts": "data/none.jsonl"}, "There is no file"),
    ],
)
def test_bad_input_is_one_sentence(ppo_run, changes, sentence):
    run_dir = ppo_run(**changes)
    with pytest.raises(TrainingError, match=sentence):
        _run(run_dir)
    assert not (run_dir / "model").exists()


def test_a_reward_model_of_another_vocabulary_is_refused(ppo_run, tmp_path):
    tokenizer = make_tokenizer()
    save_model(tmp_path / "other", make_reward_model(tokenizer), tokenizer, "reward", {})
    run_dir = ppo_run(reward_model=str(tmp_path / "other"))
    with pytest.raises(TrainingError, match="another one of 260"):
        _run(run_dir)


def test_a_bias_is_divided_with_the_scores_and_adam_has_the_epsilon_of_2019(ppo_run):
    model = make_reward_model(make_tokenizer())
    model.bias.fill_(3.0)
    tokens, at = torch.tensor([[1, 2, 3]]), torch.tensor([2])
    before = model.score(tokens, at).item()
    ppo._scale(model, 2.0)
    assert model.score(tokens, at).item() == pytest.approx(before / 2, abs=1e-6)
    run_dir = ppo_run()
    learner = ppo._load(parse("ppo", json.loads((run_dir / "config.json").read_text())), run_dir, None)[0]
    groups = [*learner.policy_optimizer.param_groups, *learner.value_optimizer.param_groups]
    assert {group["eps"] for group in groups} == {1e-5}
