"""Simulated annotators: they rank by the hidden utility and are wrong at a known rate."""

import itertools
import random
from collections.abc import Iterable, Mapping, Sequence

from labeling.world.judge import judge


def rank(prompt: str, responses: Sequence[str], noise: float, rng: random.Random) -> list[list[int]]:
    """Tiers from best to worst: each two different answers are compared once, wrongly with probability noise.

    Answers of the same utility are decided by a coin; order is the number of comparisons won, equal counts tie;
    copies of one answer share a tier.
    """
    texts = list(dict.fromkeys(responses))
    utilities = [judge(prompt, text).utility for text in texts]
    wins = [0] * len(texts)
    for i, j in itertools.combinations(range(len(texts)), 2):
        better, worse = (i, j) if utilities[i] >= utilities[j] else (j, i)
        doubt = 0.5 if utilities[i] == utilities[j] else noise
        wins[worse if rng.random() < doubt else better] += 1
    tiers: dict[int, list[int]] = {}
    for index, response in enumerate(responses):
        tiers.setdefault(wins[texts.index(response)], []).append(index)
    return [tiers[count] for count in sorted(tiers, reverse=True)]


def noise_ceiling(pairs: Iterable[Mapping[str, object]]) -> float:
    """Share of {"prompt", "chosen", "rejected"} that the true utility orders as ranked; equal utility counts half."""
    scores = []
    for pair in pairs:
        prompt = str(pair["prompt"])
        difference = judge(prompt, str(pair["chosen"])).utility - judge(prompt, str(pair["rejected"])).utility
        scores.append(0.5 if difference == 0 else float(difference > 0))
    return sum(scores) / len(scores) if scores else float("nan")
