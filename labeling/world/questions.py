"""Every question the town can be asked, and which of them are kept from all training."""

import hashlib
import random
from dataclasses import dataclass
from functools import cache

from labeling.world import english, spanish
from labeling.world.facts import Fact, facts
from labeling.world.words import sentence_case

LANGUAGES = {"es": spanish, "en": english}
HOLDOUT_SHARE = 0.28


@dataclass(frozen=True)
class WorldPrompt:
    """A question in its own words, the fact it asks for, and the side of the split it lies on."""

    text: str
    language: str
    split: str
    fact: Fact


def split_of(text: str) -> str:
    """Depends on the words alone, so that no seed can move a question across."""
    drawn = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32
    return "holdout" if drawn < HOLDOUT_SHARE else "train"


@cache
def questions(language: str) -> tuple[WorldPrompt, ...]:
    """All questions of a language: each way to ask for each fact."""
    found = []
    for fact in facts():
        slots = fact.slots(language)
        for production in LANGUAGES[language].QUESTIONS.get(fact.relation, ()):  # comparisons are told, not asked
            text = sentence_case(production.format_map(slots))
            found.append(WorldPrompt(text, language, split_of(text), fact))
    return tuple(found)


@cache
def asked(text: str) -> WorldPrompt | None:
    """The question with these words, forgiving case and spaces, or None if the town knows no such question."""
    return _index().get(_key(text))


def prompts(seed: int, n: int, language: str | None = None, split: str | None = None) -> list[WorldPrompt]:
    """n different questions in random order; without a language, seven in ten are Spanish; fewer if there are fewer."""
    rng = random.Random(f"prompts {seed}")
    if language:
        return _drawn(rng, language, split, n)
    spanish_share = round(n * 0.7)
    drawn = _drawn(rng, "es", split, spanish_share) + _drawn(rng, "en", split, n - spanish_share)
    rng.shuffle(drawn)
    return drawn


def _drawn(rng: random.Random, language: str, split: str | None, n: int) -> list[WorldPrompt]:
    """Relations take turns, so that the few questions about ideas are not lost among the many sums."""
    piles: dict[str, list[WorldPrompt]] = {}
    for question in questions(language):
        if split in (None, question.split):
            piles.setdefault(question.fact.relation, []).append(question)
    for pile in piles.values():
        rng.shuffle(pile)
    drawn: list[WorldPrompt] = []
    while len(drawn) < n and any(piles.values()):
        drawn += [pile.pop() for pile in piles.values() if pile]
    drawn = drawn[:n]
    rng.shuffle(drawn)
    return drawn


@cache
def _index() -> dict[str, WorldPrompt]:
    return {_key(question.text): question for language in LANGUAGES for question in questions(language)}


def _key(text: str) -> str:
    return " ".join(text.lower().split())
