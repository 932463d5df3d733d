"""Stage rejection: what is kept, what is learned of it, and runs that are killed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.conftest import curve, jsonl, kill_at, rows_of, run_stage
from training import pool, rejection
from training.checkpoint import load_model, save_model
from training.config import TrainingError
from training.model import RewardModel
from training.parse import parse
from training.pool import Answer
from training.report import Report


def _answer(reward: float, reason: str = "eos") -> Answer:
    return Answer("", [5, 6], [], 0, reason, reward)


def test_the_best_answer_that_ends_is_kept():
    assert rejection.best_ended([_answer(1.0), _answer(3.0, "length"), _answer(2.0)]) == _answer(2.0)
    assert rejection.best_ended([_answer(1.0, "length")]) is None


def test_prompts_are_not_learned():
    assert rejection._example([1, 2, 3], _answer(0.0)) == ([1, 2, 3, 5, 6], [0, 0, 0, 1, 1])


# Whole runs


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, base_dir: Path) -> dict[str, str]:
    """A policy that ends its answers now and then, and a reward model."""
    folder = tmp_path_factory.mktemp("models")
    model, tok, _ = load_model(base_dir)
    torch.manual_seed(5)
    save_model(folder / "judge", RewardModel(load_model(base_dir)[0]), tok, "reward", {})
    with torch.no_grad():
        model.wpe.weight[4:] += model.wte.weight[tok.eos_id] * 20
    save_model(folder / "policy", model, tok, "policy", {})
    return {"base": str(folder / "policy"), "reward_model": str(folder / "judge")}


@pytest.fixture
def rejection_run(make_run: Callable[..., Path], models: dict[str, str]) -> Callable[..., Path]:
    prompts = jsonl([{"prompt": f"pan {i}"} for i in range(24)])

    def build(name: str = "run", **changes: Any) -> Path:
        config = {
            **models, "n": 4, "max_new_tokens": 40, "write_batch": 16, "batch_size": 4, "log_every": 1, "epochs": 4,
            "checkpoint_every": 5, "kl_samples": 16, "learning_rate": 1e-3,
        }  # fmt: skip
        return make_run({**config, **changes}, {"prompts.jsonl": prompts}, name)

    return build


def _run(run_dir: Path) -> dict[str, Any]:
    settings = json.loads((run_dir / "config.json").read_text())
    return rejection.run(parse("rejection", settings), run_dir, Report(run_dir))


def test_it_learns_what_the_reward_model_likes(rejection_run, monkeypatch, models):
    """Reward = minus the length: the policy that learned its shortest answers writes shorter ones."""
    monkeypatch.setattr(pool, "rewards_of", lambda _, answers, *__: [-float(len(a.tokens)) for a in answers])
    monkeypatch.setattr(rejection, "rewards_of", lambda _, answers, *__: [-float(len(a.tokens)) for a in answers])
    run_dir = rejection_run(n=8, epochs=12, kl_samples=96, learning_rate=3e-3)
    result = _run(run_dir)
    assert result["score_before"] < result["score_best"]
    assert result["score"] > result["score_before"] + 0.3 * (result["score_best"] - result["score_before"])
    assert result["kl"] > 0
    _, _, card = load_model(run_dir / "model")
    assert (card["kind"], card["stage"], card["parent"]) == ("policy", "rejection", models["base"])


def test_a_run_killed_anywhere_ends_like_an_undisturbed_one(rejection_run):
    whole, broken = rejection_run("whole"), rejection_run("broken")
    assert run_stage("rejection", whole).returncode == 0
    kill_at("rejection", broken, 2)  # while it samples
    kill_at("rejection", broken, 15)  # while it learns
    assert run_stage("rejection", broken).returncode == 0
    assert curve(broken) == curve(whole)
    assert rows_of(broken / "samples.jsonl") == rows_of(whole / "samples.jsonl")
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (broken, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    results = [json.loads((run / "result.json").read_text()) for run in (broken, whole)]
    assert {**results[0], "seconds": 0} == {**results[1], "seconds": 0}


def test_answers_that_never_end_are_one_sentence(rejection_run):
    with pytest.raises(TrainingError, match="None of 96 answers ended within 1 tokens: raise max_new_tokens"):
        _run(rejection_run(max_new_tokens=1))


def test_a_gradient_that_is_no_number_reaches_no_checkpoint(rejection_run, monkeypatch):
    """Its loss may be a number all the same."""
    honest, calls = rejection.optim.clip, []

    def broken(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        norm = honest(*arguments)
        return norm if len(calls) < 10 else norm * float("nan")

    monkeypatch.setattr(rejection.optim, "clip", broken)
    run_dir = rejection_run(checkpoint_every=5)
    with pytest.raises(TrainingError, match="The gradient is nan at step 10: lower learning_rate"):
        _run(run_dir)
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step-00000005"]
