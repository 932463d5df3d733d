"""What pretraining reads: sources in proportion, and every document once a pass in an order of its own."""

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training import mixture
from training.config import TrainingError
from training.mixture import Source, turns
from training.model import GPT
from training.vocabulary import Tokenizer

GPT3 = [0.60, 0.22, 0.16, 0.03]  # the shares of Brown et al. 2020, which sum to 1.01


def source_of(values: range, weight: float = 1.0, lengths: list[int] | None = None) -> Source:
    tokens = np.array(values, dtype=np.uint32)
    ends = np.cumsum(lengths) if lengths else np.array([len(tokens)])
    assert ends[-1] == len(tokens)
    return Source("a", weight, tokens, tokens, ends, 1.0)


@pytest.mark.parametrize("batch", [1, 7, 32])
def test_weights_hold_within_one_row_over_ten_thousand(batch: int) -> None:
    counts = Counter[int]()
    for step in range(10_000 // batch):
        counts.update(which for which, _ in turns(GPT3, step * batch, batch))
        if step % 50 == 0:
            for which, weight in enumerate(GPT3):
                share = weight / sum(GPT3)
                assert abs(counts[which] - share * (step + 1) * batch) <= 1.5
    for which, weight in enumerate(GPT3):  # the promise of the settings: 1 % of its own share
        assert counts[which] / counts.total() == pytest.approx(weight / sum(GPT3), rel=0.01)


def test_rows_of_ten_thousand_come_from_their_sources_by_weight() -> None:
    sources = [source_of(range(1000 * n, 1000 * n + 300), weight) for n, weight in enumerate(GPT3)]
    firsts = torch.cat([mixture.batch(sources, 1, step, 100, 8)[0][:, 0] for step in range(100)])
    shares = torch.bincount(firsts // 1000) / len(firsts)
    for share, weight in zip(shares.tolist(), GPT3, strict=True):
        assert share == pytest.approx(weight / sum(GPT3), rel=0.01)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=6), st.integers(0, 10**7), st.integers(1, 40))
def test_turns_go_on_without_gap_or_repeat_wherever_they_are_cut(weights: list[float], first: int, rows: int) -> None:
    several = turns(weights, first, rows)
    assert several == [turn for n in range(rows) for turn in turns(weights, first + n, 1)]
    assert len(several) == rows
    for which in range(len(weights)):
        numbers = [number for source, number in several if source == which]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True


def test_the_first_rows_of_each_source_are_numbered_from_0() -> None:
    firsts: dict[int, int] = {}
    for which, number in turns(GPT3, 0, 100):
        firsts.setdefault(which, number)
    assert firsts == {0: 0, 1: 0, 2: 0, 3: 0}


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    sources = [source_of(range(500)), source_of(range(1000, 1300), 0.5)]
    inputs, targets = mixture.batch(sources, 1, 5, 4, 16)
    for step in (900, 0, 17):  # whatever was read before
        mixture.batch(sources, 1, step, 4, 16)
    again = mixture.batch(sources, 1, 5, 4, 16)
    assert inputs.equal(again[0])
    assert targets.equal(again[1])
    fresh = mixture.batch([source_of(range(500)), source_of(range(1000, 1300), 0.5)], 1, 5, 4, 16)
    assert inputs.equal(fresh[0])
    assert not inputs.equal(mixture.batch(sources, 1, 6, 4, 16)[0])
    assert not inputs.equal(mixture.batch(sources, 2, 5, 4, 16)[0])


@pytest.mark.parametrize("length", [320, 333])
def test_a_pass_over_one_document_visits_every_token_once_in_shuffled_windows(length: int) -> None:
    source = source_of(range(length))
    windows = -(-length // 16)
    passes = [[source.window(epoch * windows + n, 16, 1).tolist() for n in range(windows)] for epoch in (0, 1)]
    for rows in passes:
        counts = Counter(token for row in rows for token in row[:-1])
        assert set(counts) == set(range(length))
        assert sum(n - 1 for n in counts.values()) == windows * 16 - length
        assert all(b - a in (1, 1 - length) for row in rows for a, b in itertools.pairwise(row))
        follows = sum(before[-1] == after[0] for before, after in itertools.pairwise(rows))
        assert follows < len(rows) / 3  # the text is not read from front to back
    assert {row[0] for row in passes[0]} != {row[0] for row in passes[1]}  # cut at other places, too


def test_a_pass_visits_every_document_once_in_a_new_order() -> None:
    draw = np.random.default_rng(2)
    lengths = draw.integers(1, 60, size=40).tolist()
    source = source_of(range(sum(lengths)), 1.0, lengths)
    firsts = set((np.cumsum(lengths) - lengths).tolist())
    orders = []
    for epoch in (0, 1):
        windows = -(-len(source.train) // 16)
        rows = {int(w[0]): w for w in (source.window(epoch * windows + n, 16, 1) for n in range(windows))}
        counts = Counter(token for row in rows.values() for token in row[:-1].tolist())
        assert set(counts) == set(range(sum(lengths)))
        # String the windows together again: each ends with the token that the next begins with.
        row, order = next(iter(rows.values())), []
        for _ in range(windows - 1):
            order += [int(token) for token in row[:-1] if int(token) in firsts]
            row = rows.get(int(row[-1]), row)
        orders.append(order)
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])


def test_documents_of_many_lengths_are_read_as_they_are_written() -> None:
    """Between two tokens of a row that do not follow each other, one document ends and another begins."""
    lengths = [3, 50, 1, 17, 8, 2, 120, 9]
    source = source_of(range(sum(lengths)), 1.0, lengths)
    ends, firsts = set((np.cumsum(lengths) - 1).tolist()), set((np.cumsum(lengths) - lengths).tolist())
    for number in range(60):
        row = source.window(number, 16, 4).tolist()
        for a, b in itertools.pairwise(row):
            assert b == a + 1 or (a in ends and b in firsts)


def test_apart_begins_a_document_with_its_eos_at_position_0() -> None:
    inputs = torch.tensor([[5, 6, 0, 7, 8, 0, 0, 9], [0, 1, 2, 3, 4, 5, 6, 7]])
    positions, documents = mixture.apart(inputs, 0)
    assert positions.tolist() == [[0, 1, 0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 4, 5, 6, 7]]
    assert documents.tolist() == [[0, 0, 1, 1, 1, 2, 3, 3], [1] * 8]


def test_a_masked_row_gives_each_document_the_logits_it_has_alone(tok: Tokenizer, tiny: Callable[..., GPT]) -> None:
    model, eos = tiny(), tok.eos_id
    texts = [[eos, *tok.encode("El pan")], [eos, *tok.encode("cuesta 12")], [eos, *tok.encode("y miel")]]
    row = torch.tensor([[i for text in texts for i in text]])
    with torch.no_grad():
        positions, documents = mixture.apart(row, eos)
        together = model.logits(model(row, positions, documents=documents))[0]
        apart = torch.cat([model.logits(model(torch.tensor([text])))[0] for text in texts])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)


def test_validation_is_the_tail_and_no_document_reaches_into_it(tmp_path: Path, tok: Tokenizer, text: str) -> None:
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    options = {"path": "a.txt", "documents": "lines"}
    source = mixture.open_sources([options], tmp_path, tok, 8, 0.1)[0]
    everything = [i for line in text.splitlines() for i in [*tok.encode(line), tok.eos_id]]
    assert source.train.tolist() + source.val.tolist() == everything
    assert len(source.val) == len(everything) // 10
    assert source.ends[-1] == len(source.train)
    assert (source.train[source.ends[:-1] - 1] == tok.eos_id).all()
    assert source.bytes_per_token == pytest.approx(len(text.replace("\n", "").encode()) / len(everything))


def test_a_corpus_shorter_than_a_context_is_one_sentence(tmp_path: Path, tok: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("pan", encoding="utf-8")
    with pytest.raises(TrainingError, match=r"a.txt has \d tokens and this run needs 66 \(33 for one context, 33 for"):
        mixture.open_sources([{"path": "a.txt"}], tmp_path, tok, 32, 0.05)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ({"path": "b.txt"}, "There is no file"),
        ({"path": "empty.txt"}, "empty.txt is empty"),
        ({"file": "a.txt"}, "A source has the keys"),
        ({"path": "a.txt", "weight": 0}, "The weight of a.txt is 0"),
        ({"path": "a.txt", "documents": "pages"}, "documents of a.txt is 'pages'"),
    ],
)
def test_a_bad_source_is_one_sentence(source: dict, sentence: str, tmp_path: Path, tok: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("pan", encoding="utf-8")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(TrainingError, match=sentence):
        mixture.open_sources([source], tmp_path, tok, 2, 0)


def test_validation_windows_do_not_overlap_and_are_limited() -> None:
    source = source_of(range(1000))
    batches = list(mixture.val_batches(source, 4, 16, 3))
    assert [len(x) for x, _ in batches] == [4, 4, 4]
    firsts = [int(row[0]) for x, _ in batches for row in x]
    assert len(set(firsts)) == 12
    assert all(first % 16 == 0 for first in firsts)
    assert int(batches[-1][1].max()) > 970
