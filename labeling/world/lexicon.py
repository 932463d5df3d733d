"""Which goods, people, streets, sums and directions a text names."""

import itertools
import re
from collections import defaultdict
from functools import cache

from labeling.world.town import GOODS, IDEAS, SEASONS, SELLERS, TRADES
from labeling.world.words import ENGLISH_NUMBERS, LARGEST, SPANISH_NUMBERS, coins

Mentions = dict[str, set[object]]
_DIRECTIONS = {"es": {"sube": "up", "baja": "down"}, "en": {"goes up": "up", "goes down": "down"}}
_QUANTITIES = {
    "es": {"hay menos": "less", "menos gente": "less", "hay más": "more", "más gente": "more"},
    "en": {"is less": "less", "are fewer": "less", "fewer people": "less", "is more": "more", "are more": "more"}
    | {"more people": "more"},
}
_COMPARISONS = {
    "es": {
        r"más car[oa]s?": "dearer",
        r"más barat[oa]s?": "cheaper",
        r"cuestan? más": "dearer",
        r"cuestan? menos": "cheaper",
    },
    "en": {r"dearer": "dearer", r"cheaper": "cheaper", r"costs? more": "dearer", r"costs? less": "cheaper"},
}
_ONE = {"es": ("uno", "una", "un"), "en": ("one",)}


def words(text: str) -> list[str]:
    """Lower-case words and figures."""
    return re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)?|\d+", text.lower())


def spelled(text: str, language: str) -> list[str]:
    """Lower-case words, figures written out: "21 monedas" reads "veintiuna monedas"."""
    run = words(text)
    for i, word in enumerate(run):
        if word.isdigit() and int(word) <= LARGEST:
            run[i] = coins(int(word), language).split()[0]
    return run


def mentions(told: str, language: str) -> Mentions:
    """Everything that a text, given as its words joined by spaces, names; by category."""
    found: Mentions = defaultdict(set)
    for category, pattern, meaning in _patterns(language):
        if pattern.search(told):
            found[category].add(meaning)
    found["coins"], found["numbers"] = _sums(told, language)
    return found


def _sums(told: str, language: str) -> tuple[set[object], set[object]]:
    """Amounts of money, and all other numbers; an article is a number only before coins, days and weeks."""
    money: set[object] = set()
    others: set[object] = set()
    for word, following in itertools.pairwise([*told.split(), ""]):
        value = _numbers(language).get(word)
        if word in _ONE[language]:
            value = 1 if following in ("moneda", "coin", "día", "day", "semana", "week") else None
        if value is not None:
            (money if following.startswith(("moneda", "coin")) else others).add(value)
    return money, others


@cache
def _numbers(language: str) -> dict[str, int]:
    names = SPANISH_NUMBERS if language == "es" else ENGLISH_NUMBERS
    values = {name: n for n, name in enumerate(names)} | {str(n): n for n in range(1000)}
    return values | ({"veintiuna": 21} if language == "es" else {})


@cache
def _patterns(language: str) -> tuple[tuple[str, re.Pattern[str], object], ...]:
    spanish = language == "es"
    listed: list[tuple[str, str, object]] = []
    for key, good in GOODS.items():
        listed.append(("goods", str(good.es if spanish else good.en), key))
        unit, units = (good.unit_es, good.units_es) if spanish else (good.unit_en, good.units_en)
        listed.append(("units", f"(?:{unit}|{units})", units))
    for key, seller in SELLERS.items():
        listed.append(("sellers", (seller.es if spanish else seller.en).lower(), key))
        listed.append(("streets", (seller.street_es if spanish else seller.street_en).lower(), key))
    for key, names in SEASONS.items():
        listed.append(("seasons", names[not spanish], key))
    for key, trade in TRADES.items():
        listed.append(("trades", str(trade.es if spanish else trade.en), key))
    for key, idea in IDEAS.items():
        listed.append(("ideas", str(idea.es if spanish else idea.en), key))
        listed.append(("meanings", idea.meaning_es if spanish else idea.meaning_en, key))
    for category, table in (
        ("directions", _DIRECTIONS[language]),
        ("quantities", _QUANTITIES[language]),
        ("comparisons", _COMPARISONS[language]),
    ):
        listed += [(category, pattern, meaning) for pattern, meaning in table.items()]
    return tuple((category, re.compile(rf"\b{pattern}\b"), meaning) for category, pattern, meaning in listed)
