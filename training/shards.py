"""Corpora as token shards on disk: encoded once, by several cores, in flat memory, and from where it stopped."""

import hashlib
import itertools
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.data import read_text, split_documents
from training.vocabulary import Tokenizer

_PART = 1 << 20  # characters that are encoded at once
_SAVED_EVERY = 64  # parts between two notes of how far it has come
_SAID_EVERY = 2.0  # seconds between two reports
Progress = Callable[[int, dict[str, Any]], None]


@dataclass(frozen=True)
class Shard:
    """A text as tokens, an EOS after each document; both arrays are memory-mapped."""

    tokens: np.ndarray  # (tokens,) uint16, or uint32 for more than 65,536 words
    ends: np.ndarray  # (documents,) int64: where each document ends, its EOS included
    bytes: int  # of text


@dataclass(frozen=True)
class _Done:
    """How much of a text is in the shard."""

    parts: int = 0
    tokens: int = 0
    ended: int = 0  # documents
    bytes: int = 0


def open_shard(path: Path, documents: str, tokenizer: Tokenizer, target: Path, report: Progress | None = None) -> Shard:
    """The shard of a text in TARGET.{json,bin,ends}; encoded only where no fitting one is there."""
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    wanted = {"sha256": sha256, "documents": documents, "tokenizer": tokenizer.hash}
    card = target.with_suffix(".json")
    stored = json.loads(card.read_text(encoding="utf-8")) if card.is_file() else {}
    if {key: stored.get(key) for key in wanted} != wanted:
        target.parent.mkdir(parents=True, exist_ok=True)
        card.unlink(missing_ok=True)
        done = _encode(path, documents, tokenizer, target, dtype, wanted, report)
        stored = {**wanted, "bytes": done.bytes}
        _write(card, stored)  # the card last: a torn shard has none
        target.with_suffix(".part.json").unlink(missing_ok=True)
    ends = np.memmap(target.with_suffix(".ends"), dtype=np.int64, mode="r")
    return Shard(np.memmap(target.with_suffix(".bin"), dtype=dtype, mode="r"), ends, stored["bytes"])


def _encode(
    path: Path,
    documents: str,
    tokenizer: Tokenizer,
    target: Path,
    dtype: type,
    wanted: dict[str, str],
    report: Progress | None,
) -> _Done:
    """Write the tokens behind those that are there already.

    Threads, not processes: tiktoken works without the interpreter's lock, so they fill the cores alike, and one
    vocabulary of 200,000 words is in memory instead of one a core.
    """
    note, megabytes = target.with_suffix(".part.json"), -(-path.stat().st_size // 10**6)
    done = _resumed(note, wanted)
    said = time.monotonic()
    with (
        _cut_to(target.with_suffix(".bin"), done.tokens * np.dtype(dtype).itemsize) as out,
        _cut_to(target.with_suffix(".ends"), done.ended * 8) as ends,
    ):
        parts = itertools.islice(_parts(split_documents(read_text(path), documents)), done.parts, None)
        for tokens, closed, size in _in_order(parts, tokenizer):
            tokens.astype(dtype).tofile(out)
            (closed + done.tokens).tofile(ends)
            done = _Done(done.parts + 1, done.tokens + len(tokens), done.ended + len(closed), done.bytes + size)
            if done.parts % _SAVED_EVERY == 0:
                for file in (out, ends):
                    file.flush()
                    os.fsync(file.fileno())
                _write(note, {**wanted, **vars(done)})
            if report and time.monotonic() - said > _SAID_EVERY:
                said = time.monotonic()
                report(min(done.bytes // 10**6, megabytes), {"steps": megabytes, "encoded_mb": done.bytes / 1e6})
    return done


def _parts(texts: Iterator[str | None]) -> Iterator[tuple[list[str | None], bool]]:
    """Documents in pieces, and None where one ends, in lists of about _PART characters; whether one was open before."""
    part: list[str | None] = []
    size, was_open = 0, False
    for text in texts:
        part.append(text)
        size += len(text or "")
        if size >= _PART:
            yield part, was_open
            part, size, was_open = [], 0, text is not None
    if part:
        yield part, was_open


def _in_order(
    parts: Iterator[tuple[list[str | None], bool]], tokenizer: Tokenizer
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """What _tokens gives for each part, in order; a few parts are ahead on other cores, never more."""
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    waiting: deque[Future[tuple[np.ndarray, np.ndarray, int]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for texts, was_open in parts:
            waiting.append(pool.submit(_tokens, texts, was_open, tokenizer))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _tokens(texts: list[str | None], was_open: bool, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, int]:
    """A part's tokens, where documents end in them, and its size in bytes; an empty document has no EOS."""
    pieces, ends, length, size = [np.empty(0, dtype=np.uint32)], list[int](), 0, 0
    for text in texts:
        if text is not None:
            pieces.append(tokenizer.encode_array(text))
            length, size, was_open = length + len(pieces[-1]), size + len(text.encode()), True
        elif was_open:
            pieces.append(np.array([tokenizer.eos_id], dtype=np.uint32))
            length, was_open = length + 1, False
            ends.append(length)
    return np.concatenate(pieces), np.array(ends, dtype=np.int64), size


def _resumed(note: Path, wanted: dict[str, str]) -> _Done:
    stored = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
    if any(stored.get(key) != value for key, value in wanted.items()):
        return _Done()
    return _Done(**{key: value for key, value in stored.items() if key not in wanted})


def _cut_to(path: Path, size: int) -> Any:
    """The file open for appending, without what was written after the last note."""
    file = path.open("ab")
    file.truncate(size)
    return file


def _write(path: Path, value: dict[str, Any]) -> None:
    aside = path.with_suffix(".aside")
    aside.write_text(json.dumps(value), encoding="utf-8")
    aside.replace(path)
