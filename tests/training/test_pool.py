"""Several answers to each prompt: what is written depends on the seed alone, also after a kill."""

import json
from pathlib import Path

import pytest
import torch

from tests.training.conftest import curve, rows_of
from tests.training.tiny import make_model, make_reward_model, make_tokenizer
from training.config import TrainingError
from training.device import Compute
from training.pool import Pool, Writer
from training.report import Report, Stopped

TOKENIZER = make_tokenizer()
PROMPTS = [[5] * n for n in range(1, 8)]


def _writer(**changes: float) -> Writer:
    settings = {"seed": 3, "temperature": 1.0, "max_new_tokens": 6, **changes}
    compute = Compute(torch.device("cpu"), bf16=False)
    return Writer(make_model(TOKENIZER, spread=2.0), make_reward_model(TOKENIZER), TOKENIZER, compute, **settings)  # type: ignore[arg-type]


def test_each_answer_has_a_seed_of_its_own_and_its_reward(tmp_path):
    pool = Pool(tmp_path, PROMPTS, 4, rows=8)
    answers = pool.fill(_writer(), Report(tmp_path), pool.parts)
    assert [len(row) for row in answers] == [4] * 7
    assert len({answer.seed for row in answers for answer in row}) == 28
    assert len({tuple(answer.tokens) for answer in answers[0]}) > 1
    assert [row["step"] for row in curve(tmp_path)] == [1, 2, 3, 4]
    first = [a.reward for row in answers[:2] for a in row]
    assert curve(tmp_path)[0]["score"] == pytest.approx(sum(first) / 8)
    assert curve(tmp_path)[0]["score_best"] == pytest.approx((max(first[:4]) + max(first[4:])) / 2)


def test_answers_are_drawn_at_the_writers_temperature(tmp_path):
    cold = _writer(temperature=1e-3).write(PROMPTS[:2], 4, 0)
    assert [len({tuple(answer.tokens) for answer in row}) for row in cold] == [1, 1]


def test_a_pool_that_was_torn_is_filled_to_the_same(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
        pool = Pool(folder, PROMPTS, 4, rows=8)
        pool.fill(_writer(), Report(folder), pool.parts)
    lines = (broken / "pool.jsonl").read_bytes().splitlines(keepends=True)
    (broken / "pool.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:40])
    again = Pool(broken, PROMPTS, 4, rows=8)
    assert again.done == 2
    report = Report(broken)
    report.rewind(again.done)
    again.fill(_writer(), report, again.parts)
    assert (broken / "pool.jsonl").read_bytes() == (whole / "pool.jsonl").read_bytes()
    assert curve(broken) == curve(whole)


def test_a_pool_that_goes_on_in_other_parts_is_filled_to_the_same_answers(tmp_path):
    whole, other = tmp_path / "whole", tmp_path / "other"
    for folder in (whole, other):
        folder.mkdir()
    expected = Pool(whole, PROMPTS, 4, rows=8).fill(_writer(), Report(whole), 4)
    report = Report(other)
    report.stopping = True
    with pytest.raises(Stopped):
        Pool(other, PROMPTS, 4, rows=16).fill(_writer(), report, 2)
    pool, report = Pool(other, PROMPTS, 4, rows=12), Report(other)
    assert (len(pool.answers), pool.done) == (4, 1)
    report.rewind(pool.done)
    answers = pool.fill(_writer(), report, pool.parts)
    assert [[a.tokens for a in row] for row in answers] == [[a.tokens for a in row] for row in expected]
    assert [row["step"] for row in curve(other)] == [1, 2, 3]
    assert Pool(other, PROMPTS, 4, rows=12).done == 3


def test_sigterm_ends_it_after_the_part_at_hand(tmp_path):
    pool, report = Pool(tmp_path, PROMPTS, 4, rows=8), Report(tmp_path)
    report.stopping = True
    with pytest.raises(Stopped, match="stopped at step 1"):
        pool.fill(_writer(), report, pool.parts)
    assert Pool(tmp_path, PROMPTS, 4, rows=8).done == 1


def test_the_pool_of_another_run_is_refused(tmp_path):
    pool = Pool(tmp_path, PROMPTS, 4, rows=8)
    pool.fill(_writer(), Report(tmp_path), pool.parts)
    assert len(rows_of(tmp_path / "pool.jsonl")) == 4
    with pytest.raises(TrainingError, match=r"pool.jsonl holds 7 prompts of another run: delete it"):
        Pool(tmp_path, PROMPTS, 3, rows=8)


def test_more_answers_than_fit_at_once_are_one_prompt_a_part(tmp_path):
    assert Pool(tmp_path, PROMPTS, 100, rows=8).parts == 7


def test_answers_are_kept_as_json(tmp_path: Path):
    pool = Pool(tmp_path, PROMPTS[:1], 2, rows=8)
    (row,) = pool.fill(_writer(), Report(tmp_path), pool.parts)
    kept = json.loads((tmp_path / "pool.jsonl").read_text())
    assert kept[0][1]["tokens"] == row[1].tokens
