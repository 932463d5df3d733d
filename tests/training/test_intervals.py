"""Intervals of shares, alone and in groups."""

import random

import pytest

from training.intervals import clustered, wilson


def test_wilsons_interval_is_the_published_one():
    """Newcombe 1998, table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for hits, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(hits / n, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(0.5, 0) == (0, 1)


def test_trials_that_stand_alone_get_wilsons_interval():
    hits = [1.0] * 70 + [0.0] * 30
    low, high = clustered(hits, range(100))
    assert (low, high) == pytest.approx(wilson(0.7, 100), abs=2e-3)


def test_copies_of_a_trial_are_one_trial():
    hits = [1.0] * 70 + [0.0] * 30
    five = clustered(hits * 5, list(range(100)) * 5)
    assert five == pytest.approx(clustered(hits, range(100)), abs=1e-9)
    assert five[1] - five[0] > 2 * (wilson(0.7, 500)[1] - wilson(0.7, 500)[0])


def test_it_holds_the_truth_as_often_as_it_says_where_wilsons_does_not():
    """Rankings of six pairs, right with a probability of their own around 0.7."""
    draw, held, naive, n = random.Random(1), 0, 0, 1000
    for _ in range(n):
        hits, groups = [], []
        for group in range(60):
            p = 0.7 + draw.choice((-0.3, 0.3))
            hits += [float(draw.random() < p) for _ in range(6)]
            groups += [group] * 6
        low, high = clustered(hits, groups)
        held += low <= 0.7 <= high
        low, high = wilson(sum(hits) / len(hits), len(hits))
        naive += low <= 0.7 <= high
    assert 0.93 <= held / n <= 0.975
    assert naive / n < 0.85


def test_what_cannot_be_compared_counts_each_group_once():
    assert clustered([1.0] * 12, [0] * 12) == wilson(1.0, 1)
    assert clustered([1.0] * 12, [i // 3 for i in range(12)]) == wilson(1.0, 4)
    assert clustered([], []) == (0, 1)
