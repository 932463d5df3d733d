"""Reading texts and rows, shards, and batches."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from training import data
from training import vocabulary as tokenizers
from training.config import TrainingError
from training.vocabulary import Tokenizer


def whole(path: Path) -> str:
    return "".join(data.read_text(path))


def documents(text: str, mode: str) -> list[str | None]:
    return list(data.split_documents(iter([text]), mode))


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 20])
def test_bom_and_line_ends_are_read_away_however_it_is_cut(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "_CHUNK", chunk)
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfa\xc3\xb1o\r\nuno\rdos\r\n\r\n\xf0\x9f\x8d\x9e fin\r\n")
    assert whole(path) == "año\nuno\ndos\n\n🍞 fin\n"


def test_cuts_do_not_change_the_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "El pan\n\n  cuesta 12.\n\n\nLa miel\n\tcuesta 9\nmonedas .\n" * 20
    tok = tokenizers.train([text], 300)  # it has tokens of several line ends and blanks
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    monkeypatch.setattr(data, "_CHUNK", 17)
    pieces = list(data.read_text(tmp_path / "a.txt"))
    assert len(pieces) > 20
    assert [i for piece in pieces for i in tok.encode(piece)] == tok.encode(text)


@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_a_byte_that_is_not_utf8_is_named(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_CHUNK", chunk)
    path = tmp_path / "latin.txt"
    path.write_bytes("año".encode() + b" cl\xe1sico")
    with pytest.raises(TrainingError, match=r"latin.txt is not UTF-8: byte 7 is 0xe1"):
        whole(path)


def test_a_file_cut_inside_a_letter_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("pan ñ".encode()[:-1])
    with pytest.raises(TrainingError, match="byte 4 is 0xc3"):
        whole(tmp_path / "a.txt")


def test_documents_end_at_marks_lines_or_blank_lines() -> None:
    text = "a\nb\n\nc\n<|endoftext|>\nd <|endoftext|> e\n"
    assert documents(text, "file") == ["a\nb\n\nc\n", None, "d <|endoftext|> e\n", None]
    assert [t for t in documents(text, "lines") if t] == ["a", "b", "c", "d <|endoftext|> e"]
    assert [t for t in documents(text, "paragraphs") if t] == ["a\nb", "c", "d <|endoftext|> e"]


def test_a_paragraph_in_two_pieces_stays_one_document() -> None:
    pieces = ["uno\ndos", "\ntres\n\ncuatro", "\ncinco"]
    found = [text for text in data.split_documents(iter(pieces), "paragraphs") if text]
    assert found == ["uno\ndos\ntres", "cuatro\ncinco"]


def test_shards_hold_one_eos_after_each_document(tmp_path: Path, tok: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("pan\n\nmiel\n<|endoftext|>\n<|endoftext|>\nqueso\n", encoding="utf-8")
    source = {"path": "a.txt", "documents": "lines"}
    opened = data.open_sources([source], tmp_path, tok, context=2, val_fraction=0)[0]
    expected = [i for word in ("pan", "miel", "queso") for i in [*tok.encode(word), tok.eos_id]]
    assert opened.train.tolist() == expected
    assert opened.train.dtype == np.uint16


def test_shards_are_written_once_and_again_when_the_text_changes(tmp_path: Path, tok: Tokenizer, text: str) -> None:
    path = tmp_path / "a.txt"

    def opened() -> tuple[int, int]:
        source = data.open_sources([{"path": "a.txt"}], tmp_path, tok, 8, 0.1)[0]
        return len(source.train) + len(source.val), (tmp_path / "shards" / "000-a.bin").stat().st_mtime_ns

    path.write_text(text, encoding="utf-8")
    first = opened()
    assert opened() == first
    path.write_text(text + text, encoding="utf-8")
    assert opened()[0] > 1.9 * first[0]


def test_validation_is_the_tail(tmp_path: Path, tok: Tokenizer, text: str) -> None:
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    source = data.open_sources([{"path": "a.txt"}], tmp_path, tok, 8, 0.1)[0]
    everything = [*tok.encode(text), tok.eos_id]
    assert source.train.tolist() + source.val.tolist() == everything
    assert len(source.val) == len(everything) // 10
    assert source.bytes_per_token == pytest.approx(len(text.encode()) / len(everything))


def test_a_corpus_shorter_than_a_context_is_one_sentence(tmp_path: Path, tok: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("pan", encoding="utf-8")
    with pytest.raises(TrainingError, match=r"a.txt has \d tokens and this run needs 66 \(33 for one context, 33 for"):
        data.open_sources([{"path": "a.txt"}], tmp_path, tok, 32, 0.05)


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
        data.open_sources([source], tmp_path, tok, 2, 0)


def source_of(values: range, weight: float, name: str = "a") -> data.Source:
    tokens = np.array(values, dtype=np.uint16)
    return data.Source(name, weight, tokens, tokens, 1.0)


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    sources = [source_of(range(500), 1.0)]
    inputs, targets = data.batch(sources, 1, 5, 4, 16)
    again, _ = data.batch(sources, 1, 5, 4, 16)
    assert inputs.equal(again)
    assert targets.equal(inputs + 1)
    assert not inputs.equal(data.batch(sources, 1, 6, 4, 16)[0])
    assert not inputs.equal(data.batch(sources, 2, 5, 4, 16)[0])


def test_rows_come_from_sources_by_weight_and_reach_both_ends() -> None:
    sources = [source_of(range(20), 3.0), source_of(range(100, 120), 1.0)]
    inputs, targets = data.batch(sources, 1, 0, 2000, 8)
    assert float((inputs[:, 0] < 100).float().mean()) == pytest.approx(0.75, abs=0.04)
    assert (int(inputs.min()), int(targets.max())) == (0, 119)


def test_validation_windows_do_not_overlap_and_are_limited() -> None:
    source = source_of(range(1000), 1.0)
    batches = list(data.val_batches(source, 4, 16, 3))
    assert [len(x) for x, _ in batches] == [4, 4, 4]
    firsts = [int(row[0]) for x, _ in batches for row in x]
    assert len(set(firsts)) == 12
    assert all(first % 16 == 0 for first in firsts)
    assert int(batches[-1][1].max()) > 970


def test_rows_come_from_plain_and_packed_files(tmp_path: Path) -> None:
    line = '{"prompt": "¿pan?", "x": 1}\r\n\n'
    (tmp_path / "a.jsonl").write_text("\ufeff" + line, encoding="utf-8")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    for name in ("a.jsonl", "a.jsonl.gz"):
        assert data.read_rows(tmp_path / name, {"prompt": str}) == [{"prompt": "¿pan?", "x": 1}]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{oh", "a.jsonl line 2 is not JSON"),
        ("[1]", "a.jsonl line 2 is not an object"),
        ('{"response": "b"}', "a.jsonl line 2 lacks 'instruction'"),
        ('{"instruction": 1, "response": "b"}', "a.jsonl line 2: instruction must be of type str, not 1"),
        ('{"instruction": " ", "response": "b"}', "a.jsonl line 2: instruction is empty"),
    ],
)
def test_a_bad_row_names_its_line(line: str, sentence: str, tmp_path: Path) -> None:
    good = '{"instruction": "a", "response": "b"}'
    (tmp_path / "a.jsonl").write_text(f"{good}\n{line}\n", encoding="utf-8")
    with pytest.raises(TrainingError, match=sentence):
        data.read_rows(tmp_path / "a.jsonl", {"instruction": str, "response": str})


def test_rows_may_hold_line_separators_of_unicode(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a\u2028b\x85c"}\n', encoding="utf-8")
    assert data.read_rows(tmp_path / "a.jsonl", {"prompt": str})[0]["prompt"] == "a\u2028b\x85c"


def test_an_epoch_visits_every_row_once() -> None:
    orders = [data.epoch_order(50, 1, epoch) for epoch in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(50))
    assert orders[0] != orders[1]
