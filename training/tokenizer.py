"""Stage `tokenizer`: learn a byte-level BPE from texts, or take a named encoding."""

import time
from pathlib import Path
from typing import Any

from training import checkpoint, data
from training.checkpoints import atomic_dir
from training.config import TokenizerConfig, TrainingError
from training.report import Report
from training.vocabulary import Tokenizer, named, train


def run(config: TokenizerConfig, run_dir: Path, report: Report) -> dict[str, Any]:
    """Stage `tokenizer`: files in, model/ with tokenizer.json out."""
    started = time.monotonic()
    paths = [data.resolve(run_dir, name) for name in config.files]
    if not config.encoding and not paths:
        raise TrainingError("There are 0 files to learn the vocabulary from: add a text or name an encoding.")
    for path in paths:
        data.require_text(path)
    texts = (text for path in paths for text in data.read_text(path))
    tokenizer = named(config.encoding) if config.encoding else train(texts, config.vocab_size)
    figures: dict[str, Any] = {"vocab_size": tokenizer.vocab_size, "hash": tokenizer.hash}
    if paths:
        figures["bytes_per_token"] = _bytes_per_token(tokenizer, next(data.read_text(paths[0])))
    report(1, {"steps": 1, **figures, "seconds": round(time.monotonic() - started, 2)})
    with atomic_dir(run_dir / "model") as folder:
        tokenizer.save(folder)
        checkpoint.write_card(folder, tokenizer, "tokenizer", {"stage": "tokenizer", "run": run_dir.name})
    return {**figures, "seconds": round(time.monotonic() - started, 2)}


def _bytes_per_token(tokenizer: Tokenizer, text: str) -> float:
    return round(len(text.encode()) / max(1, len(tokenizer.encode(text))), 3)
