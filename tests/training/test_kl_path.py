"""Policies kept on the way from the reference, and a judge that ends the run: synthetic curves, whole runs, kill -9."""

import json
import math
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.conftest import curve, jsonl, kill_at, run_stage, tiny_config
from tests.training.tiny import make_reward_model, make_tokenizer
from training import ppo
from training.checkpoint import load_model, save_model
from training.config import TrainingError
from training.kl_path import SMOOTHED, KLPath, past_peak, peak, smoothed
from training.model import GPT, RewardModel
from training.parse import parse
from training.report import Report


def _gao(peak_at: float, steps: int, noise: float = 0.0, seed: int = 0) -> list[float]:
    """d (a - b ln d) at steps of 0.1, with its peak of height 1 at d = peak_at."""
    draw = random.Random(seed)
    a, b = (1 + math.log(peak_at)) / peak_at, 1 / peak_at
    path = [0.1 * step for step in range(steps)]
    return [d * (a - b * math.log(max(d, 1e-9))) + draw.gauss(0, noise) for d in path]


def test_scores_are_averaged_over_what_there_is():
    assert smoothed([1.0, 3.0]) == [1.0, 2.0]
    assert smoothed([float(i) for i in range(10)])[-1] == statistics.fmean(range(10 - SMOOTHED, 10))


def test_a_curve_that_falls_ends_soon_after_its_peak():
    scores = _gao(peak_at=3.0, steps=80)
    stops = next(n for n in range(1, 81) if past_peak(scores[:n], 10))
    assert 40 < stops < 48  # the peak is at step 30, the average lags by 2, the patience is 10
    assert abs(peak(scores[:stops]) - 30) <= 3


@pytest.mark.parametrize("seed", range(10))
def test_noise_costs_less_than_five_percent_of_the_peak(seed):
    scores, truth = _gao(3.0, 80, noise=0.05, seed=seed), _gao(3.0, 80)
    stops = next((n for n in range(1, 81) if past_peak(scores[:n], 10)), 80)
    assert truth[peak(scores[:stops])] > 0.95


def test_a_curve_that_rises_has_no_end():
    scores = [0.01 * i + 0.01 * (-1) ** i for i in range(100)]
    assert not any(past_peak(scores[:n], 10) for n in range(101))


def test_one_lucky_update_is_no_peak():
    scores = [0.1 * i for i in range(20)]
    scores[5] += 1.0
    assert peak(scores) == 19


# Whole runs


@pytest.fixture(scope="module")
def reward_dirs(tmp_path_factory: pytest.TempPathFactory, base_dir: Path) -> list[str]:
    """A reward model and its twin: as a judge, the twin likes what the reward model likes."""
    trunk, tok, _ = load_model(base_dir)
    torch.manual_seed(5)
    model = RewardModel(trunk)
    paths = [tmp_path_factory.mktemp("reward") / "model" for _ in range(2)]
    for path in paths:
        save_model(path, model, tok, "reward", {"stage": "reward", "reward_std": 0.5})
    return [str(path) for path in paths]


@pytest.fixture
def ppo_run(make_run: Callable[..., Path], base_dir: Path, reward_dirs: list[str]) -> Callable[..., Path]:
    prompts = jsonl([{"prompt": f"pan {i}"} for i in range(10)])

    def build(name: str = "run", **changes: Any) -> Path:
        config = {
            "base": str(base_dir), "reward_model": reward_dirs[0], "updates": 14, "batch_size": 8, "max_new_tokens": 8,
            "value_warmup": 0, "checkpoint_every": 3, "sample_every": 0, "learning_rate": 3e-3, "min_lr_ratio": 1.0,
            "kl_coef": 0.0, "missing_eos_penalty": 3.0,
        }  # fmt: skip
        return make_run({**config, **changes}, {"prompts.jsonl": prompts}, name)

    return build


def _run(run_dir: Path) -> dict[str, Any]:
    settings = json.loads((run_dir / "config.json").read_text())
    return ppo.run(parse("ppo", settings), run_dir, Report(run_dir))


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def _same(one: Path, other: Path) -> bool:
    ours, theirs = _weights(one), _weights(other)
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_snapshot_is_the_policy_that_passed_the_mark(ppo_run):
    run_dir = ppo_run(kl_snapshots=0.5)
    kept = _run(run_dir)["snapshots"]
    assert len(kept) > 1
    assert [entry["mark"] for entry in kept] == sorted({entry["mark"] for entry in kept})
    rows = curve(run_dir)
    for entry in kept:
        row = rows[entry["update"]]  # line n of the curve tells of the policy after n updates
        assert (entry["kl_k1"], entry["score"]) == (row["kl_k1"], row["score"])
        assert entry["kl_k1"] >= entry["mark"] > max((r["kl_k1"] for r in rows[: entry["update"]]), default=0)
        assert load_model(run_dir / entry["path"])[2]["update"] == entry["update"]
    shorter = ppo_run("shorter", updates=kept[0]["update"])
    _run(shorter)
    assert _same(shorter / "model", run_dir / kept[0]["path"])


def test_without_the_setting_nothing_is_kept(ppo_run):
    run_dir = ppo_run(updates=2)
    assert _run(run_dir)["snapshots"] == []
    assert not (run_dir / "snapshots").exists()


def test_the_judge_is_asked_about_every_updates_answers(ppo_run, reward_dirs):
    run_dir = ppo_run(judge_model=reward_dirs[1], precision="fp32")  # bf16 rounds by the batch
    _run(run_dir)
    rows = curve(run_dir)
    assert len({row["score"] for row in rows}) > 2
    assert [row["judge_score"] for row in rows] == pytest.approx([row["score"] for row in rows])


def test_the_model_is_the_policy_at_the_judges_peak(ppo_run, reward_dirs, monkeypatch):
    told = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 4.0, 4.0, 1.0, 0.0, 0.0, 0.0]  # highest at 5, smoothed at 7
    monkeypatch.setattr(KLPath, "_ask", lambda self, *_: told[len(self.scores)])
    run_dir = ppo_run(judge_model=reward_dirs[1], judge_patience=4)
    result = _run(run_dir)
    assert (result["updates"], result["model_update"], result["stopped_by_judge"]) == (12, 7, True)
    assert result["judge_score"] == max(smoothed(told)) == 4.0
    card = load_model(run_dir / "model")[2]
    assert (card["update"], card["kl"]) == (7, curve(run_dir)[7]["kl"])
    shorter = ppo_run("shorter", updates=7)
    assert _run(shorter)["model_update"] == 7
    assert _same(shorter / "model", run_dir / "model")


def test_a_run_with_snapshots_and_a_judge_killed_anywhere_ends_like_an_undisturbed_one(ppo_run, reward_dirs):
    settings = {"judge_model": reward_dirs[1], "kl_snapshots": 0.5, "updates": 20}
    whole, broken = ppo_run("whole", **settings), ppo_run("broken", **settings)
    assert run_stage("ppo", whole).returncode == 0
    kill_at("ppo", broken, 4)
    kill_at("ppo", broken, 11)
    assert run_stage("ppo", broken).returncode == 0
    results = [json.loads((run / "result.json").read_text()) for run in (broken, whole)]
    assert {**results[0], "seconds": 0} == {**results[1], "seconds": 0}
    assert curve(broken) == curve(whole)
    assert results[1]["model_update"] > 0
    for folder in ["model", *(entry["path"] for entry in results[1]["snapshots"])]:
        assert _same(broken / folder, whole / folder)


def test_a_judge_must_be_another_model_of_the_same_vocabulary(ppo_run, reward_dirs, tmp_path):
    with pytest.raises(TrainingError, match="The judge is the reward model itself, 1 model for both"):
        _run(ppo_run(judge_model=reward_dirs[0]))
    tokenizer = make_tokenizer()
    save_model(tmp_path / "third", make_reward_model(tokenizer), tokenizer, "reward", {})
    with pytest.raises(TrainingError, match="the judge another one of 260"):
        _run(ppo_run("other", judge_model=str(tmp_path / "third")))


def test_a_judge_must_read_the_longest_answer(ppo_run, tok, tmp_path):
    save_model(tmp_path / "short", RewardModel(GPT(tiny_config(tok.vocab_size, n_positions=8))), tok, "reward", {})
    with pytest.raises(TrainingError, match=r"The judge reads 8 tokens and prompts with answers have up to 1\d"):
        _run(ppo_run(judge_model=str(tmp_path / "short")))
