"""Questions, their split, and the way they are drawn."""

from collections import Counter

import pytest

from labeling.world.questions import HOLDOUT_SHARE, asked, prompts, questions, split_of


@pytest.mark.parametrize("language", ["es", "en"])
def test_questions_are_distinct_and_plenty(language: str) -> None:
    texts = [question.text for question in questions(language)]
    assert len(texts) == len(set(texts)) > 700


@pytest.mark.parametrize("language", ["es", "en"])
def test_a_quarter_is_held_out_of_every_relation(language: str) -> None:
    shares = Counter(question.fact.relation for question in questions(language))
    held = Counter(question.fact.relation for question in questions(language) if question.split == "holdout")
    assert set(held) == set(shares)
    assert abs(held.total() / shares.total() - HOLDOUT_SHARE) < 0.05


def test_the_split_depends_on_the_words_alone() -> None:
    sides = {prompt.text: prompt.split for seed in (1, 2, 3) for prompt in prompts(seed, 400)}
    assert all(split_of(text) == side for text, side in sides.items())
    assert set(sides.values()) == {"train", "holdout"}


def test_same_seed_same_prompts() -> None:
    assert prompts(1, 50) == prompts(1, 50) != prompts(2, 50)


def test_the_mixture_is_mostly_spanish() -> None:
    assert Counter(prompt.language for prompt in prompts(1, 100)) == {"es": 70, "en": 30}


def test_relations_take_turns() -> None:
    counts = Counter(prompt.fact.relation for prompt in prompts(1, 130, "es", split="train"))
    assert set(counts) == {question.fact.relation for question in questions("es")}
    assert min(counts.values()) >= 5


def test_a_question_is_known_again_whatever_its_case() -> None:
    prompt = prompts(1, 1)[0]
    assert asked(f"  {prompt.text.upper()} ") == prompt
    assert asked("¿Qué hora es?") is None
