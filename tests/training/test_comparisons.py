"""Rankings as comparisons."""

import math
from itertools import combinations

import pytest
import torch
from torch.nn import functional as F

from training import comparisons as cmp
from training.intervals import wilson


def test_comparisons_are_all_pairs_with_ties_at_one_half():
    pairs = cmp.comparisons(cmp.tiers([2, [0, 3], 1], 4))
    assert {(p.first, p.second): p.target for p in pairs} == {
        (2, 0): 1.0,
        (2, 3): 1.0,
        (2, 1): 1.0,
        (0, 3): 0.5,
        (0, 1): 1.0,
        (3, 1): 1.0,
    }


@pytest.mark.parametrize("ranking", [[0, 1], [0, 1, 1], [0, 1, 3], [0, [1, 2], 2], ["a", 1, 2], [True, 0, 2]])
def test_what_is_no_permutation_is_refused(ranking):
    with pytest.raises(ValueError, match="no permutation of 0 to 2"):
        cmp.tiers(ranking, 3)


def test_k_wise_loss_equals_brute_force():
    torch.manual_seed(0)
    rankings = [[[1], [0, 2]], [[0], [1]], [[3], [0], [2, 4], [1]]]
    scores = torch.randn(3 + 2 + 5, dtype=torch.float64)
    expected, start = 0.0, 0
    for groups in rankings:
        place = {i: t for t, group in enumerate(groups) for i in group}
        losses = []
        for a, b in combinations(sorted(place), 2):
            gap = scores[start + a] - scores[start + b]
            target = 0.5 if place[a] == place[b] else float(place[a] < place[b])
            losses.append(-(target * F.logsigmoid(gap) + (1 - target) * F.logsigmoid(-gap)))
        expected += sum(losses) / math.comb(len(place), 2)
        start += len(place)
    assert cmp.k_wise_loss(scores, rankings).item() == pytest.approx(float(expected), abs=1e-12)


def test_k_wise_loss_ignores_a_common_shift_and_grows_when_the_order_is_wrong():
    rankings = [[[0], [1], [2]]]
    right, wrong = torch.tensor([2.0, 0.0, -2.0]), torch.tensor([-2.0, 0.0, 2.0])
    assert cmp.k_wise_loss(right + 7, rankings).item() == pytest.approx(cmp.k_wise_loss(right, rankings).item())
    assert cmp.k_wise_loss(wrong, rankings) > cmp.k_wise_loss(right, rankings)


def test_bradley_terry_utilities_are_recovered_in_order():
    generator = torch.Generator().manual_seed(3)
    utility = torch.tensor([1.5, -1.0, 0.5, -0.2, 2.5, -2.0])
    rankings, items = [], []
    for _ in range(400):
        pair = torch.randperm(6, generator=generator)[:2].tolist()
        better = torch.rand((), generator=generator) < torch.sigmoid(utility[pair[0]] - utility[pair[1]])
        rankings.append([[0], [1]] if better else [[1], [0]])
        items += pair
    learned = torch.zeros(6, requires_grad=True)
    optimizer = torch.optim.Adam([learned], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        (cmp.k_wise_loss(learned[items], rankings) / 400).backward()
        optimizer.step()
    assert learned.argsort().tolist() == utility.argsort().tolist()


def test_wilson_interval_against_known_values():
    low, high = wilson(0.5, 100)
    assert (low, high) == (pytest.approx(0.40383, abs=1e-4), pytest.approx(0.59617, abs=1e-4))
    low, high = wilson(1.0, 10)
    assert (low, high) == (pytest.approx(0.72246, abs=1e-4), pytest.approx(1.0))
    assert wilson(math.nan, 0) == (0.0, 1.0)


def test_accuracy_counts_equal_scores_half():
    assert cmp.accuracy([1.0, -1.0, 0.0, 2.0]) == (0.625, 4)
    assert cmp.accuracy([])[1] == 0


def test_length_baseline_takes_its_direction_from_the_training_pairs():
    shorter_wins = [(3, 5), (2, 9), (4, 3)]
    assert cmp.length_baseline(shorter_wins, [(1, 2), (1, 2), (5, 2), (2, 2)]) == 0.625
