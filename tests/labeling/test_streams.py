"""Files as people bring them: packed, marked, with CRLF, in the wrong encoding, broken."""

import gzip
from pathlib import Path

import pytest
from django.utils import translation
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labeling import streams
from labeling.streams import ImportFailed, read_bytes, read_lines, read_text

# A busy machine is no failure.
_many = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(autouse=True)
def _in_english():
    with translation.override("en"):
        yield


def _text(*chunks: bytes) -> str:
    return "".join(read_text(chunks, "a.txt"))


def _write(folder: Path, content: bytes, name: str = "a.txt") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def test_byte_order_mark_and_crlf_are_gone():
    assert _text(b"\xef\xbb\xbfuno\r\ndos\r\n") == "uno\ndos\n"


def test_a_second_mark_and_a_lone_cr_are_text():
    assert _text("a\ufeffb\rc".encode()) == "a\ufeffb\rc"


@pytest.mark.parametrize("size", range(1, 8))
def test_chunks_may_end_anywhere(size: int):
    content = "\ufeffuno\r\n\r\r\né€😀\r\n\ufeffdos\r".encode()
    chunks = [content[start : start + size] for start in range(0, len(content), size)]
    assert _text(*chunks) == "uno\n\r\né€😀\n\ufeffdos\r"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_wrong_byte_is_named_by_offset_and_line(size: int):
    content = b"\xef\xbb\xbfuno\r\ndos\r\ncaf\xe9 tres\n"
    with pytest.raises(ImportFailed, match=r"^a\.txt line 3: byte 16 \(0xE9\) is not UTF-8"):
        _text(*[content[start : start + size] for start in range(0, len(content), size)])


def test_a_character_cut_off_at_the_end_is_a_wrong_byte():
    with pytest.raises(ImportFailed, match=r"line 2: byte 3 \(0xE2\)"):
        _text(b"ab\n\xe2\x82")


def test_utf_16_is_recognised():
    with pytest.raises(ImportFailed, match="UTF-16"):
        _text("hola".encode("utf-16"))
    with pytest.raises(ImportFailed, match=r"line 2: it holds a zero byte"):
        _text(b"hola\nh\0")


@_many
@given(st.lists(st.binary(max_size=40), max_size=6))
def test_any_bytes_are_text_or_one_error(chunks: list[bytes]):
    try:
        text = _text(*chunks)
    except ImportFailed:
        return
    assert text == b"".join(chunks).decode().removeprefix("\ufeff").replace("\r\n", "\n")


@_many
@given(st.text(alphabet="ab\n\u2028\x85\r"), st.integers(1, 5))
def test_only_a_newline_ends_a_line(text: str, size: int):
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    assert list(read_lines(pieces, "a")) == list(enumerate(lines, 1))


def test_a_line_without_end_stops_early(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(streams, "LONGEST_LINE", 10)

    def endless():
        yield "short\n"
        for _ in range(10):
            yield "x" * 4
        pytest.fail("read on")

    with pytest.raises(ImportFailed, match="line 2: it is longer than 10 characters"):
        list(read_lines(endless(), "a"))
    with pytest.raises(ImportFailed, match="line 1: it is longer"):
        list(read_lines(["x" * 11 + "\n"], "a"))


def test_gzip_is_unpacked_whatever_its_name(tmp_path: Path):
    path = _write(tmp_path, gzip.compress(b"hola") + gzip.compress(b" adios"))
    assert b"".join(read_bytes(path, "a.txt", 100)) == b"hola adios"


def test_what_is_named_gz_must_be_gzip(tmp_path: Path):
    with pytest.raises(ImportFailed, match="not a gzip file"):
        list(read_bytes(_write(tmp_path, b"hola"), "a.txt.gz", 100))


@pytest.mark.parametrize(
    "spoil", [lambda b: b[:-9], lambda b: b[:12], lambda b: b[:20] + b"\0\0\0\0" + b[24:], lambda b: b + b"junk"]
)
def test_a_damaged_gzip_is_named(tmp_path: Path, spoil):
    packed = gzip.compress(bytes(range(256)) * 20)
    with pytest.raises(ImportFailed, match="damaged or cut off"):
        list(read_bytes(_write(tmp_path, spoil(packed)), "a.gz", 10**6))


def test_a_bomb_stops_at_the_limit(tmp_path: Path):
    bomb = _write(tmp_path, gzip.compress(b"\0" * 20_000_000))
    assert bomb.stat().st_size < 50_000
    read: list[bytes] = []
    with pytest.raises(ImportFailed, match="larger than 2 MB"):
        read.extend(read_bytes(bomb, "a", 2_000_000))
    assert sum(map(len, read)) <= 2_000_000


def test_missing_files_and_folders_are_named(tmp_path: Path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ImportFailed, match="no such file"):
            list(read_bytes(path, "a", 1))
