"""Texts and rows: reading them with plain errors, token shards on disk, batches that depend on (seed, step) only."""

import codecs
import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from training.config import TrainingError

if TYPE_CHECKING:  # tokenizer.py reads its texts with this module
    from training.vocabulary import Tokenizer

_CHUNK = 1 << 20
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
            cut = _line_end(whole)
            rest = whole[cut:] + ("\r" if rest.endswith("\r") else "")
            if cut:
                yield whole[:cut]
    rest += _decoded(decoder, b"", True, path, offset)
    if rest:
        yield rest.replace("\r\n", "\n").replace("\r", "\n")


def read_rows(path: Path, fields: dict[str, type], optional: dict[str, type] | None = None) -> list[dict[str, Any]]:
    """Rows of a .jsonl or .jsonl.gz file; the first bad line is named with its number."""
    require_text(path)
    allowed = fields | (optional or {})
    rows, number = [], 0
    for number, line in enumerate("".join(read_text(path)).split("\n"), start=1):
        if line.strip():
            rows.append(_row(line, f"{path.name} line {number}", fields, allowed))
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


def _row(line: str, where: str, fields: dict[str, type], allowed: dict[str, type]) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise TrainingError(f"{where} is not JSON ({error}): mend the line.") from None
    if not isinstance(row, dict):
        raise TrainingError(f"{where} is not an object: write {', '.join(fields)} in it.")
    for name in fields:
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


def _line_end(text: str) -> int:
    """Where to cut: before the last newline that follows a letter or digit; 0 while there is none."""
    at = len(text)
    while (at := text.rfind("\n", 0, at)) > 0:
        if text[at - 1].isalnum():
            return at
    return 0


@dataclass(frozen=True)
class Source:
    """One text as tokens on disk, its tail kept for validation."""

    name: str
    weight: float
    train: np.ndarray  # (tokens,) memory-mapped
    val: np.ndarray
    bytes_per_token: float


def open_sources(
    sources: Sequence[dict[str, Any]], run_dir: Path, tokenizer: "Tokenizer", context: int, val_fraction: float
) -> list[Source]:
    """Encode each text once into RUN_DIR/shards, and split off its validation tail."""
    opened = []
    for number, source in enumerate(sources):
        path, weight, documents = _checked_source(source, run_dir)
        tokens, size = _shard(path, documents, tokenizer, run_dir / "shards" / f"{number:03d}-{path.stem}")
        need = context + 1
        kept = max(int(len(tokens) * val_fraction), need) if val_fraction else 0
        if len(tokens) - kept < need:
            raise TrainingError(
                f"{path.name} has {len(tokens)} tokens and this run needs {need + kept} "
                f"({need} for one context{f', {kept} for validation' if kept else ''}): "
                "add more text or choose a smaller n_positions."
            )
        split = len(tokens) - kept
        opened.append(Source(path.name, weight, tokens[:split], tokens[split:], size / len(tokens)))
    return opened


def _checked_source(source: dict[str, Any], run_dir: Path) -> tuple[Path, float, str]:
    unknown = set(source) - {"path", "weight", "documents"}
    if unknown or "path" not in source:
        raise TrainingError(f"A source has the keys {sorted(source)}: the 3 known ones are path, weight and documents.")
    path, weight = resolve(run_dir, str(source["path"])), source.get("weight", 1.0)
    documents = source.get("documents", "file")
    require_text(path)
    if not isinstance(weight, (int, float)) or not weight > 0:
        raise TrainingError(f"The weight of {path.name} is {weight!r}: it must be a number above 0.")
    if documents not in DOCUMENTS:
        raise TrainingError(f"documents of {path.name} is {documents!r}: choose one of the 3: {', '.join(DOCUMENTS)}.")
    return path, float(weight), documents


def _shard(path: Path, documents: str, tokenizer: "Tokenizer", target: Path) -> tuple[np.ndarray, int]:
    """The text's tokens (memory-mapped) and its size in bytes; encoded only if no fitting shard is there."""
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    wanted = {"sha256": sha256, "documents": documents, "tokenizer": tokenizer.hash}
    card, tokens = target.with_suffix(".json"), target.with_suffix(".bin")
    stored = json.loads(card.read_text(encoding="utf-8")) if card.is_file() else {}
    if {key: stored.get(key) for key in wanted} != wanted:
        target.parent.mkdir(parents=True, exist_ok=True)
        card.unlink(missing_ok=True)
        size = _encode(path, documents, tokenizer, tokens, dtype)
        stored = {**wanted, "bytes": size}
        aside = card.with_suffix(".part")  # the card last: a torn shard has none
        aside.write_text(json.dumps(stored), encoding="utf-8")
        aside.replace(card)
    return np.memmap(tokens, dtype=dtype, mode="r"), stored["bytes"]


def _encode(path: Path, documents: str, tokenizer: "Tokenizer", target: Path, dtype: type) -> int:
    """Write the tokens, one EOS after each document; returns the bytes of text they stand for."""
    size, ended = 0, True
    with target.open("wb") as out:
        for text in split_documents(read_text(path), documents):
            if text is None:
                ids = [] if ended else [tokenizer.eos_id]
                ended = True
            else:
                ids, ended = tokenizer.encode(text), False
                size += len(text.encode())
            np.array(ids, dtype=dtype).tofile(out)
    return size


_MARK = re.compile(r"^<\|endoftext\|>[ \t]*$\n?", re.MULTILINE)
_BETWEEN = {"lines": re.compile(r"\n"), "paragraphs": re.compile(r"\n[ \t]*\n")}


def split_documents(pieces: Iterator[str], documents: str) -> Iterator[str | None]:
    """Texts in order, None where a document ends: at a line <|endoftext|>, and at each line or blank line if asked.

    Relies on read_text's cuts: a piece ends before a line end, so neither a mark nor a line lies in two pieces.
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


def batch(sources: Sequence[Source], seed: int, step: int, rows: int, context: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets (rows, context) of one step: random windows, each source in proportion to its weight."""
    random = np.random.default_rng([seed, step])
    weights = np.array([source.weight for source in sources])
    windows = np.empty((rows, context + 1), dtype=np.int64)
    for row, which in enumerate(random.choice(len(sources), size=rows, p=weights / weights.sum())):
        tokens = sources[which].train
        start = random.integers(len(tokens) - context)
        windows[row] = tokens[start : start + context + 1]
    both = torch.from_numpy(windows)
    return both[:, :-1], both[:, 1:]


def val_batches(source: Source, rows: int, context: int, most: int) -> Iterator[tuple[Tensor, Tensor]]:
    """At most `most` batches of windows side by side, spread evenly over the source's validation tail."""
    windows = (len(source.val) - 1) // context
    chosen = np.linspace(0, windows - 1, min(windows, rows * most)).round().astype(int)
    for first in range(0, len(chosen), rows):
        starts = chosen[first : first + rows] * context
        both = torch.from_numpy(np.stack([source.val[s : s + context + 1] for s in starts]).astype(np.int64))
        yield both[:, :-1], both[:, 1:]


def pad_right(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    """(B, longest) int64, short rows filled up on the right."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])


def epoch_order(rows: int, seed: int, epoch: int) -> list[int]:
    """The order in which an epoch visits the rows; epoch -1 is free for a split."""
    return np.random.default_rng([seed, 7, epoch + 1]).permutation(rows).tolist()
