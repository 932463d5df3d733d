"""Stage `tokenizer`: files in, a tokenizer directory out."""

import json
from pathlib import Path

import pytest

from training import tokenizer, vocabulary
from training.config import TrainingError
from training.parse import parse
from training.report import Report


def test_stage_writes_a_tokenizer_directory(make_run, text: str) -> None:
    run_dir = make_run({}, {"a.txt": text})
    config = parse("tokenizer", {"files": ["data/a.txt"], "vocab_size": 300})
    result = tokenizer.run(config, run_dir, Report(run_dir))
    card = json.loads((run_dir / "model" / "bucle.json").read_text(encoding="utf-8"))
    assert (result["vocab_size"], card["kind"], card["tokenizer_hash"]) == (300, "tokenizer", result["hash"])
    assert result["bytes_per_token"] > 1.5
    assert vocabulary.load(run_dir / "model").hash == result["hash"]


def test_stage_without_files_or_encoding_is_refused(make_run) -> None:
    with pytest.raises(TrainingError, match="0 files"):
        tokenizer.run(parse("tokenizer", {}), make_run({}), Report(Path()))
