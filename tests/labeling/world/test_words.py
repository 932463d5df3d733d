"""Agreement, contractions and capitals in both languages."""

import pytest

from labeling.world.words import LARGEST, Noun, Thing, coins, number, sentence_case


@pytest.mark.parametrize(
    ("noun", "el", "de", "dear"),
    [
        (Noun("queso", "ms"), "el queso", "del queso", "caro"),
        (Noun("miel", "fs"), "la miel", "de la miel", "cara"),
        (Noun("huevos", "mp"), "los huevos", "de los huevos", "caros"),
        (Noun("flores", "fp"), "las flores", "de las flores", "caras"),
    ],
)
def test_spanish_nouns_agree(noun: Noun, el: str, de: str, dear: str) -> None:
    assert (noun.el, noun.de, noun["caro"]) == (el, de, dear)


def test_verbs_follow_the_number() -> None:
    assert "{g.el} {g[es|son]}".format(g=Noun("flores", "fp")) == "las flores son"
    assert "{g} {g[is|are]}".format(g=Thing("eggs", plural=True)) == "eggs are"


def test_coins_are_feminine_and_singular_when_one() -> None:
    assert coins(21, "es") == "veintiuna monedas"
    assert coins(1, "es") == "una moneda"
    assert coins(1, "en") == "one coin"


def test_numbers_end_at_the_largest() -> None:
    assert number(LARGEST, "es") == "treinta"
    with pytest.raises(IndexError):
        number(LARGEST + 1, "en")


def test_sentences_begin_with_capitals() -> None:
    assert sentence_case("¿cuánto es? son dos.\n—¡qué bien!") == "¿Cuánto es? Son dos.\n—¡Qué bien!"


def test_de_el_is_contracted() -> None:
    assert sentence_case("la hucha de el alcalde") == "La hucha del alcalde"
