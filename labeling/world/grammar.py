"""A seeded grammar: productions with <symbols> to expand and {slots} to fill."""

import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence

from labeling.world.words import sentence_case

Rules = Mapping[str, Sequence[str]]
_SYMBOL = re.compile(r"<(\w+)>")


def expand(rules: Rules, symbol: str, slots: Mapping[str, object], rng: random.Random) -> str:
    """One text drawn from the grammar, with its sentences capitalised."""
    return sentence_case(_draw(rules, symbol, rng).format_map(slots))


def every(rules: Rules, symbol: str, slots: Mapping[str, object]) -> Iterator[str]:
    """All texts a symbol can become with these slots; the grammar below it must be finite."""
    for form in _forms(rules, symbol):
        yield sentence_case(form.format_map(slots))


def symbols_missing(rules: Rules) -> set[str]:
    """Symbols that some production names and no rule defines."""
    named = {name for productions in rules.values() for text in productions for name in _SYMBOL.findall(text)}
    return named - set(rules)


def _draw(rules: Rules, symbol: str, rng: random.Random) -> str:
    return _SYMBOL.sub(lambda found: _draw(rules, found.group(1), rng), rng.choice(rules[symbol]))


def _forms(rules: Rules, symbol: str) -> Iterator[str]:
    for production in rules[symbol]:
        parts = _SYMBOL.split(production)  # literal, name, literal, name, ... literal
        choices = [[part] if i % 2 == 0 else list(_forms(rules, part)) for i, part in enumerate(parts)]
        yield from ("".join(chosen) for chosen in itertools.product(*choices))
