"""Expansion, enumeration and completeness of the grammars."""

import random

from labeling.world import english_tales, spanish_tales
from labeling.world.grammar import every, expand, symbols_missing

RULES = {"greet": ("<hello>, {name}.", "<hello>."), "hello": ("hi", "good day")}


def test_expansion_is_one_of_all_forms() -> None:
    forms = set(every(RULES, "greet", {"name": "Ana"}))
    assert forms == {"Hi, Ana.", "Good day, Ana.", "Hi.", "Good day."}
    assert {expand(RULES, "greet", {"name": "Ana"}, random.Random(seed)) for seed in range(50)} == forms


def test_no_symbol_lacks_a_rule() -> None:
    assert symbols_missing({"a": ("<b>",)}) == {"b"}
    for pack in (spanish_tales, english_tales):
        assert symbols_missing(pack.RULES) == set()


def test_the_twins_have_the_same_symbols_and_a_hundred_productions_each() -> None:
    assert spanish_tales.RULES.keys() == english_tales.RULES.keys()
    for pack in (spanish_tales, english_tales):
        assert sum(len(productions) for productions in pack.RULES.values()) >= 100
