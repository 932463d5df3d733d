"""Stage `tokenizer`: files in, a tokenizer directory out."""

import json
from pathlib import Path

import pytest

from tests.training.conftest import rows_of
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


def test_compression_is_said_of_each_text(make_run, text: str) -> None:
    run_dir = make_run({}, {"es.txt": text, "zh.txt": "日本語のテキスト" * 200})
    config = parse("tokenizer", {"files": ["data/es.txt", "data/zh.txt"], "vocab_size": 300})
    result = tokenizer.run(config, run_dir, Report(run_dir))
    own = vocabulary.load(run_dir / "model")
    each = result["bytes_per_token_by_text"]
    assert each["es.txt"] == pytest.approx(len(text.encode()) / len(own.encode(text)), abs=1e-3)
    assert set(each) == {"es.txt", "zh.txt"}
    assert min(each.values()) < result["bytes_per_token"] < max(each.values())


def test_progress_is_said_in_megabytes_read(make_run, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "_SAID_EVERY", -1.0)
    run_dir = make_run({}, {"a.txt": text * 30})
    tokenizer.run(parse("tokenizer", {"files": ["data/a.txt"] * 3, "vocab_size": 270}), run_dir, Report(run_dir))
    rows = rows_of(run_dir / "metrics.jsonl")
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    assert rows[-2]["read_mb"] == pytest.approx(len(text.encode()) * 90 / 1e6)
    assert rows[-1]["step"] == rows[-1]["steps"] == rows[0]["steps"] > rows[-2]["step"]


def test_bytes_alone_are_a_vocabulary(make_run, text: str) -> None:
    run_dir = make_run({}, {"a.txt": text})
    tokenizer.run(parse("tokenizer", {"files": ["data/a.txt"], "vocab_size": 260}), run_dir, Report(run_dir))
    own = vocabulary.load(run_dir / "model")
    assert own.vocab_size == 260
    assert all(len(own.encode(word)) == len(word.encode()) for word in ("pan", "¿año?", "日"))
    assert own.decode(own.encode("¿año? 日")) == "¿año? 日"


def test_stage_without_files_or_encoding_is_refused(make_run) -> None:
    with pytest.raises(TrainingError, match="0 files"):
        tokenizer.run(parse("tokenizer", {}), make_run({}), Report(Path()))
