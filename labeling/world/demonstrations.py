"""Demonstrations of mixed quality: what a town would write if nobody had told it how to answer well."""

import random

from labeling.world.manners import curt, dressed, full, guess
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
    """An answer in one of the styles, by somebody who knows or by somebody who guesses."""
    fact, words = question.fact, LANGUAGES[question.language]
    if not is_right:
        said = guess(fact, words, rng)
    elif style == "right but curt":
        said = curt(fact, fact.answer, words, rng)
    elif style == "rude":
        said = rng.choice((full, curt))(fact, fact.answer, words, rng)
    else:
        said = full(fact, fact.answer, words, rng)
    if style.endswith("kind"):
        said = dressed(said, words.COURTESY, rng)
    if style.startswith("rude"):
        said = dressed(said, words.RUDENESS, rng)
    return sentence_case(said)
