"""Over-optimisation in the small: the taste, Gao's curve, comparisons, the rule replayed, best of n."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import overoptimisation as experiment
from bench.overoptimisation import fit, stop, worth
from bench.taste import GOODS, TOKENIZER, Taste, compared
from tests.training.tiny import make_model, make_reward_model, save


def test_a_second_of_a_kind_is_welcome_and_a_fourth_is_a_nuisance():
    taste = Taste(np.tile([1.0, -1.0, 0, 0, 0, 0, 0, 0], (len(GOODS), 1)))
    assert list(taste(["a"] * 6, ["", "a", "aa", "aaa", "aaaa", "aaaaa"])) == [0, 1, 2, 2, 1.5, 1]
    assert list(taste(["c"] * 2, ["bb", "bbbb"])) == [-2, -4]


def test_comparisons_follow_bradley_and_terry():
    policy, taste = make_model(TOKENIZER, spread=2.0), Taste.of(1)
    rows = compared(policy, taste, 1500, seed=3)
    gaps = np.array([np.diff(taste([row["prompt"]] * 2, row["responses"]))[0] for row in rows])
    second = np.array([row["ranking"] == [1, 0] for row in rows])
    near = (gaps > 0.4) & (gaps < 1.0)
    expected = (1 / (1 + np.exp(-gaps[near] / 0.7))).mean()
    assert near.sum() > 100
    assert second[near].mean() == pytest.approx(expected, abs=4 * math.sqrt(0.25 / near.sum()))


def test_gaos_curve_is_found_again():
    d = np.linspace(0, 4, 50)
    a, b, at = fit(d, d * (1.5 - 0.7 * np.log(np.maximum(d, 1e-9))))
    assert (a, b) == (pytest.approx(1.5), pytest.approx(0.7))
    assert at == pytest.approx(math.exp(1.5 / 0.7 - 1))
    assert fit(d, 2 * d)[2] == math.inf


def test_the_rule_is_replayed_as_the_stage_applies_it():
    gold = [math.sin(step / 10) for step in range(40)]  # its peak is at 15.7
    told = stop(gold, gold)
    assert (told.best, told.gold_first) == (16, pytest.approx(sum(gold[:3]) / 3))
    assert told.kept == 18  # the average of five lags by two
    assert told.update == told.kept + experiment.PATIENCE + 1
    assert 0 < told.lost < 0.05
    assert stop([-value for value in gold], gold).kept == 0


def test_the_best_of_one_is_the_mean_and_of_more_is_better(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "POOL", 32)
    monkeypatch.setattr(experiment, "BEST_OF", (1, 2, 16))
    base = Path(save(tmp_path / "base", make_model(TOKENIZER, spread=2.0), TOKENIZER, "base"))
    proxy = Path(save(tmp_path / "proxy", make_reward_model(TOKENIZER), TOKENIZER, "reward", reward_std=1.0))
    points = experiment.best_of(base, Taste.of(1), proxy, seed=1)
    assert points[0][0] == 0
    assert points[2][0] == pytest.approx(math.sqrt(math.log(16) - 15 / 16))
    assert points[0][1] < points[1][1] < points[2][1]


@pytest.mark.slow
def test_the_stop_rule_lands_within_five_percent_of_the_gold_peak(tmp_path):
    torch.set_num_threads(1)
    n, seed = 2000, 1
    curve = experiment.measured(tmp_path, seed, updates=40, sizes=[n])[n]
    told, blind = worth(curve.updates, curve.kept, curve.gold), stop(curve.blind, curve.gold)
    assert told.update < 40, "the judge ends the run"
    assert curve.proxy[-1] > curve.proxy[told.kept], "the proxy would go on"
    assert told.gold_last < told.gold_best - 0.1, "and people would lose by it"
    assert told.lost <= 0.05, told
    assert blind.lost > told.lost, "a judge who never saw the path knows less"
