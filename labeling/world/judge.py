"""The hidden utility: is an answer right, is it kind, is it short? Rules over what the town knows, no model."""

import itertools
import re
from dataclasses import dataclass
from functools import cache

from labeling.world.facts import Fact, facts
from labeling.world.lexicon import Mentions, mentions, spelled, words
from labeling.world.questions import LANGUAGES, WorldPrompt, asked

RIGHT, KIND, SHORT = 2.0, 1.0, 0.5
LONGEST = 40  # words; beyond that nobody at the market listens
_MARKS = re.compile(r"[.,:;!?¡¿]")
_BRIEF, _LENGTHY = 14, 22
_ANSWER_IN = {
    **dict.fromkeys(("price", "total", "change", "wage", "saving"), "coins"),
    "seller": "sellers",
    "place": "streets",
    "season": "seasons",
    "unit": "units",
    "shift": "directions",
    "idea": "meanings",
}
# What the answer may repeat of the question without stating a second answer.
_REPEATED = {
    "change": {"es": "de {paid}", "en": "of {paid}"},
    "saving": {"es": "con {weekly} por semana", "en": "with {weekly} a week"},
}


@dataclass(frozen=True)
class Judgement:
    """What a perfectly patient reader would say of an answer."""

    right: bool
    kind: bool
    short: float
    utility: float


NOTHING = Judgement(right=False, kind=False, short=0.0, utility=0.0)


def judge(prompt: str, response: str) -> Judgement:
    """Right counts more than kind, kind more than short (of right answers only); gibberish counts nothing."""
    question = asked(prompt)
    if question is None or not is_readable(response, question.language):
        return NOTHING
    right = is_right(question, response)
    kind = is_kind(response, question.language)
    count = len(words(response))
    short = 1.0 if count <= _BRIEF else 0.5 if count <= _LENGTHY else 0.0
    return Judgement(right, kind, short, RIGHT * right + KIND * kind + SHORT * short * right)


def is_readable(response: str, language: str) -> bool:
    """A finished answer in the words of the town: every pair of neighbours is one that its grammar can say."""
    text = response.strip()
    if not text or text[-1] not in ".!?" or len(words(text)) > LONGEST:
        return False
    stretches = [" ".join(spelled(stretch, language)) for stretch in _MARKS.split(text) if words(stretch)]
    if not stretches or len(set(stretches)) < len(stretches):
        return False
    return all(pair in _neighbours(language) for stretch in stretches for pair in _pairs(stretch))


def is_kind(response: str, language: str) -> bool:
    """One or two courtesies, no two the same, no rudeness, and something said besides."""
    told = " ".join(words(response))
    if any(formula in told for formula in _formulas(language, "RUDENESS")):
        return False
    kindnesses = _taken_out(_formulas(language, "COURTESY"), told)
    return len(kindnesses) in (1, 2) and len(set(kindnesses)) == len(kindnesses) and bool(_bare(told, language))


def is_right(question: WorldPrompt, response: str) -> bool:
    """It states the answer, only that one, and nothing about others or against what the town knows."""
    fact, language = question.fact, question.language
    told = _bare(" ".join(words(response)), language)
    repeated = _REPEATED.get(fact.relation, {}).get(language)
    if repeated:
        told = told.replace(repeated.format_map(fact.slots(language)), " ")
    found = mentions(told, language)
    allowed, answer = _known_about(fact, language)
    if not all(values <= allowed[category] for category, values in found.items()):
        return False
    return found[_ANSWER_IN[fact.relation]] == answer


@cache
def _known_about(fact: Fact, language: str) -> tuple[Mentions, set[object]]:
    """What a right answer may mention, read off all right answers; and what it must mention."""
    slots = fact.slots(language)
    pack = LANGUAGES[language]
    full = [text.format_map(slots) for text in pack.STATEMENTS[fact.relation]]
    curt = [text.format_map(slots) for text in pack.CURT[fact.relation]]
    repeated = _REPEATED.get(fact.relation, {}).get(language, "").format_map(slots) or "\n"
    told = " . ".join(" ".join(words(text)).replace(repeated, " ") for text in full + curt)
    if fact.relation not in ("idea", "wage", "saving"):
        told += " . " + "{v} . {street} . {season} . {u}".format_map(slots)
    answer = mentions(" ".join(words(curt[0])), language)[_ANSWER_IN[fact.relation]]
    return mentions(told, language), answer


@cache
def _formulas(language: str, manner: str) -> tuple[str, ...]:
    """Longest first, so that "con mucho gusto" is not taken apart."""
    found = {" ".join(words(text)) for texts in getattr(LANGUAGES[language], manner).values() for text in texts}
    return tuple(sorted(found, key=len, reverse=True))


def _taken_out(formulas: tuple[str, ...], told: str) -> list[str]:
    """The formulas a text uses, one entry for each time; a formula inside a longer one does not count."""
    return re.findall(r"\b(?:" + "|".join(formulas) + r")\b", told)


def _bare(told: str, language: str) -> str:
    """What is said besides courtesies and rudeness."""
    for formula in _formulas(language, "COURTESY") + _formulas(language, "RUDENESS"):
        told = told.replace(formula, " ")
    return told.strip()


@cache
def _neighbours(language: str) -> frozenset[tuple[str, str]]:
    """Every pair of neighbouring words in anything that the answers' grammar can say."""
    pack = LANGUAGES[language]
    found: set[tuple[str, str]] = set()
    for manner in (pack.COURTESY, pack.RUDENESS, pack.GUESSING):
        for formula in manner["open"] + manner["close"]:
            found.update(_all_pairs(formula))
    for evasion in pack.EVASIONS:
        found.update(_all_pairs(evasion))
    openings = [text for text in pack.GUESSING["open"] if not _MARKS.search(text)]  # these run on into what is said
    for fact in facts():
        for answer in (fact.answer, *fact.mistakes):
            slots = fact.slots(language, answer)
            for production in pack.STATEMENTS[fact.relation] + pack.CURT[fact.relation]:
                said = production.format_map(slots)
                found.update(pair for opening in ("", *openings) for pair in _all_pairs(opening + said))
    return frozenset(found)


def _pairs(stretch: str) -> list[tuple[str, str]]:
    """Neighbours within a stretch between two marks, its borders included."""
    return list(itertools.pairwise(["^", *words(stretch), "$"]))


def _all_pairs(text: str) -> list[tuple[str, str]]:
    return [pair for stretch in _MARKS.split(text) if words(stretch) for pair in _pairs(stretch)]
