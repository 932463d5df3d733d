"""Intervals of measured shares."""

import math
import statistics
from collections import defaultdict
from collections.abc import Hashable, Sequence


def clustered(hits: Sequence[float], groups: Sequence[Hashable]) -> tuple[float, float]:
    """Wilson's 95 % interval of the mean of hits in 0 .. 1, where those of one group came about together.

    The pairs of one ranking, or the answers to one prompt, say less than as many independent trials: their number is
    divided by the design effect (Kish 1965), the variance of the mean over groups divided by what independence gives.
    """
    if not hits:
        return wilson(0.0, 0)
    n, share = len(hits), statistics.fmean(hits)
    sums: dict[Hashable, float] = defaultdict(float)
    for hit, group in zip(hits, groups, strict=True):
        sums[group] += hit - share
    independent = n * share * (1 - share)
    if len(sums) < 2 or not independent:  # nothing to compare: each group counts once
        return wilson(share, len(sums))
    effect = len(sums) / (len(sums) - 1) * sum(s * s for s in sums.values()) / independent
    return wilson(share, n / max(1.0, effect))


def wilson(share: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval of a share out of n trials (Wilson 1927); (0, 1) when nothing was tried."""
    if n == 0:
        return 0.0, 1.0
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
