"""Whole rankings against shuffled pairs: the made rankings follow their utility, and passes are read back right."""

import random
from pathlib import Path

import pytest

from bench import pairing, reward_models, runs


def test_made_rankings_follow_their_utility_as_far_as_noise_lets_them() -> None:
    rows = pairing.made_rankings(200, seed=3)
    assert len({row["prompt"] for row in rows}) == 200
    assert {len(row["responses"]) for row in rows} == {4, 5, 6, 7, 8, 9}
    assert all(sorted(row["ranking"]) == list(range(len(row["responses"]))) for row in rows)
    assert 0.7 < pairing.best_accuracy(rows) < 0.9


def test_every_comparison_is_bradley_terry() -> None:
    """Of pairs whose utilities are about 1 apart, the better one wins with probability 1 / (1 + e^-1) = 0.73."""
    values, wins = pairing.worth(), []
    for row in pairing.made_rankings(210, seed=4):
        for pair in reward_models.pairs(row):
            gap = pairing.utility(pair["chosen"], values) - pairing.utility(pair["rejected"], values)
            if 0.8 < abs(gap) < 1.2:
                wins.append(gap > 0)
    assert len(wins) > 300
    assert sum(wins) / len(wins) == pytest.approx(0.73, abs=0.06)


def test_a_pass_is_the_mean_of_its_batches_and_ends_at_its_validation(tmp_path: Path) -> None:
    draw, points = random.Random(0), [{"step": 0, "steps": 6, "val_loss": 0.7, "val_accuracy": 0.5}]
    for step in range(1, 7):
        points.append({"step": step, "steps": 6, "loss": float(step)})
        if step % 2 == 0:
            points[-1] |= {"val_loss": step / 10, "val_accuracy": draw.random()}
    runs.write_rows(tmp_path / "metrics.jsonl", points)
    found = pairing.by_epoch(tmp_path)
    assert [epoch["loss"] for epoch in found] == [1.5, 3.5, 5.5]
    assert [epoch["val_loss"] for epoch in found] == [0.2, 0.4, 0.6]
    doubled = [{**row, **{key: 3 * row[key] for key in ("loss", "val_loss") if key in row}} for row in points]
    runs.write_rows(tmp_path / "other" / "metrics.jsonl", doubled)
    assert pairing.mean([tmp_path, tmp_path / "other"])[0]["loss"] == 3.0
