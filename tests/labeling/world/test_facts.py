"""The town's facts are consistent and its mistakes are mistakes."""

from labeling.world.facts import facts, good_slots
from labeling.world.town import GOODS, SELLERS
from labeling.world.words import LARGEST


def test_no_fact_counts_its_answer_among_the_mistakes() -> None:
    assert all(fact.mistakes and fact.answer not in fact.mistakes for fact in facts())


def test_all_sums_stay_within_the_numbers() -> None:
    values = [value for fact in facts() for value in (fact.answer, *fact.mistakes) if isinstance(value, int)]
    assert values
    assert 2 <= min(values) <= max(values) <= LARGEST


def test_every_seller_sells_two_goods() -> None:
    assert sorted(good.seller for good in GOODS.values()) == sorted([*SELLERS, *SELLERS])


def test_comparisons_name_each_good_first_about_as_often() -> None:
    pairs = [fact for fact in facts() if fact.relation == "dearer"]
    first = sum(fact.subject[0] == fact.answer for fact in pairs)
    assert abs(first - len(pairs) / 2) <= 1


def test_both_languages_say_the_same_price() -> None:
    assert good_slots("honey", "es")["coins"] == "once monedas"
    assert good_slots("honey", "en")["coins"] == "eleven coins"
