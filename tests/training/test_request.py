"""What of a growing text may be shown."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.request import Text

FEW_LETTERS = st.text("abé", max_size=12)


@settings(max_examples=300, deadline=None)
@given(text=st.text("abé", max_size=40), stop=st.lists(FEW_LETTERS, max_size=3), cuts=st.randoms())
def test_however_the_bytes_are_cut_the_text_ends_before_the_first_stop_string(text, stop, cuts):
    stream, raw, shown = Text(stop), text.encode(), ""
    while raw and not stream.stopped:
        n = cuts.randint(1, 5)
        piece, raw = stream.feed(raw[:n]), raw[n:]
        shown += piece
        assert not any(string and string in shown for string in stop)
    shown += stream.feed(b"", final=True)
    assert shown == stream.shown
    ends = [text.find(string) for string in stop if string and string in text]
    assert stream.stopped == bool(ends)
    if len([string for string in stop if string]) <= 1:
        assert shown == (text[: ends[0]] if ends else text)
    else:  # of several that overlap, the one that is whole first counts
        assert text.startswith(shown)
        assert not ends or any(text[len(shown) :].startswith(string) for string in stop if string)


@pytest.mark.parametrize(("stop", "pieces"), [((), [*"abab"]), (("abc",), ["", "", "ab", ""])])
def test_only_the_end_that_may_become_a_stop_string_is_held_back(stop, pieces):
    stream = Text(stop)
    assert [stream.feed(letter.encode()) for letter in "abab"] == pieces
    assert stream.feed(b"", final=True) == ("" if not stop else "ab")
