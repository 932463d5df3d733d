"""Vocabularies and corpora: a BPE of 4,096 learned from 10 MB, and the text encoded, ours beside the bare libraries.

The text is made of 20,000 words by Zipf's law, a document every 2,000 bytes. The peers are what our parts stand on:
`tokenizers` alone for learning; for encoding, tiktoken in one thread into a list, and `tokenizers` in as many as there
are cores. Ours reads and checks the file, keeps the order, and writes a shard.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import harness
from training import data, shards, vocabulary

MEGABYTES, WORDS, VOCABULARY = 10, 20_000, 4096
TIMES = 100  # 10 MB in 1 GB


def write_text(path: Path) -> None:
    draw = random.Random(1)
    letters = "eaosrnidlctumpbgvyqhfzjñxwkáéíóú"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 10))) for _ in range(WORDS)]
    shares = [1 / (rank + 3) for rank in range(WORDS)]
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < MEGABYTES * 10**6:
            for _ in range(20):
                file.write(" ".join(draw.choices(words, shares, k=16)).capitalize() + ".\n")
            file.write("<|endoftext|>\n")


def _timed(work: Callable[[], Any]) -> Callable[[], dict[str, Any]]:
    def measured() -> dict[str, Any]:
        began = time.perf_counter()
        work()
        return {"rate": MEGABYTES / (time.perf_counter() - began), "unit": "MB/s"}

    return measured


def learn_ours(root: Path) -> Callable[[], dict[str, Any]]:
    return _timed(lambda: vocabulary.train(data.read_text(root / "text.txt"), VOCABULARY))


def learn_tokenizers(root: Path) -> Callable[[], dict[str, Any]]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    def work() -> None:
        learner = Tokenizer(models.BPE())
        learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        learner.train(
            [str(root / "text.txt")],
            trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False),
        )

    return _timed(work)


def encode_ours(root: Path) -> Callable[[], dict[str, Any]]:
    tok = vocabulary.load(root)

    def work() -> None:
        (root / "shards" / "0.json").unlink(missing_ok=True)
        shards.open_shard(root / "text.txt", "file", tok, root / "shards" / "0")

    return _timed(work)


def encode_much(root: Path) -> Callable[[], dict[str, Any]]:
    """The same text a hundred times over, 1 GB: what it costs in memory is the question."""
    tok, text = vocabulary.load(root), (root / "text.txt").read_bytes()
    with (root / "much.txt").open("wb") as file:
        for _ in range(TIMES):
            file.write(text)

    def work() -> dict[str, Any]:
        began = time.perf_counter()
        shards.open_shard(root / "much.txt", "file", tok, root / "shards" / "much")
        return {"rate": TIMES * MEGABYTES / (time.perf_counter() - began), "unit": "MB/s"}

    return work


def encode_tiktoken(root: Path) -> Callable[[], dict[str, Any]]:
    tok, text = vocabulary.load(root), (root / "text.txt").read_text(encoding="utf-8")
    return _timed(lambda: [tok.encoding.encode_ordinary(document) for document in text.split("<|endoftext|>\n")])


def encode_tokenizers(root: Path) -> Callable[[], dict[str, Any]]:
    from tokenizers import Tokenizer

    tok, text = Tokenizer.from_file(str(root / "tokenizer.json")), (root / "text.txt").read_text(encoding="utf-8")
    return _timed(lambda: tok.encode_batch_fast(text.split("<|endoftext|>\n"), add_special_tokens=False))


MUCH = "encoding: ours, 1 GB"
CONTENDERS = {
    "learning: ours": learn_ours,
    "learning: tokenizers alone": learn_tokenizers,
    "encoding: ours": encode_ours,
    MUCH: encode_much,
    "encoding: tiktoken alone": encode_tiktoken,
    "encoding: tokenizers alone": encode_tokenizers,
}


def main(rounds: int = 5) -> None:
    with tempfile.TemporaryDirectory() as root:
        write_text(Path(root) / "text.txt")
        vocabulary.train(data.read_text(Path(root) / "text.txt"), VOCABULARY).save(Path(root))
        commands = {n: [sys.executable, "-m", "bench.tokens", root, n] for n in CONTENDERS}
        much = {MUCH: commands.pop(MUCH)}
        found = harness.compare(commands, rounds) | harness.compare(much, 1)
    lines = [
        f"### Tokens (`python -m bench tokens`)\n\n{(__doc__ or '').strip()}\n",
        f"{harness.machine()}; median (lowest-highest) of {rounds}, 1 GB once.\n",
        "| | MB/s | seconds for 10 MB | peak MiB |\n| --- | ---: | ---: | ---: |",
    ]
    for name, m in found.items():
        seconds = f"{MEGABYTES / m.median:.2f}" if m.median else "-"
        lines.append(f"| {name} | {m} | {seconds} | {m.peak_mib or '-'} |")
    harness.section("tokens", "\n".join(lines))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        os.environ["TOKENIZERS_PARALLELISM"] = "true"  # all cores, as outside the harness
        harness.serve(lambda: CONTENDERS[sys.argv[2]](Path(sys.argv[1])))
    else:
        main()
