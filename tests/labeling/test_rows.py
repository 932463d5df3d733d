"""What a line may say, and the sentence for everything else."""

import json
from contextlib import suppress
from typing import Any

import pytest
from django.utils import translation
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labeling.rows import BadRow, parse_row, read_tiers

KINDS = ["prompts", "demonstrations", "preferences", "rankings"]

# A busy machine is no failure.
_many = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(autouse=True)
def _in_english():
    with translation.override("en"):
        yield


def _demonstration(**changes: Any) -> str:
    return json.dumps({"instruction": "¿Qué tal?", "response": "Bien.", **changes})


def _ranking(**changes: Any) -> str:
    return json.dumps({"prompt": "Hola", "responses": ["a", "b", "c"], "ranking": [2, [0, 1]], **changes})


def _reason(kind: str, line: str, **options: Any) -> str:
    with pytest.raises(BadRow) as caught:
        parse_row(kind, line, **options)
    return str(caught.value)


def test_every_layout_is_read():
    assert parse_row("prompts", '{"prompt": "Hola", "split": "holdout"}').split == "holdout"
    for line in (_demonstration(), '{"prompt": "¿Qué tal?", "completion": "Bien."}'):
        row = parse_row("demonstrations", line)
        assert (row.prompt, row.responses) == ("¿Qué tal?", ["Bien."])
    row = parse_row("preferences", '{"prompt": "Hola", "chosen": "sí", "rejected": "no"}')
    assert (row.responses, row.tiers) == (["sí", "no"], [[0], [1]])
    row = parse_row("rankings", _ranking(none_good=True))
    assert (row.responses, row.tiers, row.none_good) == (["a", "b", "c"], [[2], [0, 1]], True)


def test_a_ranking_may_say_who_judged_and_what_wrote():
    row = parse_row("rankings", _ranking(annotator=7, policies=["sft-1", "", "policy-2"]))
    assert (row.annotator, row.policies, row.notes) == ("7", ["sft-1", "", "policy-2"], [])
    assert parse_row("rankings", _ranking()).policies == []
    assert "one policy for each of the 3 responses" in _reason("rankings", _ranking(policies=["sft-1"]))
    assert _reason("rankings", _ranking(annotator=["bob"])) == "'annotator' is not a text."
    assert parse_row("demonstrations", _demonstration(annotator=7)).notes == ["annotator"]


def test_a_missing_field_is_named_beside_those_there_are():
    reason = _reason("demonstrations", '{"instruction": "a", "answer": "b"}')
    assert reason == "'response' is missing (fields: instruction, answer)."
    assert _reason("prompts", "{}") == "'prompt' is missing (fields: none)."


def test_a_file_of_another_kind_is_recognised():
    reason = _reason("demonstrations", '{"prompt": "a", "chosen": "b", "rejected": "c"}')
    assert reason.endswith("It looks like a file of kind preferences.")
    assert _reason("prompts", _demonstration()).endswith("It looks like a file of kind demonstrations.")


def test_an_unknown_field_is_named_with_the_nearest_known_one():
    reason = _reason("demonstrations", _demonstration(respones="?"))
    assert reason == "the field 'respones' is not known; the nearest known one is 'response'."
    assert "known ones are annotator," in _reason("demonstrations", _demonstration(xyzzy=1))
    assert "'split' is not known" in _reason("demonstrations", _demonstration(split="holdout"))


def test_unknown_fields_can_be_ignored_and_notes_always_are():
    row = parse_row("demonstrations", _demonstration(xyzzy=1, source="town", lang="es"), ignore_unknown=True)
    assert (row.ignored, row.notes) == (["xyzzy"], ["source", "lang"])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("hola", "not JSON (Expecting value at character 1)"),
        ('{"prompt": "a"', "not JSON"),
        ('["a"]', "a row is an object"),
        ("null", "a row is an object"),
        ('{"prompt": NaN}', "NaN is not JSON"),
        ('{"prompt": "a", "prompt": "b"}', "'prompt' stands in it twice"),
        ('{"prompt": 3}', "'prompt' is not a text"),
        ('{"prompt": " \\n"}', "'prompt' is empty"),
        ('{"prompt": "a\\u0000"}', "zero character"),
        ('{"prompt": "a\\ud800"}', "half a character"),
        ('{"prompt": "a", "split": "test"}', "neither train nor holdout"),
        ("[" * 100_000, "nested too deeply"),
        ('{"prompt": ' + "9" * 5000 + "}", "not JSON"),
    ],
)
def test_broken_prompts(line: str, reason: str):
    assert reason in _reason("prompts", line)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"responses": ["a"], "ranking": [0]}, "'responses' has 1 texts: a ranking needs at least 2."),
        ({"responses": [], "ranking": []}, "'responses' has 0 texts"),
        ({"responses": ["a"] * 101}, "at most 100"),
        ({"responses": "abc"}, "'responses' is not a list"),
        ({"responses": ["a", None, "c"]}, "'responses[1]' is not a text"),
        ({"responses": ["", " ", ""]}, "all its answers are empty"),
        ({"ranking": [0, 1]}, "leaves out response 2 of 3"),
        ({"ranking": [0, 1, 1]}, "names response 1 twice"),
        ({"ranking": [0, [1, 1], 2]}, "names response 1 twice"),
        ({"ranking": [1, 2, 3]}, "names response 3, and there are 3, numbered from 0"),
        ({"ranking": [-1, 0, 1]}, "names response -1"),
        ({"ranking": [0, True, 2]}, "holds true, which is no whole number"),
        ({"ranking": [0, 1.0, 2]}, "holds 1.0, which is no whole number"),
        ({"ranking": [0, [[1]], 2]}, "holds [1], which is no whole number"),
        ({"ranking": [0, [], 1, 2]}, "holds an empty list"),
        ({"ranking": "012"}, "'ranking' is not a list"),
        ({"none_good": "no"}, "'none_good' is neither true nor false"),
    ],
)
def test_broken_rankings(changes: dict[str, Any], reason: str):
    assert reason in _reason("rankings", _ranking(**changes))


def test_a_model_may_have_answered_nothing():
    assert parse_row("rankings", _ranking(responses=["a", "", "c"])).responses == ["a", "", "c"]
    assert parse_row("preferences", '{"prompt": "a", "chosen": "b", "rejected": ""}').responses == ["b", ""]


def test_the_same_content_has_the_same_digest_and_a_note_changes_it():
    swapped = '{"response": "Bien.", "instruction": "¿Qué tal?"}'
    digest = parse_row("demonstrations", _demonstration()).digest
    assert parse_row("demonstrations", swapped).digest == digest
    assert parse_row("demonstrations", _demonstration(id=2)).digest != digest


@st.composite
def _orders(draw: st.DrawFn) -> list[list[int]]:
    """Any order of 2 to 9 texts with ties anywhere."""
    places = draw(st.permutations(range(draw(st.integers(2, 9)))))
    tiers = [[places[0]]]
    for place in places[1:]:
        if draw(st.booleans()):
            tiers[-1].append(place)
        else:
            tiers.append([place])
    return tiers


@_many
@given(_orders(), st.booleans())
def test_every_order_with_ties_is_read_as_it_stands(tiers: list[list[int]], bare: bool):
    k = sum(map(len, tiers))
    written = [tier[0] if bare and len(tier) == 1 else tier for tier in tiers]
    line = _ranking(responses=[f"text {n}" for n in range(k)], ranking=written)
    assert parse_row("rankings", line).tiers == tiers


@_many
@given(st.lists(st.integers(-1, 5) | st.lists(st.integers(0, 4), max_size=3), max_size=7), st.integers(2, 5))
def test_only_permutations_are_rankings(ranking: list[Any], k: int):
    tiers = [entry if isinstance(entry, list) else [entry] for entry in ranking]
    is_one = sorted(place for tier in tiers for place in tier) == list(range(k)) and all(tiers)
    try:
        assert read_tiers(ranking, k) == tiers
        assert is_one
    except BadRow:
        assert not is_one


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
_fields = st.sampled_from(
    ["prompt", "instruction", "response", "chosen", "rejected", "responses", "ranking", "none_good", "split", "id", "x"]
)


@_many
@given(st.sampled_from(KINDS), st.dictionaries(_fields, _json, max_size=6), st.booleans())
def test_any_json_is_a_row_or_one_reason(kind: str, values: dict[str, Any], ignore: bool):
    with suppress(BadRow):
        assert parse_row(kind, json.dumps(values), ignore_unknown=ignore).prompt.strip()


@_many
@given(st.sampled_from(KINDS), st.text())
def test_any_text_is_a_row_or_one_reason(kind: str, line: str):
    with suppress(BadRow):
        parse_row(kind, line)
