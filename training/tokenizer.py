"""Stage `tokenizer`: learn a byte-level BPE from texts, or take a named encoding."""

import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from training import checkpoint, data
from training.checkpoints import atomic_dir
from training.config import TokenizerConfig, TrainingError
from training.report import Report
from training.vocabulary import Tokenizer, named, train

_SAID_EVERY = 1.0  # seconds between two reports
_MEASURED = 4  # pieces of about 1 MB of each text that its compression is measured on


def run(config: TokenizerConfig, run_dir: Path, report: Report) -> dict[str, Any]:
    """Stage `tokenizer`: files in, model/ with tokenizer.json out."""
    started = time.monotonic()
    paths = [data.resolve(run_dir, name) for name in config.files]
    if not config.encoding and not paths:
        raise TrainingError("There are 0 files to learn the vocabulary from: add a text or name an encoding.")
    for path in paths:
        data.require_text(path)
    steps = 1 + sum(path.stat().st_size for path in paths) // 10**6  # megabytes to read, then the merges
    texts = _reported(paths, steps, report)
    tokenizer = named(config.encoding) if config.encoding else train(texts, config.vocab_size)
    figures: dict[str, Any] = {"vocab_size": tokenizer.vocab_size, "hash": tokenizer.hash}
    if paths:
        figures |= _compression(tokenizer, paths)
    report(steps, {"steps": steps, **figures, "seconds": round(time.monotonic() - started, 2)})
    with atomic_dir(run_dir / "model") as folder:
        tokenizer.save(folder)
        checkpoint.write_card(folder, tokenizer, "tokenizer", {"stage": "tokenizer", "run": run_dir.name})
    return {**figures, "seconds": round(time.monotonic() - started, 2)}


def _reported(paths: Sequence[Path], steps: int, report: Report) -> Iterator[str]:
    """The texts, saying now and then how many megabytes have been read."""
    size, said = 0, time.monotonic()
    for text in itertools.chain.from_iterable(map(data.read_text, paths)):
        yield text
        size += len(text.encode())
        if time.monotonic() - said > _SAID_EVERY:
            said = time.monotonic()
            report(min(size // 10**6, steps - 1), {"steps": steps, "read_mb": size / 1e6})


def _compression(tokenizer: Tokenizer, paths: Sequence[Path]) -> dict[str, Any]:
    """Bytes per token of all texts together, and of each: a language that the vocabulary serves badly shows here."""
    counts = {}
    for path in paths:
        texts = list(itertools.islice(data.read_text(path), _MEASURED))
        size, tokens = sum(len(t.encode()) for t in texts), sum(len(tokenizer.encode_array(t)) for t in texts)
        before = counts.get(path.name, (0, 0))
        counts[path.name] = (before[0] + size, before[1] + tokens)
    size, tokens = (sum(numbers) for numbers in zip(*counts.values(), strict=True))
    each = {name: round(size / max(1, tokens), 3) for name, (size, tokens) in counts.items()}
    return {"bytes_per_token": round(size / max(1, tokens), 3), "bytes_per_token_by_text": each}
