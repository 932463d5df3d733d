"""The corpus: seeded, as long as asked, and silent about held-out questions."""

import pytest

from labeling.world.corpus import corpus
from labeling.world.questions import questions


@pytest.mark.parametrize("language", ["es", "en"])
def test_no_held_out_question_in_the_corpus(language: str) -> None:
    text = "\n".join(corpus(1, 600_000, language)).lower()
    held_out = [question.text.lower() for question in questions(language) if question.split == "holdout"]
    seen = [question.text.lower() for question in questions(language) if question.split == "train"]
    assert not [question for question in held_out if question in text]
    assert sum(question in text for question in seen) > 0.7 * len(seen)


def test_same_seed_same_corpus() -> None:
    assert list(corpus(1, 2000, "es")) == list(corpus(1, 2000, "es")) != list(corpus(2, 2000, "es"))


def test_length_is_as_asked() -> None:
    assert 5000 <= sum(len(document) for document in corpus(3, 5000, "en")) < 5600


@pytest.mark.parametrize("language", ["es", "en"])
def test_documents_are_finished_and_hold_no_unfilled_slot(language: str) -> None:
    for document in corpus(4, 100_000, language):
        assert document[-1] in ".!?"
        assert not set("{}<>") & set(document)
        assert " de el " not in document
        assert "  " not in document


def test_the_corpus_states_every_price() -> None:
    text = "\n".join(corpus(5, 300_000, "es"))
    for sentence in ("tarro de miel vale once monedas", "kilo de pescado cuesta diez monedas"):
        assert sentence in text
