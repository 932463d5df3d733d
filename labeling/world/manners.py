"""Who answers and how: people who know or guess, courteous, plain or gruff."""

import random
from types import ModuleType

from labeling.world.facts import Answer, Fact

EVASIVE, HESITANT = 0.72, 0.22  # shares among people who do not know; the others state their mistake as a fact


def full(fact: Fact, given: Answer, words: ModuleType, rng: random.Random) -> str:
    """A whole sentence, without capitals as yet."""
    production: str = rng.choice(words.STATEMENTS[fact.relation])
    return production.format_map(fact.slots(words.LANGUAGE, given))


def curt(fact: Fact, given: Answer, words: ModuleType, rng: random.Random) -> str:
    """The answer and nothing else."""
    production: str = rng.choice(words.CURT[fact.relation])
    return production.format_map(fact.slots(words.LANGUAGE, given))


def guess(fact: Fact, words: ModuleType, rng: random.Random) -> str:
    """What somebody says who does not know: mostly one hears it."""
    drawn = rng.random()
    if drawn < EVASIVE:
        evasion: str = rng.choice(words.EVASIONS)
        return evasion
    mistake = rng.choice((full, curt))(fact, rng.choice(fact.mistakes), words, rng)
    return dressed(mistake, words.GUESSING, rng) if drawn < EVASIVE + HESITANT else mistake


def dressed(statement: str, manner: dict[str, tuple[str, ...]], rng: random.Random) -> str:
    """A formula before, after, or on both sides."""
    place = rng.choices(("open", "close", "both"), (0.45, 0.35, 0.2))[0]
    before = rng.choice(manner["open"]) if place != "close" else ""
    after = rng.choice(manner["close"]) if place != "open" else ""
    return before + statement + after
