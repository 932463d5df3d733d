"""What a reward model's run says about it, against counts by hand."""

import math
import random
from typing import Any

import pytest

from training import reward_report
from training.rankings import Ranking


def _ranking(groups: list[list[int]], prompt: str = "p", **changes: Any) -> Ranking:
    k = sum(map(len, groups))
    responses = changes.pop("responses", [f"r{i}" for i in range(k)])
    return Ranking(prompt, responses, [[i] for i in range(k)], list(range(1, k + 1)), groups, **changes)


def test_pairs_of_two_policies_are_counted_apart_from_those_of_one():
    rankings = [
        _ranking([[0], [1], [2]], policies=["sft-1", "sft-1", "ppo-1"]),
        _ranking([[1], [0]], policies=["ppo-1", "sft-1"]),
        _ranking([[0], [1]]),  # nobody knows what wrote these
    ]
    report = reward_report.report([], rankings, [3.0, 2.0, 4.0, 0.0, 1.0, 1.0, 0.0])
    shares = {name: (entry["accuracy"], entry["pairs"]) for name, entry in report["by_policy"].items()}
    assert shares == {"ppo-1 / sft-1": (1 / 3, 3), "sft-1": (1.0, 1)}
    assert (report["val_accuracy"], report["val_pairs"]) == (0.6, 5)
    entry = report["by_policy"]["sft-1"]
    assert 0 < entry["low"] < entry["accuracy"] <= entry["high"] == 1.0


def test_every_annotator_has_an_accuracy_of_their_own():
    rankings = [_ranking([[0], [1]], annotator="person-7"), _ranking([[1], [0]], annotator="person-8")]
    report = reward_report.report([], rankings, [1.0, 0.0] * 2)
    assert {name: entry["accuracy"] for name, entry in report["by_annotator"].items()} == {"person-7": 1, "person-8": 0}


def test_agreement_is_between_people_on_the_same_responses_and_without_ties():
    judged = [
        _ranking([[0], [1], [2]], annotator="a"),
        _ranking([[0], [2], [1]], annotator="b"),  # against a: 01 and 02 alike, 12 not
        _ranking([[0, 1], [2]], annotator="c"),  # against a: 02, 12 alike; against b: 02 alike, 12 not; 01 is a tie
        _ranking([[2], [1], [0]], annotator="a"),  # against b: 12 and 01, 02 not; against c: neither
        _ranking([[2], [1], [0]]),  # nobody knows whose
        _ranking([[2], [1], [0]], prompt="q", annotator="b"),
    ]
    entry = reward_report.agreement(judged)
    alike, pairs = 2 + 2 + 1 + 1 + 0, 3 + 2 + 2 + 3 + 2
    assert (entry["accuracy"], entry["pairs"]) == (alike / pairs, pairs)
    assert reward_report.agreement(judged[:1]) is None


def test_the_same_responses_are_known_by_their_texts_in_whatever_order_they_stand():
    one = _ranking([[0], [1]], annotator="a", responses=["sí", "no"])
    other = _ranking([[1], [0]], annotator="b", responses=["no", "sí"])
    assert reward_report.agreement([one, other])["accuracy"] == 1.0


def test_calibration_of_a_model_that_is_as_sure_as_it_is_right():
    rng = random.Random(1)
    sizes = [rng.expovariate(0.7) for _ in range(20_000)]
    honest = [g if rng.random() < 1 / (1 + math.exp(-g)) else -g for g in sizes]
    bins = reward_report.calibration(honest)
    assert [part["pairs"] for part in bins] == [2000] * 10
    assert [part["gap"] for part in bins] == sorted(part["gap"] for part in bins)
    assert all(part["accuracy"] == pytest.approx(part["predicted"], abs=0.04) for part in bins)
    assert reward_report.calibration_error(honest) < 0.02
    assert reward_report.calibration_error([3 * g for g in honest]) > 0.1  # three times too sure


def test_whether_longer_is_better_is_learned_from_the_training_rankings_alone():
    """Answers have 1, 2, ... tokens: in training the longer wins, in the held-out rankings the shorter one."""
    report = reward_report.report([_ranking([[1], [0]])] * 3, [_ranking([[0], [1]])] * 4, [0.0, 1.0] * 4)
    assert report["length_baseline"] == 0.0


def test_few_pairs_make_few_bins_and_none_make_none():
    assert [part["pairs"] for part in reward_report.calibration([0.5, -0.5, 2.0])] == [3]
    assert len(reward_report.calibration([1.0] * 45)) == 2
    assert reward_report.calibration([]) == []
    report = reward_report.report([], [_ranking([[0, 1]])], [1.0, 2.0])
    assert (report["val_accuracy"], report["calibration_error"], report["length_baseline"]) == (None, None, None)
