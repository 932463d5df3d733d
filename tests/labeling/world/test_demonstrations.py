"""Demonstrations of mixed styles, judged as what they claim to be."""

from collections import Counter

from labeling.world.demonstrations import STYLES, demonstrations
from labeling.world.judge import judge
from labeling.world.questions import asked


def test_each_style_is_judged_as_its_name_says() -> None:
    states = {style: (right, style.endswith("kind")) for style, _, right in STYLES}
    for row in demonstrations(1, 3000):
        verdict = judge(row["instruction"], row["response"])
        assert (verdict.right, verdict.kind) == states[row["style"]], row


def test_no_held_out_question_is_demonstrated() -> None:
    splits = {question.split for row in demonstrations(2, 3000) if (question := asked(row["instruction"]))}
    assert splits == {"train"}


def test_styles_come_in_their_shares() -> None:
    counts = Counter(row["style"] for row in demonstrations(3, 4000))
    for style, share, _ in STYLES:
        assert abs(counts[style] / 4000 - share) < 0.03


def test_as_many_as_asked_and_the_same_again() -> None:
    assert len(demonstrations(1, 3210, "es")) == 3210
    assert demonstrations(1, 20, "en") == demonstrations(1, 20, "en")
