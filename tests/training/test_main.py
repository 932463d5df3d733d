"""The command line: locks, fencing, signals, the lifeline, and doing nothing twice."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import curve, error_of, rows_of, run_stage, start_stage, wait_for
from training import __main__ as command
from training.report import FENCED, ORPHANED

MakeRun = Callable[..., Path]


@pytest.fixture
def long_run(make_run: MakeRun, tokenizer_dir: Path, text: str) -> Path:
    """A pretraining run that lasts until it is stopped."""
    return make_run(settings(tokenizer_dir, steps=100_000), {"a.txt": text}, "long")


def settings(tokenizer_dir: Path, **changes: Any) -> dict[str, Any]:
    sizes = {"n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 1, "batch_size": 2, "precision": "fp32"}
    sources = [{"path": "data/a.txt"}]
    common = {"log_every": 1, "checkpoint_every": 50, "val_fraction": 0.0, "sample_every": 0}
    return {"tokenizer": str(tokenizer_dir), "sources": sources, **sizes, **common, **changes}


def running(run_dir: Path, *options: str, **popen: Any) -> "subprocess.Popen[str]":
    process = start_stage("pretrain", run_dir, *options, **popen)
    wait_for(lambda: len(rows_of(run_dir / "metrics.jsonl")) > 3, process)
    return process


def test_a_finished_run_is_left_alone(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = make_run({"nonsense": 1})
    (run_dir / "result.json").write_text("{}")
    assert command.main(["sft", str(run_dir)]) == 0
    assert "finished" in capsys.readouterr().out
    assert sorted(os.listdir(run_dir)) == ["config.json", "data", "result.json", "run.lock"]


def test_sigterm_checkpoints_and_the_next_start_goes_on(make_run: MakeRun, tokenizer_dir: Path, text: str) -> None:
    config = settings(tokenizer_dir, steps=200)
    calm, stopped = make_run(config, {"a.txt": text}, "calm"), make_run(config, {"a.txt": text}, "stopped")
    assert run_stage("pretrain", calm).returncode == 0
    process = running(stopped)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    steps = rows_of(stopped / "metrics.jsonl")[-1]["step"]
    assert (process.returncode, out) == (0, f"stopped at step {steps}; run again to continue\n")
    assert not (stopped / "result.json").exists()
    assert run_stage("pretrain", stopped).returncode == 0
    assert curve(stopped) == curve(calm)


def test_a_second_process_is_refused_and_a_newer_attempt_fences_the_old_one(long_run: Path) -> None:
    (long_run / "attempt").write_text("1")
    old = running(long_run, "--attempt", "1")
    second = run_stage("pretrain", long_run)
    assert second.returncode == 1
    assert "Another process" in second.stderr
    (long_run / "attempt").write_text("2")
    _, err = old.communicate(timeout=60)
    assert old.returncode == FENCED, err
    before = (long_run / "metrics.jsonl").read_bytes()
    assert run_stage("pretrain", long_run, "--attempt", "1").returncode == FENCED
    assert (long_run / "metrics.jsonl").read_bytes() == before
    assert not (long_run / "error.json").exists()


def test_a_new_attempt_waits_for_the_old_one_to_go(make_run: MakeRun, tokenizer_dir: Path, text: str) -> None:
    run_dir = make_run(settings(tokenizer_dir, steps=300), {"a.txt": text})
    (run_dir / "attempt").write_text("1")
    old = running(run_dir, "--attempt", "1")
    old.send_signal(signal.SIGSTOP)  # a machine that hangs, with the lock in its hand
    (run_dir / "attempt").write_text("2")
    new = start_stage("pretrain", run_dir, "--attempt", "2")
    time.sleep(1.5)
    old.send_signal(signal.SIGCONT)
    _, err = new.communicate(timeout=60)
    old.communicate(timeout=60)
    assert (old.returncode, new.returncode) == (FENCED, 0), err
    assert [row["step"] for row in curve(run_dir)] == list(range(1, 301))


def test_the_process_dies_with_its_supervisors_pipe(long_run: Path) -> None:
    process = running(long_run, "--stdin-lifeline", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=30) == ORPHANED
    process.stdout.close()
    process.stderr.close()


def test_a_programming_error_is_a_traceback_and_a_short_sentence(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: Any) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("training.sft.run", run)
    run_dir = make_run({"base": "m"})
    assert command.main(["sft", str(run_dir)]) == 1
    assert error_of(run_dir) == "A programming error ended this run: ZeroDivisionError: oh"
    assert "Traceback" in capsys.readouterr().err


def test_a_full_disk_is_a_sentence(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.sft.run", run)
    run_dir = make_run({"base": "m"})
    assert command.main(["sft", str(run_dir)]) == 1
    assert error_of(run_dir).startswith("The disk is full")


def test_an_old_error_is_gone_once_the_run_succeeds(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = make_run({"base": "m"})
    (run_dir / "error.json").write_text("{}")
    monkeypatch.setattr("training.sft.run", lambda *_: {"loss": 1.0})
    assert command.main(["sft", str(run_dir)]) == 0
    assert json.loads((run_dir / "result.json").read_text()) == {"loss": 1.0}
    assert not (run_dir / "error.json").exists()


@pytest.mark.parametrize(
    ("content", "sentence"), [(None, "0 files config.json"), ("{oh", "not JSON"), ("[]", "0 settings")]
)
def test_a_bad_config_file_is_one_sentence(content: str | None, sentence: str, make_run: MakeRun) -> None:
    run_dir = make_run({})
    (run_dir / "config.json").unlink()
    if content is not None:
        (run_dir / "config.json").write_text(content)
    assert command.main(["sft", str(run_dir)]) == 1
    assert sentence in error_of(run_dir)


def test_a_missing_run_directory_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["sft", str(tmp_path / "nowhere")]) == 1
    assert "There is no run directory" in capsys.readouterr().err
