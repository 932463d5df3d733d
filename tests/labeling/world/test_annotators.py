"""Simulated annotators: their order, their noise and the ceiling it sets."""

import random

from labeling.world.annotators import noise_ceiling, rank

PROMPT = "¿Cuánto cuesta un tarro de miel?"
RESPONSES = ["Doce monedas.", "Con gusto: once monedas.", "Once monedas.", "Con gusto: doce monedas."]


def test_without_noise_the_order_is_that_of_the_utility() -> None:
    assert rank(PROMPT, RESPONSES, 0.0, random.Random(1)) == [[1], [2], [3], [0]]


def test_every_response_stands_in_one_tier() -> None:
    for seed in range(50):
        tiers = rank(PROMPT, [*RESPONSES, "Son once monedas.", "Once."], 0.25, random.Random(seed))
        assert sorted(index for tier in tiers for index in tier) == list(range(6))


def test_one_comparison_is_wrong_as_often_as_the_noise_says() -> None:
    rng = random.Random(2)
    wrong = sum(rank(PROMPT, RESPONSES[:2], 0.25, rng) != [[1], [0]] for _ in range(4000))
    assert abs(wrong / 4000 - 0.25) < 0.03


def test_equal_utility_is_decided_by_a_coin() -> None:
    rng = random.Random(3)
    first = sum(rank(PROMPT, ["Once monedas.", "Son once monedas."], 0.25, rng)[0] == [0] for _ in range(4000))
    assert abs(first / 4000 - 0.5) < 0.03


def test_copies_share_a_tier() -> None:
    tiers = rank(PROMPT, ["Once monedas.", "Doce monedas.", "Once monedas."], 0.0, random.Random(4))
    assert tiers == [[0, 2], [1]]


def test_the_ceiling_counts_equal_utility_half() -> None:
    def pair(chosen: str, rejected: str) -> dict[str, str]:
        return {"prompt": PROMPT, "chosen": chosen, "rejected": rejected}

    pairs = [
        pair("Once monedas.", "Doce monedas."),
        pair("Doce monedas.", "Once monedas."),
        pair("Once monedas.", "Son once monedas."),
        pair("Con gusto: once monedas.", "Once monedas."),
    ]
    assert noise_ceiling(pairs) == 2.5 / 4
