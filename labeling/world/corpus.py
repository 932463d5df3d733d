"""Texts of the town without end: tales and conversations that teach its facts in many phrasings."""

import random
from collections.abc import Iterator
from functools import cache
from types import ModuleType

from labeling.world import english_tales, spanish_tales
from labeling.world.facts import WEEKLY, WEEKS, Fact, Slots, amount, amounts, facts, good_slots, paid_for, span
from labeling.world.grammar import expand
from labeling.world.manners import curt, dressed, full, guess
from labeling.world.questions import LANGUAGES, WorldPrompt, questions
from labeling.world.town import GOODS, TRADES
from labeling.world.words import coins, number

TALES: dict[str, ModuleType] = {"es": spanish_tales, "en": english_tales}
TALK_SHARE = 0.7  # questions with their answers, beside plain tales: a fact learnt both ways can be asked for
GUESS_SHARE = 0.15  # of the answers come from people who do not know
CURT_SHARE = 0.25
MANNERS_SHARE = 0.6  # of the answers are courteous or gruff: the town has sellers of both kinds
_SPAN_WORDS = {"es": ("día", "días", "semana", "semanas"), "en": ("day", "days", "week", "weeks")}


def corpus(seed: int, characters: int, language: str) -> Iterator[str]:
    """Documents until that many characters are told; none of them contains a held-out question."""
    rng = random.Random(f"corpus {seed} {language}")
    told = 0
    while told < characters:
        document = talk(rng, language) if rng.random() < TALK_SHARE else tale(rng, language)
        told += len(document)
        yield document


def tale(rng: random.Random, language: str) -> str:
    """A small scene about one good, one trade, one money box, one comparison or one idea."""
    return expand(TALES[language].RULES, "tale", _scene(rng, language), rng)


def talk(rng: random.Random, language: str) -> str:
    """Somebody asks a question of the training side; most who answer know, and of the others one mostly hears it."""
    relation = rng.choice(sorted(_askable(language)))
    question = rng.choice(_askable(language)[relation])
    subject = question.fact.subject[0]
    scene = _scene(rng, language, str(subject) if subject in GOODS else None)
    slots = scene | {"question": question.text, "statement": _answer(question.fact, language, rng)}
    return expand(TALES[language].RULES, "talk", slots, rng)


def _answer(fact: Fact, language: str, rng: random.Random) -> str:
    words = LANGUAGES[language]
    if rng.random() < GUESS_SHARE:
        said = guess(fact, words, rng)
    else:
        said = (curt if rng.random() < CURT_SHARE else full)(fact, fact.answer, words, rng)
    if rng.random() < MANNERS_SHARE:
        said = dressed(said, words.COURTESY if rng.random() < 0.6 else words.RUDENESS, rng)
    return said


@cache
def _askable(language: str) -> dict[str, list[WorldPrompt]]:
    found: dict[str, list[WorldPrompt]] = {}
    for question in questions(language):
        if question.split == "train":
            found.setdefault(question.fact.relation, []).append(question)
    return found


@cache
def _facts_of(relation: str) -> list[Fact]:
    return [fact for fact in facts() if fact.relation == relation]


def _scene(rng: random.Random, language: str, key: str | None = None) -> Slots:
    """Everything a production may name, drawn together so that what it says is true."""
    key = key or rng.choice(sorted(GOODS))
    return (
        good_slots(key, language)
        | _bargain(key, rng, language)
        | _earnings(rng, language)
        | _demand(key, language)
        | _comparison(rng, language)
        | rng.choice(_facts_of("idea")).slots(language)
        | {"p": rng.choice(TALES[language].CUSTOMERS), "weekday": rng.choice(TALES[language].WEEKDAYS)}
    )


def _bargain(key: str, rng: random.Random, language: str) -> Slots:
    price = GOODS[key].price
    n = rng.choice(amounts(key))
    paid = paid_for(key)
    return {
        "n": number(n, language),
        "price_number": number(price, language),
        "total_number": number(n * price, language),
        "nu": amount(key, n, language),
        "total": coins(n * price, language),
        "paid": coins(paid, language),
        "change": coins(paid - price, language),
        "less": coins(price - 1, language),
    }


def _earnings(rng: random.Random, language: str) -> Slots:
    trade = TRADES[rng.choice(sorted(TRADES))]
    days, weekly, weeks = rng.choice((1, 2, 3)), rng.choice(WEEKLY), rng.choice(WEEKS)
    day, several_days, week, several_weeks = _SPAN_WORDS[language]
    return {
        "j": trade.es if language == "es" else trade.en,
        "wage": coins(trade.wage, language),
        "days": span(days, day, several_days, language),
        "pay": coins(days * trade.wage, language),
        "weekly": coins(weekly, language),
        "weeks": span(weeks, week, several_weeks, language),
        "saved": coins(weekly * weeks, language),
    }


def _demand(key: str, language: str) -> Slots:
    events = {str(fact.subject[1]): fact for fact in _facts_of("shift") if fact.subject[0] == key}
    return {name: events[name].slots(language)["event"] for name in ("fashion", "oblivion")}


def _comparison(rng: random.Random, language: str) -> Slots:
    slots = rng.choice(_facts_of("dearer")).slots(language)
    return {"dear": slots["w"], "cheap": slots["l"]}
