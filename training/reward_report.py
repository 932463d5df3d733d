"""What a reward model is worth: accuracy by policy and annotator, calibration, and how far people agree themselves."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations, pairwise
from typing import Any

from training import comparisons
from training.intervals import clustered
from training.rankings import Ranking

BINS, FEWEST_IN_A_BIN = 10, 20


def report(train: Sequence[Ranking], held_out: Sequence[Ranking], rewards: Sequence[float]) -> dict[str, Any]:
    """Every figure of a run's result; `rewards` are those of all held-out completions, one ranking after the other.

    `by_policy` and `by_annotator` are {name: {accuracy, low, high, pairs}}, `agreement` is one such entry or None,
    `calibration` a list of {gap, predicted, accuracy, pairs}.
    """
    scored = pair_gaps(held_out, rewards)
    gaps = [gap for _, _, gap in scored]
    whole = figures(gaps, [ranking.prompt for ranking, _, _ in scored])
    return {
        "val_accuracy": whole["accuracy"],
        "val_pairs": whole["pairs"],
        "val_accuracy_low": whole["low"],
        "val_accuracy_high": whole["high"],
        "by_policy": grouped((_policies(ranking, pair), gap, ranking.prompt) for ranking, pair, gap in scored),
        "by_annotator": grouped((ranking.annotator, gap, ranking.prompt) for ranking, _, gap in scored),
        "calibration": calibration(gaps),
        "calibration_error": calibration_error(gaps),
        "length_baseline": comparisons.length_baseline(_lengths(train), _lengths(held_out)) if gaps else None,
        "agreement": agreement([*train, *held_out]),
    }


def pair_gaps(rankings: Sequence[Ranking], scores: Sequence[float]) -> list[tuple[Ranking, tuple[int, int], float]]:
    """Every untied pair with its score of the better minus that of the worse."""
    found, start = [], 0
    for ranking in rankings:
        for better, worse in ranking.pairs():
            found.append((ranking, (better, worse), scores[start + better] - scores[start + worse]))
        start += len(ranking.examples)
    return found


def figures(gaps: Sequence[float], prompts: Sequence[str]) -> dict[str, Any]:
    """{accuracy, low, high, pairs} of gaps, better minus worse; the interval is a clustered one, prompt by prompt."""
    share, n = comparisons.accuracy(gaps)
    low, high = clustered(comparisons.hits(gaps), prompts)
    return {"accuracy": share if n else None, "low": low, "high": high, "pairs": n}


def grouped(named: Iterable[tuple[str, float, str]]) -> dict[str, dict[str, Any]]:
    """Figures of (name, gap, prompt) for each name, most pairs first; what has no name is in no group."""
    groups: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for name, gap, prompt in named:
        if name:
            groups[name].append((gap, prompt))
    order = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return {name: figures([gap for gap, _ in pairs], [prompt for _, prompt in pairs]) for name, pairs in order}


def calibration(gaps: Sequence[float], bins: int = BINS) -> list[dict[str, Any]]:
    """Bins of equally many pairs by the size of the gap: how sure the model was, and how often it was right.

    By Bradley and Terry a model that gives a gap of g is right in sigmoid(g) of such pairs.
    """
    ordered = sorted(gaps, key=abs)
    bins = max(1, min(bins, len(ordered) // FEWEST_IN_A_BIN))
    edges = [round(i * len(ordered) / bins) for i in range(bins + 1)]
    parts = [ordered[low:high] for low, high in pairwise(edges) if high > low]
    return [
        {
            "gap": statistics.fmean(map(abs, part)),
            "predicted": statistics.fmean(_sigmoid(abs(gap)) for gap in part),
            "accuracy": comparisons.accuracy(part)[0],
            "pairs": len(part),
        }
        for part in parts
    ]


def calibration_error(gaps: Sequence[float], bins: int = BINS) -> float | None:
    """Expected calibration error: the mean distance of accuracy and prediction, each bin weighed by its pairs."""
    parts = calibration(gaps, bins)
    if not parts:
        return None
    return sum(part["pairs"] * abs(part["accuracy"] - part["predicted"]) for part in parts) / len(gaps)


def agreement(rankings: Sequence[Ranking]) -> dict[str, Any] | None:
    """How often two known annotators order the same two responses alike: about what a reward model can reach.

    Ties of either are left out, as they are from the accuracy; None where no two people ranked the same responses.
    """
    by_prompt: dict[str, list[tuple[str, dict[str, int]]]] = defaultdict(list)
    for ranking in rankings:
        if ranking.annotator:
            by_prompt[ranking.prompt].append((ranking.annotator, _places(ranking)))
    products, prompts = [], []
    for prompt, judged in by_prompt.items():
        for (one, first), (other, second) in combinations(judged, 2):
            if one == other:
                continue
            for a, b in combinations(sorted(first.keys() & second.keys()), 2):
                product = (first[a] - first[b]) * (second[a] - second[b])
                if product:
                    products.append(float(product))
                    prompts.append(prompt)
    return figures(products, prompts) if products else None


def _places(ranking: Ranking) -> dict[str, int]:
    return {ranking.responses[i]: tier for tier, group in enumerate(ranking.groups) for i in group}


def _policies(ranking: Ranking, pair: tuple[int, int]) -> str:
    """What wrote the pair; two policies are named in the order of the alphabet, whichever won."""
    names = sorted({ranking.policies[i] for i in pair}) if ranking.policies else []
    return " / ".join(names) if all(names) else ""


def _lengths(rankings: Sequence[Ranking]) -> list[tuple[int, int]]:
    return [(r.answer_lengths[better], r.answer_lengths[worse]) for r in rankings for better, worse in r.pairs()]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))  # x is never negative here
