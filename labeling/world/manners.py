"""How something is said: courtesies and rudeness around a statement."""

import random


def dressed(statement: str, manner: dict[str, tuple[str, ...]], rng: random.Random) -> str:
    """A formula before, after, or on both sides; sentence_case() has still to be applied."""
    place = rng.choices(("open", "close", "both"), (0.45, 0.35, 0.2))[0]
    before = rng.choice(manner["open"]) if place != "close" else ""
    after = rng.choice(manner["close"]) if place != "open" else ""
    return before + statement + after
