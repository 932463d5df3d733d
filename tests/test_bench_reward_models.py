"""Reward models beside TRL's: what is split, counted and compared."""

import random
from pathlib import Path

import pytest

from bench import reward_models, runs
from bench.runs import Clock
from tests.training import tiny


def _rows(prompts: int, each: int) -> list[reward_models.Row]:
    """`each` pairs per prompt; the answer with more a's is better, whatever its length."""
    draw = random.Random(1)
    return [
        {
            "prompt": f"Which one, {n}?",
            "responses": ["a" * draw.randint(3, 9), "b" * draw.randint(3, 9)],
            "ranking": [0, 1],
        }
        for n in range(prompts)
        for _ in range(each)
    ]


def test_prompts_never_stand_on_both_sides_and_each_is_held_out_once() -> None:
    rows, seen = _rows(10, 3), []
    for fold in range(4):
        learn, held_out = reward_models.split(rows, fold)
        assert not {row["prompt"] for row in learn} & {row["prompt"] for row in held_out}
        assert len(learn) + len(held_out) == len(rows)
        seen += [row["prompt"] for row in held_out]
    assert sorted(seen) == sorted(row["prompt"] for row in rows)


def test_equal_points_are_a_tie_and_ties_are_no_pairs() -> None:
    answers = ["w", "x", "y", "z"]
    row = {"prompt": "q", "context": "passage", "responses": answers, "points": [1.0, 2.5, 1.0, 0.0], "ranking": []}
    ranked = reward_models.ranking(row)
    assert ranked["ranking"] == [[1], [0, 2], [3]]
    assert ranked["prompt"] == "q\n\npassage"
    found = [(pair["chosen"], pair["rejected"]) for pair in reward_models.pairs(ranked)]
    assert sorted(found) == [("w", "z"), ("x", "w"), ("x", "y"), ("x", "z"), ("y", "z")]


def test_a_long_prompt_is_cut_to_what_the_longest_answer_leaves() -> None:
    tok = tiny.make_tokenizer()
    prompt = "first " * 30 + "último"
    left = reward_models.room({"prompt": prompt, "responses": ["x", "y" * 20]}, tok, 100)
    assert left == 77
    for keep in ("first", "last"):
        short = reward_models.cut(prompt, left, tok, keep)
        assert 70 <= len(tok.encode(short)) <= 77  # a cut may end at a space or inside a letter
        assert short.startswith("first") == (keep == "first")
        assert short.endswith("último") == (keep == "last")
    assert reward_models.cut("short", left, tok, "last") == "short"


def test_rows_of_one_prompt_stay_together_however_long_their_answers_are(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{n} " + "long " * 30, "chosen": "y" * 10 * k, "rejected": "n"} for n in range(8) for k in (1, 4, 9)
    ]
    runs.write_rows(tmp_path / "some.jsonl", rows)
    read, left_out = reward_models.read(
        reward_models.Judged("some", 8, "first", folds=1), tmp_path, tiny.make_tokenizer(), 100
    )
    assert left_out == 8  # an answer of 90 leaves less than 32 tokens
    assert len({row["prompt"] for row in read}) == 8
    learn, held_out = reward_models.split(read, 0)
    assert (len(learn), len(held_out)) == (12, 4)


def test_difference_counts_the_same_pairs() -> None:
    prompts = [f"p{n}" for n in range(40)]
    better, worse = [(p, 1.0) for p in prompts], [(p, -1.0) for p in prompts]
    assert reward_models.difference(better, worse) == (1.0, 1.0, 1.0)
    half = [(p, 1.0 if n % 2 else -1.0) for n, p in enumerate(prompts)]
    apart, low, high = reward_models.difference(half, worse)
    assert apart == 0.5
    assert 0.3 < low < 0.5 < high < 0.7
    with pytest.raises(AssertionError, match="same pairs"):
        reward_models.difference(better, worse[1:])


def test_agreement_is_of_two_annotators() -> None:
    assert reward_models.agreement([{"annotators": [1, 1, 1]}, {"annotators": [1, 1, 2]}]) == pytest.approx(4 / 6)
    assert reward_models.agreement([{"prompt": "one verdict only"}]) is None


@pytest.mark.slow
def test_both_trainers_learn_from_the_same_pairs(tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="TRL comes with the extra `bench`")
    from bench.trl_reward import pair_ids
    from training.reward import read_rankings

    base = Path(tiny.save(tmp_path / "base", tiny.make_model(tiny.make_tokenizer()), tiny.make_tokenizer(), "base"))
    rows = [*_rows(24, 4), {"prompt": "tied", "responses": ["a", "b", "c"], "ranking": [[0, 1], 2]}]
    done = reward_models.one_fold("pandalm", rows, 0, base, Clock(), tmp_path / "work")
    ours, theirs = runs.result(done["ours"]), runs.result(done["trl"])
    assert ours["train_pairs"] == theirs["train_pairs"]
    assert ours["val_pairs"] == theirs["val_pairs"] > 20
    assert theirs["steps"] == len(runs.rows(done["ours"].parent / "learn.jsonl")) // 16 + 1
    keys = ("prompt", "chosen", "rejected")
    judged = {
        who: [[row[key] for key in keys] for row in runs.rows(path / "val_pairs.jsonl")] for who, path in done.items()
    }
    assert judged["ours"] == judged["trl"]
    learned, _ = read_rankings(done["ours"].parent / "learn.jsonl", tiny.make_tokenizer(), 64)
    assert len(pair_ids(learned)) == ours["train_pairs"]
    line = reward_models.line("pandalm", [done], 0.9)
    assert f"{ours['val_accuracy']:.3f} (" in line
    assert f"{theirs['val_accuracy']:.3f} (" in line
