"""Texts and rows: reading them with plain errors, and the order in which a pass visits them."""

import codecs
import gzip
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from training.config import TrainingError

_CHUNK = 1 << 20
_LONGEST = 1 << 24  # characters without a line end to cut at
DOCUMENTS = ("file", "lines", "paragraphs")


def resolve(run_dir: Path, name: str) -> Path:
    """A path of a config: relative to the run directory unless absolute."""
    return run_dir / name


def require_text(path: Path) -> None:
    """Refuse a file that is missing or empty."""
    if not path.is_file():
        raise TrainingError(f"There is no file {path} (0 found): add it or mend the path in the settings.")
    if path.stat().st_size == 0:
        raise TrainingError(f"{path.name} is empty (0 bytes): add text to it or take it out.")


def read_text(path: Path) -> Iterator[str]:
    """The file's text in pieces of about 1 MB, without BOM, with \\n line ends, cut where no token can straddle."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    rest, offset = "", 0
    with _open(path) as file:
        while chunk := file.read(_CHUNK):
            rest += _decoded(decoder, chunk, False, path, offset)
            offset += len(chunk)
            # A \r may wait for its \n in the next piece.
            whole = (rest[:-1] if rest.endswith("\r") else rest).replace("\r\n", "\n").replace("\r", "\n")
            cut = _cut(whole)
            rest = whole[cut:] + ("\r" if rest.endswith("\r") else "")
            if cut:
                yield whole[:cut]
    rest += _decoded(decoder, b"", True, path, offset)
    if rest:
        yield rest.replace("\r\n", "\n").replace("\r", "\n")


def read_rows(
    path: Path,
    fields: dict[str, type],
    optional: dict[str, type] | None = None,
    instead: dict[str, type] | None = None,
) -> list[dict[str, Any]]:
    """Rows of a .jsonl or .jsonl.gz file; the first bad line is named with its number.

    A row that has a field of `instead` needs those in the place of `fields`.
    """
    require_text(path)
    allowed = fields | (optional or {}) | (instead or {})
    rows, number = [], 0
    for number, line in enumerate("".join(read_text(path)).split("\n"), start=1):
        if line.strip():
            rows.append(_row(line, f"{path.name} line {number}", fields, instead or {}, allowed))
    if not rows:
        raise TrainingError(f"{path.name} has 0 rows: add at least 1.")
    return rows


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """A .jsonl file, whole or not at all."""
    aside = path.with_name(f".{path.name}.part")
    with aside.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    aside.replace(path)


def _row(
    line: str, where: str, fields: dict[str, type], instead: dict[str, type], allowed: dict[str, type]
) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise TrainingError(f"{where} is not JSON ({error}): mend the line.") from None
    if not isinstance(row, dict):
        raise TrainingError(f"{where} is not an object: write {', '.join(fields)} in it.")
    for name in instead if any(name in row for name in instead) else fields:
        if name not in row:
            raise TrainingError(f"{where} lacks {name!r}: write {', '.join(fields)} in it.")
    for name, value in row.items():
        if name in allowed and not isinstance(value, allowed[name]):
            raise TrainingError(f"{where}: {name} must be of type {allowed[name].__name__}, not {value!r}.")
        if allowed.get(name) is str and not value.strip():
            raise TrainingError(f"{where}: {name} is empty (0 characters): write it or take the line out.")
    return row


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _decoded(decoder: codecs.IncrementalDecoder, chunk: bytes, final: bool, path: Path, offset: int) -> str:
    waiting = len(decoder.getstate()[0])
    try:
        return decoder.decode(chunk, final)
    except UnicodeDecodeError as error:
        at = offset - waiting + error.start
        raise TrainingError(
            f"{path.name} is not UTF-8: byte {at} is 0x{error.object[error.start]:02x}. Save it as UTF-8."
        ) from None


def _cut(text: str) -> int:
    """Where to cut so that no token of any of our patterns straddles; 0 while there is no such place.

    At a line end: before it where a letter or digit stands, which takes no newline along; or after it where something
    visible stands on both sides (o200k alone takes slashes along), for then neither side depends on what the other is.
    A text without line ends is cut between two words once it is long.
    """
    at = len(text)
    while (at := text.rfind("\n", 0, at)) > 0:
        if text[at - 1].isalnum():
            return at
        if not text[at - 1].isspace() and text[at + 1 : at + 2].strip().strip("/"):
            return at + 1
    at = len(text) if len(text) > _LONGEST else 0
    while (at := text.rfind(" ", 0, at)) > 0:
        if text[at - 1].isalpha() and text[at + 1 : at + 2].isalpha():
            return at
    return 0


_MARK = re.compile(r"^<\|endoftext\|>[ \t]*$\n?", re.MULTILINE)
_BETWEEN = {"lines": re.compile(r"\n"), "paragraphs": re.compile(r"\n[ \t]*\n")}


def split_documents(pieces: Iterator[str], documents: str) -> Iterator[str | None]:
    """Texts in order, None where a document ends: at a line <|endoftext|>, and at each line or blank line if asked.

    Relies on read_text's cuts: a piece ends at a line end, so neither a mark nor a line lies in two pieces.
    """
    for piece in _whole_paragraphs(pieces) if documents == "paragraphs" else pieces:
        for number, part in enumerate(_MARK.split(piece)):
            if number:
                yield None
            if documents == "file" and part:
                yield part
            elif documents != "file":
                for text in filter(str.strip, _BETWEEN[documents].split(part)):
                    yield text.strip("\n")
                    yield None
    yield None


def _whole_paragraphs(pieces: Iterator[str]) -> Iterator[str]:
    rest = ""
    for piece in pieces:
        rest += piece
        cut = rest.rfind("\n\n")
        if cut > 0:
            yield rest[:cut]
            rest = rest[cut:]
    yield rest


def pad_right(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    """(B, longest) int64, short rows filled up on the right."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])


def epoch_order(rows: int, seed: int, epoch: int) -> list[int]:
    """The order in which an epoch visits the rows; epoch -1 is free for a split."""
    return np.random.default_rng([seed, 7, epoch + 1]).permutation(rows).tolist()
