"""Stage best_of_n: its gain, its cost in KL, and what it writes."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.conftest import curve, jsonl, kill_at, rows_of, run_stage
from training import best_of_n
from training.best_of_n import best_of_n_kl, measure
from training.checkpoint import load_model, save_model
from training.config import TrainingError
from training.model import RewardModel
from training.parse import parse
from training.pool import Answer
from training.report import Report


def _pool(rewards: np.ndarray) -> list[list[Answer]]:
    return [[Answer("", [0] * 3, [], 0, "eos", float(r)) for r in row] for row in rewards]


def test_kl_of_distinct_rewards_is_the_bound_and_the_gain_is_known():
    """Rewards uniform on (0, 1): the best of n averages n / (n + 1), and beats one sample as often."""
    pool = _pool(np.random.default_rng(0).random((300, 64)))
    for row in measure(pool, [1, 2, 4, 8, 16, 32], seed=1):
        n = row["n"]
        assert row["kl_bound"] == pytest.approx(math.log(n) - (n - 1) / n)
        assert row["kl"] == pytest.approx(row["kl_bound"], abs=0.03), n
        assert row["score"] == pytest.approx(n / (n + 1), abs=0.01)
        assert row["win_rate"] == pytest.approx(n / (n + 1), abs=0.01)
        assert row["win_rate_low"] < row["win_rate"] < row["win_rate_high"]


def test_reward_win_rate_and_kl_rise_with_n_by_a_gold_reward():
    gold = np.random.default_rng(3).normal(size=(50, 32))
    table = measure(_pool(gold), [1, 2, 4, 8, 16], seed=1)
    for name in ("score", "win_rate", "kl"):
        figures = [row[name] for row in table]
        assert figures == sorted(figures), name
        assert len(set(figures)) == 5, name
    assert table[0]["kl"] == 0.0
    assert table[0]["win_rate"] == pytest.approx(0.5, abs=0.05)


def test_where_answers_share_rewards_the_kl_is_below_the_bound():
    """Six levels, all as likely: the exact KL of the best of n is a sum over levels."""
    rng, levels = np.random.default_rng(1), 6
    for n in (4, 16):
        drawn = rng.integers(levels, size=(20_000, 96))
        share = (np.arange(1, levels + 1) / levels) ** n - (np.arange(levels) / levels) ** n
        exact = float((share * np.log(share * levels)).sum())
        measured = best_of_n_kl(drawn[:, :n].max(1).astype(float), drawn[:, n:].astype(float), n)
        assert measured == pytest.approx(exact, abs=0.03)
        assert measured < math.log(n) - (n - 1) / n


def test_one_answer_for_all_gains_and_costs_nothing():
    row = measure(_pool(np.ones((5, 8))), [4], seed=1)[0]
    assert row["kl"] == pytest.approx(0.0, abs=1e-9)
    assert row["win_rate"] == 0.5


@pytest.mark.parametrize(("highest", "steps"), [(2, [1, 2]), (16, [1, 2, 4, 8, 16]), (12, [1, 2, 4, 8, 12])])
def test_n_doubles_up_to_the_highest(highest, steps):
    assert best_of_n._powers(highest) == steps


# Whole runs


@pytest.fixture
def best_run(make_run: Callable[..., Path], base_dir: Path, tmp_path: Path) -> Callable[..., Path]:
    trunk, tok, _ = load_model(base_dir)
    torch.manual_seed(5)
    save_model(tmp_path / "judge", RewardModel(trunk), tok, "reward", {"stage": "reward"})
    prompts = jsonl([{"prompt": f"pan {i}"} for i in range(12)])

    def build(name: str = "run", **changes: Any) -> Path:
        config = {
            "base": str(base_dir), "reward_model": str(tmp_path / "judge"), "n": 4, "max_new_tokens": 8,
            "write_batch": 16,
        }  # fmt: skip
        return make_run({**config, **changes}, {"prompts.jsonl": prompts}, name)

    return build


def _run(run_dir: Path) -> dict[str, Any]:
    settings = json.loads((run_dir / "config.json").read_text())
    return best_of_n.run(parse("best_of_n", settings), run_dir, Report(run_dir))


def test_it_writes_the_best_of_the_first_n_for_people_to_rank(best_run):
    run_dir = best_run()
    result = _run(run_dir)
    assert [row["n"] for row in result["by_n"]] == [1, 2, 4]
    assert (result["n"], result["prompts"], result["answers"]) == (4, 12, 96)
    rows = rows_of(run_dir / "completions.jsonl")
    assert [(row["n"], row["index"]) for row in rows[:3]] == [(1, 0), (2, 1), (4, 2)]
    for one, two, four in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        assert one["prompt"] == four["prompt"]
        assert one["reward"] <= two["reward"] <= four["reward"]
    assert not (run_dir / "model").exists()
    assert rows_of(run_dir / "samples.jsonl")[0]["reward_new"] >= rows_of(run_dir / "samples.jsonl")[0]["reward_old"]


def test_a_run_killed_anywhere_ends_like_an_undisturbed_one(best_run):
    whole, broken = best_run("whole", max_new_tokens=40), best_run("broken", max_new_tokens=40)
    assert run_stage("best_of_n", whole).returncode == 0
    kill_at("best_of_n", broken, 2)
    assert run_stage("best_of_n", broken).returncode == 0
    assert curve(broken) == curve(whole)
    for name in ("samples.jsonl", "completions.jsonl"):
        assert rows_of(broken / name) == rows_of(whole / name)
    results = [json.loads((run / "result.json").read_text()) for run in (broken, whole)]
    assert {**results[0], "seconds": 0} == {**results[1], "seconds": 0}


def test_a_pool_no_larger_than_n_is_refused(best_run):
    with pytest.raises(TrainingError, match="pool is 4 and n is 4: write more answers than n"):
        _run(best_run(pool=4))
