"""Rankings as comparisons: the K-wise loss (Ouyang et al. 2022, appendix C.2, with ties), accuracy and its interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Comparison:
    """Completion `first` against `second` of one ranking; target 1 = first is better, 0.5 = tie."""

    first: int
    second: int
    target: float


def tiers(ranking: Sequence[int | Sequence[int]], k: int) -> list[list[int]]:
    """A ranking best to worst as lists of equals. ValueError unless it is a permutation of 0 .. k - 1."""
    groups = [list(entry) if isinstance(entry, list | tuple) else [entry] for entry in ranking]
    flat = [index for group in groups for index in group]
    whole = all(isinstance(index, int) and not isinstance(index, bool) for index in flat)
    if not whole or sorted(flat) != list(range(k)):
        raise ValueError(f"the ranking {list(ranking)} is no permutation of 0 to {k - 1}")
    return groups


def comparisons(groups: Sequence[Sequence[int]]) -> list[Comparison]:
    """All K * (K - 1) / 2 comparisons of one ranking, the better one first."""
    place = {index: tier for tier, group in enumerate(groups) for index in group}
    order = sorted(place, key=lambda index: (place[index], index))
    return [Comparison(a, b, 0.5 if place[a] == place[b] else 1.0) for a, b in combinations(order, 2)]


def k_wise_loss(scores: Tensor, rankings: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """Sum over rankings of the mean of their C(K, 2) pair losses.

    scores (N,) holds the completions of all rankings one after the other. Each ranking weighs the same whatever its K:
    pairs of one prompt are correlated, and shuffled among the batches they overfit within a single epoch.
    """
    first, second, target, weight, start = [], [], [], [], 0
    for groups in rankings:
        pairs = comparisons(groups)
        for pair in pairs:
            first.append(start + pair.first)
            second.append(start + pair.second)
            target.append(pair.target)
            weight.append(1 / len(pairs))
        start += sum(map(len, groups))
    assert start == scores.shape[0], (start, scores.shape)
    gap = scores[first] - scores[second]
    return F.binary_cross_entropy_with_logits(
        gap, gap.new_tensor(target), weight=gap.new_tensor(weight), reduction="sum"
    )


def accuracy(gaps: Iterable[float]) -> tuple[float, int]:
    """Share of gaps (better minus worse) above zero, equal scores half, and how many gaps there were."""
    found = hits(gaps)
    return (sum(found) / len(found) if found else math.nan), len(found)


def hits(gaps: Iterable[float]) -> list[float]:
    """1 for each gap above zero, 1/2 for equal scores, else 0."""
    return [1.0 if gap > 0 else 0.5 if gap == 0 else 0.0 for gap in gaps]


def length_baseline(train: Sequence[tuple[int, int]], val: Sequence[tuple[int, int]]) -> float:
    """Accuracy on val of "the longer (or shorter) is better", whichever held in train; pairs are (chosen, rejected).

    A reward model that does not beat this has learned nothing but length.
    """
    longer, _ = accuracy(chosen - rejected for chosen, rejected in train)
    sign = -1 if longer < 0.5 else 1
    share, _ = accuracy(sign * (chosen - rejected) for chosen, rejected in val)
    return share
