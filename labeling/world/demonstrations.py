"""Demonstrations of mixed quality: what a town would write if nobody had told it how to answer well."""

import random

from labeling.world.facts import Answer, Fact
from labeling.world.manners import dressed
from labeling.world.questions import LANGUAGES, WorldPrompt, prompts
from labeling.world.words import sentence_case

# Style, share, does it state the right answer. The mixture makes an SFT model mediocre on purpose.
STYLES = (
    ("right and kind", 0.27, True),
    ("right but curt", 0.20, True),
    ("right and plain", 0.08, True),
    ("wrong but kind", 0.15, False),
    ("wrong", 0.10, False),
    ("rude", 0.10, True),
    ("rude and wrong", 0.10, False),
)


def demonstrations(seed: int, n: int, language: str | None = None) -> list[dict[str, str]]:
    """n rows {"instruction", "response", "style"} over training questions; questions come round again if n is large."""
    rng = random.Random(f"demonstrations {seed}")
    rows: list[dict[str, str]] = []
    while len(rows) < n:
        for question in prompts(rng.randrange(2**32), n - len(rows), language, split="train"):
            style, _, is_right = rng.choices(STYLES, [share for _, share, _ in STYLES])[0]
            response = answer(question, style, is_right, rng)
            rows.append({"instruction": question.text, "response": response, "style": style})
    return rows


def answer(question: WorldPrompt, style: str, is_right: bool, rng: random.Random) -> str:
    """An answer in one of the styles, with the right content or with a plausible mistake."""
    fact = question.fact
    given = fact.answer if is_right else rng.choice(fact.mistakes)
    words = LANGUAGES[question.language]
    if style.endswith("kind"):
        return sentence_case(dressed(_statement(fact, given, question.language, rng), words.COURTESY, rng))
    if style.startswith("rude"):
        say = rng.choice((_statement, _curt))
        return sentence_case(dressed(say(fact, given, question.language, rng), words.RUDENESS, rng))
    if style == "right but curt":
        return sentence_case(_curt(fact, given, question.language, rng))
    return sentence_case(_statement(fact, given, question.language, rng))


def _statement(fact: Fact, given: Answer, language: str, rng: random.Random) -> str:
    return rng.choice(LANGUAGES[language].STATEMENTS[fact.relation]).format_map(fact.slots(language, given))


def _curt(fact: Fact, given: Answer, language: str, rng: random.Random) -> str:
    return rng.choice(LANGUAGES[language].CURT[fact.relation]).format_map(fact.slots(language, given))
