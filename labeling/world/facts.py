"""Everything that can be asked in the town, the one right answer to it, and answers that are plausibly wrong."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

from labeling.world.town import GOODS, IDEAS, SEASONS, SELLERS, TRADES
from labeling.world.words import LARGEST, coins, number

Slots = dict[str, object]
Answer = int | str

WEEKLY = range(2, 5)
WEEKS = range(2, 5)
PAID = (10, 20)
# What moves a price: (direction, how much of it there is, who or what changed).
SHIFTS = {
    "shortage": ("up", "less", "supply"),
    "plenty": ("down", "more", "supply"),
    "fashion": ("up", "more", "demand"),
    "oblivion": ("down", "less", "demand"),
}
_DEMAND = {
    "es": {
        "fashion": "todo el pueblo quiere {g}",
        "oblivion": "nadie se acuerda {g.de}",
    },
    "en": {
        "fashion": "the whole town wants {g}",
        "oblivion": "nobody thinks of {g}",
    },
}
_REASONS = {
    "es": {
        ("less", "supply"): "hay menos {g}",
        ("more", "supply"): "hay más {g}",
        ("more", "demand"): "más gente quiere {g}",
        ("less", "demand"): "menos gente quiere {g}",
    },
    "en": {
        ("less", "supply"): "there {g[is less|are fewer]} {g}",
        ("more", "supply"): "there {g[is|are]} more {g}",
        ("more", "demand"): "more people want {g}",
        ("less", "demand"): "fewer people want {g}",
    },
}
_DIRECTIONS = {"es": {"up": "sube", "down": "baja"}, "en": {"up": "goes up", "down": "goes down"}}


@dataclass(frozen=True)
class Fact:
    """One thing the town knows: what kind, about what, the answer, and what a mistaken person might say."""

    relation: str
    subject: tuple[Answer, ...]
    answer: Answer
    mistakes: tuple[Answer, ...]

    def slots(self, language: str, answer: Answer | None = None) -> Slots:
        """The words for the productions, with this answer (the right one if none is given)."""
        return _SLOTS[self.relation](self, language, self.answer if answer is None else answer)


@cache
def facts() -> tuple[Fact, ...]:
    """Every fact of the town, in a fixed order."""
    return tuple(fact for make in _MAKERS for fact in make())


def good_slots(key: str, language: str) -> Slots:
    """What can be said about a good without counting: its name, measure, seller, street, season and fortunes."""
    good = GOODS[key]
    seller = SELLERS[good.seller]
    spanish = language == "es"
    noun = good.es if spanish else good.en
    causes = (good.shortage_es, good.plenty_es) if spanish else (good.shortage_en, good.plenty_en)
    return {
        "g": noun,
        "u": good.unit_es if spanish else good.unit_en,
        "units": good.units_es if spanish else good.units_en,
        "coins": coins(good.price, language),
        "v": seller.es if spanish else seller.en,
        "street": seller.street_es if spanish else seller.street_en,
        "season": SEASONS[good.season][not spanish],
        "shortage": causes[0],
        "plenty": causes[1],
    }


def amount(key: str, n: int, language: str) -> str:
    """2 -> "dos tarros" or "two jars"."""
    good = GOODS[key]
    return f"{number(n, language)} {good.units_es if language == 'es' else good.units_en}"


def amounts(key: str) -> range:
    """How many of a good the town can buy before it runs out of numbers."""
    return range(2, min(3, LARGEST // GOODS[key].price) + 1)


def paid_for(key: str) -> int:
    """The coins somebody hands over for one: more than a coin too many, since "son una moneda" would not agree."""
    return next(paid for paid in PAID if paid > GOODS[key].price + 1)


def span(n: int, singular: str, plural: str, language: str) -> str:
    """A span of time: "un día", "tres días", "one week"."""
    if n == 1:
        return f"{'un' if language == 'es' else 'one'} {singular}"
    return f"{number(n, language)} {plural}"


def _near(n: int) -> tuple[int, ...]:
    """Sums a hasty person might arrive at."""
    return tuple(m for m in (n - 3, n - 2, n - 1, n + 1, n + 2, n + 3) if 2 <= m <= LARGEST)


def _others(pool: Iterable[str], right: str) -> tuple[str, ...]:
    return tuple(sorted(key for key in pool if key != right))


def _prices() -> list[Fact]:
    return [Fact("price", (key,), good.price, _near(good.price)) for key, good in GOODS.items()]


def _totals() -> list[Fact]:
    return [
        Fact("total", (key, n), n * good.price, _near(n * good.price))
        for key, good in GOODS.items()
        for n in amounts(key)
    ]


def _changes() -> list[Fact]:
    return [
        Fact("change", (key, paid_for(key)), paid_for(key) - good.price, _near(paid_for(key) - good.price))
        for key, good in GOODS.items()
    ]


def _attributes() -> list[Fact]:
    sellers = [Fact("seller", (key,), good.seller, _others(SELLERS, good.seller)) for key, good in GOODS.items()]
    places = [Fact("place", (key,), good.seller, _others(SELLERS, good.seller)) for key, good in GOODS.items()]
    seasons = [Fact("season", (key,), good.season, _others(SEASONS, good.season)) for key, good in GOODS.items()]
    measures = [
        Fact("unit", (key,), key, tuple(k for k, other in GOODS.items() if other.units_es != good.units_es))
        for key, good in GOODS.items()
    ]
    return sellers + places + seasons + measures


def _shifts() -> list[Fact]:
    return [
        Fact("shift", (key, event), SHIFTS[event][0], ("down" if SHIFTS[event][0] == "up" else "up",))
        for key in GOODS
        for event in SHIFTS
    ]


def _wages() -> list[Fact]:
    return [
        Fact("wage", (key, days), days * trade.wage, _near(days * trade.wage))
        for key, trade in TRADES.items()
        for days in (1, 2, 3)
    ]


def _savings() -> list[Fact]:
    return [
        Fact("saving", (weekly, weeks), weekly * weeks, _near(weekly * weeks)) for weekly in WEEKLY for weeks in WEEKS
    ]


def _comparisons() -> list[Fact]:
    """Only pairs whose prices lie well apart; which of the two is named first alternates."""
    by_price = sorted(GOODS, key=lambda key: GOODS[key].price)
    pairs = [(a, b) for a in by_price for b in by_price if GOODS[b].price - GOODS[a].price >= 6]
    found = []
    for i, (cheap, dear) in enumerate(pairs):
        first, second = (cheap, dear) if i % 2 else (dear, cheap)
        found.append(Fact("dearer", (first, second), dear, (cheap,)))
        found.append(Fact("cheaper", (first, second), cheap, (dear,)))
    return found


def _ideas() -> list[Fact]:
    return [Fact("idea", (key,), key, _others(IDEAS, key)) for key in IDEAS]


_MAKERS: tuple[Callable[[], list[Fact]], ...] = (
    _prices,
    _totals,
    _changes,
    _attributes,
    _shifts,
    _wages,
    _savings,
    _comparisons,
    _ideas,
)


def _money_slots(fact: Fact, language: str, answer: Answer) -> Slots:
    key = str(fact.subject[0])
    slots = good_slots(key, language) | {"coins": coins(int(answer), language)}
    if fact.relation == "total":
        slots["nu"] = amount(key, int(fact.subject[1]), language)
    if fact.relation == "change":
        slots["paid"] = coins(int(fact.subject[1]), language)
    return slots


def _attribute_slots(fact: Fact, language: str, answer: Answer) -> Slots:
    name = {"seller": "v", "place": "street", "season": "season", "unit": "units"}[fact.relation]
    if fact.relation in ("seller", "place"):
        seller = SELLERS[str(answer)]
        words = (seller.es, seller.en) if fact.relation == "seller" else (seller.street_es, seller.street_en)
    elif fact.relation == "season":
        words = SEASONS[str(answer)]
    else:
        words = (GOODS[str(answer)].units_es, GOODS[str(answer)].units_en)
    return good_slots(str(fact.subject[0]), language) | {name: words[language == "en"]}


def _shift_slots(fact: Fact, language: str, answer: Answer) -> Slots:
    key, event = map(str, fact.subject)
    slots = good_slots(key, language)
    _, quantity, side = SHIFTS[event]
    if answer != fact.answer:  # a mistaken person gets the reason wrong as well
        quantity = "more" if quantity == "less" else "less"
    happens = slots[event] if event in slots else _DEMAND[language][event].format_map(slots)
    reason = _REASONS[language][quantity, side].format_map(slots)
    return slots | {"event": happens, "reason": reason, "moves": _DIRECTIONS[language][str(answer)]}


def _wage_slots(fact: Fact, language: str, answer: Answer) -> Slots:
    trade = TRADES[str(fact.subject[0])]
    day = ("día", "días") if language == "es" else ("day", "days")
    return {
        "j": trade.es if language == "es" else trade.en,
        "days": span(int(fact.subject[1]), *day, language),
        "coins": coins(int(answer), language),
    }


def _saving_slots(fact: Fact, language: str, answer: Answer) -> Slots:
    week = ("semana", "semanas") if language == "es" else ("week", "weeks")
    return {
        "weekly": coins(int(fact.subject[0]), language),
        "weeks": span(int(fact.subject[1]), *week, language),
        "coins": coins(int(answer), language),
    }


def _compare_slots(fact: Fact, language: str, answer: Answer) -> Slots:
    first, second = (GOODS[str(key)] for key in fact.subject)
    winner = GOODS[str(answer)]
    loser = second if winner is first else first
    named = {"a": first, "b": second, "w": winner, "l": loser}
    return {name: good.es if language == "es" else good.en for name, good in named.items()}


def _idea_slots(fact: Fact, language: str, answer: Answer) -> Slots:
    asked, told = IDEAS[str(fact.subject[0])], IDEAS[str(answer)]
    if language == "es":
        return {"c": asked.es, "meaning": told.meaning_es}
    return {"c": asked.en, "meaning": told.meaning_en}


_SLOTS: dict[str, Callable[[Fact, str, Answer], Slots]] = {
    **dict.fromkeys(("price", "total", "change"), _money_slots),
    **dict.fromkeys(("seller", "place", "season", "unit"), _attribute_slots),
    "shift": _shift_slots,
    "wage": _wage_slots,
    "saving": _saving_slots,
    **dict.fromkeys(("dearer", "cheaper"), _compare_slots),
    "idea": _idea_slots,
}
