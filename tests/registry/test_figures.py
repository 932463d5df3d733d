"""Numbers for humans."""

import pytest
from django.utils.translation import override

from registry import figures


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.07, "0.07"), (0.9, "0.9"), (1.0, "1"), (3.14159, "3.14"), (127.6, "128"), (-0.5, "-0.5"),
     (12345.6, "12,346"), (0.00012, "1.2e-4"), (-8.9e-8, "0")],
)  # fmt: skip
def test_number_has_three_digits(value, text):
    with override("en"):
        assert figures.number(value) == text


def test_number_follows_the_language():
    with override("es"):
        assert figures.number(3.14159) == "3,14"


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (9999, "9,999"), (56_700, "56.7 k"), (1_049_600, "1.05 M"), (2.5e9, "2.50 G")]
)
def test_compact_is_exact_while_it_is_short(value, text):
    with override("en"):
        assert figures.compact(value).replace("\N{NO-BREAK SPACE}", " ") == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (3660, "1 h 1 min")])
def test_duration(seconds, text):
    with override("en"):
        assert figures.duration(seconds).replace("\N{NO-BREAK SPACE}", " ") == text


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_what_is_no_number_is_a_dash(value):
    assert figures.shown("loss", value) == "–"


def test_table_knows_names_and_leaves_nothing_out():
    with override("en"):
        assert figures.table({"new_thing": 2, "val_loss": 0.5, "nested": {}}) == [
            ("Validation loss", "0.5"),
            ("New thing", "2"),
        ]
