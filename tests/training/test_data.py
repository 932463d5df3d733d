"""Reading texts and rows."""

import gzip
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training import data
from training import vocabulary as tokenizers
from training.config import TrainingError


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


@pytest.mark.parametrize("encoding", ["gpt2", "cl100k_base", "o200k_base"])
def test_no_token_straddles_a_cut(encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pattern takes other things along with a line end; whatever is read is tokenized as if in one piece."""
    tok, path = tokenizers.named(encoding), tmp_path / "a.txt"
    odd = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
    ends = st.sampled_from(["\n", "\n\n", ".\n", ".\n/", "pan\n", ").\n\n", "\n ", "»\n«"])
    words = st.sampled_from(
        [" ", "  ", "\t", "/", "''", "'s", "pan", "Miel", "12", "½", "año", "…", "\u0301", "\u200d"]
    )
    texts = st.lists(ends | words | odd, min_size=20, max_size=80).map("".join)
    cuts = 0

    @settings(max_examples=150, deadline=None)
    @given(texts, st.integers(1, 40), st.sampled_from([10, 1 << 24]))
    def check(text: str, chunk: int, longest: int) -> None:
        nonlocal cuts
        monkeypatch.setattr(data, "_CHUNK", chunk)
        monkeypatch.setattr(data, "_LONGEST", longest)
        path.write_bytes(text.encode())
        pieces = list(data.read_text(path))
        cuts += len(pieces)
        assert [i for piece in pieces for i in tok.encode(piece)] == tok.encode("".join(pieces))

    check()
    assert cuts > 300, cuts


@pytest.mark.parametrize("text", ["Cuesta 5.\n" * 3000, "«Sí», dijo.\n" * 3000, "pan y miel " * 3000])
def test_long_texts_come_in_pieces(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    monkeypatch.setattr(data, "_CHUNK", 1000)
    monkeypatch.setattr(data, "_LONGEST", 4000)
    pieces = list(data.read_text(tmp_path / "a.txt"))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) < 6000


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
