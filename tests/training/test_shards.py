"""Corpora on disk: the same tokens however they are encoded, in flat memory, and from where a killed run stopped."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.conftest import ROOT, corpus
from training import shards
from training import vocabulary as tokenizers
from training.shards import Shard, open_shard
from training.vocabulary import EOS, GPT2_PATTERN, Tokenizer


@pytest.fixture
def encode(tmp_path: Path, tok: Tokenizer) -> Callable[..., Shard]:
    def build(text: str, documents: str = "file", own: Tokenizer = tok, **options: Any) -> Shard:
        (tmp_path / "a.txt").write_text(text, encoding="utf-8")
        return open_shard(tmp_path / "a.txt", documents, own, tmp_path / "shards" / "000-a", **options)

    return build


def expected(documents: list[str], tok: Tokenizer) -> list[int]:
    return [i for text in documents for i in [*tok.encode(text), tok.eos_id]]


def test_one_eos_stands_after_each_document_and_ends_say_where(encode: Callable[..., Shard], tok: Tokenizer) -> None:
    shard = encode("pan\n\nmiel\n<|endoftext|>\n<|endoftext|>\nqueso\n", "lines")
    assert shard.tokens.tolist() == expected(["pan", "miel", "queso"], tok)
    assert shard.tokens.dtype == np.uint16
    assert shard.ends.tolist() == [i + 1 for i in (shard.tokens == tok.eos_id).nonzero()[0]]


@pytest.mark.parametrize("part", [1, 50, 700, 1 << 20])
@pytest.mark.parametrize("documents", ["file", "lines", "paragraphs"])
def test_tokens_are_the_same_however_the_text_is_cut_and_shared_out(
    documents: str, part: int, encode: Callable[..., Shard], tok: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stories = [corpus(1 + n % 4, seed=n) for n in range(30)]
    text = "<|endoftext|>\n".join(stories)
    whole = {
        "file": stories,
        "lines": [line for story in stories for line in story.splitlines()],
        "paragraphs": [story.strip("\n") for story in stories],
    }
    monkeypatch.setattr(shards, "_PART", part)
    monkeypatch.setattr("training.data._CHUNK", 4 * part)
    shard = encode(text, documents)
    assert shard.tokens.tolist() == expected(whole[documents], tok)
    assert len(shard.ends) == len(whole[documents])
    assert shard.ends[-1] == len(shard.tokens)
    assert shard.bytes == sum(len(story.encode()) for story in whole[documents])


def test_a_vocabulary_over_65536_takes_four_bytes(encode: Callable[..., Shard]) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)}
    wide = Tokenizer(ranks, GPT2_PATTERN, {EOS: 70_000})
    assert wide.vocab_size > 65_536
    shard = encode("pan\n<|endoftext|>\nmiel\n", own=wide)
    assert shard.tokens.dtype == np.uint32
    assert shard.tokens.tolist().count(70_000) == 2
    assert shard.tokens.tolist() == expected(["pan\n", "miel\n"], wide)


def test_it_is_written_once_and_again_when_text_documents_or_vocabulary_change(
    encode: Callable[..., Shard], text: str, tmp_path: Path
) -> None:
    def made() -> int:
        return (tmp_path / "shards" / "000-a.bin").stat().st_mtime_ns

    encode(text)
    first = made()
    encode(text)
    assert made() == first
    assert len(encode(text, "lines").ends) > 100
    second = made()
    assert second > first
    encode(text, "lines", tokenizers.train([text], 300))
    third = made()
    assert third > second
    encode(text + text, "lines")
    assert made() > third


class Killed(BaseException):
    pass


def test_a_killed_encoding_goes_on_and_ends_as_if_undisturbed(
    encode: Callable[..., Shard], tok: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stories = [corpus(1 + n % 3, seed=n) for n in range(40)]
    text = "<|endoftext|>\n".join(stories)
    monkeypatch.setattr(shards, "_PART", 90)
    monkeypatch.setattr("training.data._CHUNK", 300)
    monkeypatch.setattr(shards, "_SAVED_EVERY", 4)
    plain, encoded = shards._tokens, list[int]()

    def counted(texts: list[str | None], was_open: bool, own: Tokenizer) -> Any:
        encoded.append(1)
        if len(encoded) == 16:
            raise Killed
        return plain(texts, was_open, own)

    monkeypatch.setattr(shards, "_tokens", counted)
    with pytest.raises(Killed):
        encode(text)
    note = json.loads((tmp_path / "shards" / "000-a.part.json").read_text(encoding="utf-8"))
    assert note["parts"] >= 4
    assert not (tmp_path / "shards" / "000-a.json").exists()
    for name in ("bin", "ends"):  # what was written after the last note is torn
        with (tmp_path / "shards" / f"000-a.{name}").open("ab") as file:
            file.write(b"torn")
    killed = len(encoded)
    shard = encode(text)
    resumed = len(encoded) - killed
    assert shard.tokens.tolist() == expected(stories, tok)
    assert shard.ends.tolist() == [i + 1 for i in (shard.tokens == tok.eos_id).nonzero()[0]]
    assert shard.bytes == sum(len(story.encode()) for story in stories)
    assert not (tmp_path / "shards" / "000-a.part.json").exists()

    (tmp_path / "shards" / "000-a.json").unlink()
    encode(text)
    assert len(encoded) - killed - resumed == resumed + note["parts"], "what had been encoded was encoded again"


def test_progress_is_said_in_megabytes(
    encode: Callable[..., Shard], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_SAID_EVERY", -1.0)
    monkeypatch.setattr(shards, "_PART", 1000)
    said: list[tuple[int, dict[str, Any]]] = []
    encode(text, report=lambda step, figures: said.append((step, figures)))
    assert all(step <= figures["steps"] for step, figures in said)
    assert said[-1][1]["encoded_mb"] == pytest.approx(len(text.encode()) / 1e6)


_PEAK = """
import resource, sys, threading, time
from pathlib import Path
from training import shards, vocabulary
tok = vocabulary.load(Path(sys.argv[1]))
shards.open_shard(Path(sys.argv[2]), "file", tok, Path(sys.argv[3]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_stays_flat_from_5_to_50_megabytes(tokenizer_dir: Path, tmp_path: Path) -> None:
    block = corpus(3000, seed=5).encode()
    peaks = []
    for megabytes in (5, 50):
        path = tmp_path / f"{megabytes}.txt"
        with path.open("wb") as file:
            while file.tell() < megabytes * 10**6:
                file.write(block)
        command = [sys.executable, "-c", _PEAK, str(tokenizer_dir), str(path), str(tmp_path / "shards" / path.stem)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=300)
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] - peaks[0] < 10, f"peaks of {peaks} MiB"
