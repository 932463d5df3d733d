"""No memory, no disk, no time: a sentence, the exit code that is due, and nothing lost."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import ROOT, corpus, curve, error_of, rows_of, run_stage, start_stage, wait_for
from training import __main__ as command
from training import memory
from training.checkpoints import Checkpoints
from training.config import TrainingError

MakeRun = Callable[..., Path]
# Gives the process so much more address space than it has once everything is loaded, then runs a stage.
LIMITED = """
import re, resource, sys
from pathlib import Path
import training.pretrain
from training.__main__ import main
now = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (now + (int(sys.argv[1]) << 20),) * 2)
sys.exit(main(sys.argv[2:]))
"""
# A small disk in a mount namespace of its own; the run meets its end, is looked at, gets space and goes on.
SMALL_DISK = """
mount -t tmpfs -o size="$1" none "$2" && cp -r "$3/." "$2" && shift
"$2" -m training pretrain "$1"; echo "$?" > "$3/first"
cp -r "$1/." "$3"
mount -o remount,size=100m "$1"
"$2" -m training pretrain "$1"; echo "$?" > "$3/second"
cp "$1/metrics.jsonl" "$3/whole.jsonl"
"""


def pretraining(tokenizer_dir: Path, **changes: Any) -> dict[str, Any]:
    sizes = {"n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 2, "steps": 30, "batch_size": 2, "threads": 1}
    common = {"sources": [{"path": "data/a.txt"}], "log_every": 1, "val_fraction": 0.0, "sample_every": 0}
    return {"tokenizer": str(tokenizer_dir), "precision": "fp32", **common, **sizes, **changes}


def test_where_memory_ends_the_sentence_names_a_batch_that_fits(make_run: MakeRun, tokenizer_dir: Path) -> None:
    settings = pretraining(tokenizer_dir, batch_size=4096)
    run_dir = make_run(settings, {"a.txt": corpus(400)})
    limited = [sys.executable, "-c", LIMITED, "300", "pretrain", str(run_dir)]
    failed = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert failed.returncode == 1, failed.stderr
    sentence = error_of(run_dir)
    assert "A batch of 4096 rows found no memory; " in sentence, failed.stderr
    fits = int(sentence.split(": set batch_size to ")[1].split(",")[0])
    assert 1 <= fits < 4096
    assert not list(run_dir.glob("checkpoints/step-*")), "the weights of a trial are no weights"
    # The number is no guess: with it the run begins.
    (run_dir / "config.json").write_text(json.dumps(settings | {"batch_size": fits}))
    process = subprocess.Popen(limited, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: any("loss" in row for row in rows_of(run_dir / "metrics.jsonl")), process)
    process.kill()
    process.communicate()


def test_where_not_one_row_fits_the_sentence_says_so() -> None:
    tried = []

    def attempt(rows: int) -> None:
        tried.append(rows)
        raise MemoryError

    with pytest.raises(TrainingError, match="not even 1 row fits"), memory.explained(9, attempt, ""):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes")
    assert tried == [4, 2, 1]
    tried.clear()
    with pytest.raises(TrainingError, match="not even 6 rows fit"), memory.explained(36, attempt, "", unit=6):
        raise MemoryError
    assert tried == [18, 6], "a batch has whole groups and equal minibatches"
    with pytest.raises(RuntimeError, match="shapes"), memory.explained(9, attempt, ""):
        raise RuntimeError("shapes differ")


def test_a_disk_that_fills_up_costs_nothing_but_time(make_run: MakeRun, tokenizer_dir: Path, tmp_path: Path) -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this machine gives no mount namespace")
    settings, files = pretraining(tokenizer_dir, checkpoint_every=5), {"a.txt": corpus(100)}
    calm, full, disk = make_run(settings, files, "calm"), make_run(settings, files, "full"), tmp_path / "disk"
    disk.mkdir()
    assert run_stage("pretrain", calm).returncode == 0
    size = sum(file.stat().st_size for file in (calm / "checkpoints" / "step-00000030").iterdir())
    arguments = ["bash", str(int(2.7 * size)), str(disk), str(full)]
    script = f'PYTHONPATH="{ROOT}"; export PYTHONPATH; set -- "$1" "$2" "$3"\n' + SMALL_DISK
    script = script.replace("&& shift", f'&& set -- "$2" "{sys.executable}" "$3"')
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", script, *arguments], capture_output=True, text=True, timeout=120
    )
    assert (full / "first").read_text() == "1\n", done.stderr
    assert "The disk is full (0 bytes left): free space and run again" in done.stderr
    assert error_of(full).startswith("The disk is full")
    latest = Checkpoints(full).latest()
    assert latest is not None
    assert latest[0] < 30
    assert not list(full.rglob("*.part"))
    assert (full / "second").read_text() == "0\n", done.stderr
    rows = [{k: v for k, v in row.items() if k != "tokens_per_s"} for row in rows_of(full / "whole.jsonl")]
    assert rows == curve(calm)


def test_a_disk_too_full_for_the_sentence_itself_still_exits_1(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.sft.run", full)
    monkeypatch.setattr("training.checkpoints.write_atomic", full)
    run_dir = make_run({"base": "m"})
    assert command.main(["sft", str(run_dir)]) == 1
    assert "The disk is full" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["tokenizer", "generate"])
def test_sigterm_ends_a_stage_without_checkpoints_in_order(make_run: MakeRun, base_dir: Path, stage: str) -> None:
    settings = {
        "tokenizer": {"files": ["data/a.txt"], "vocab_size": 4000},
        "generate": {"model": str(base_dir), "prompts": ["pan"], "n": 3000, "max_new_tokens": 40, "threads": 1},
    }
    run_dir = make_run(settings[stage], {"a.txt": corpus(200_000) if stage == "tokenizer" else ""})
    process = start_stage(stage, run_dir)
    wait_for(lambda: (run_dir / "run.lock").exists(), process)
    time.sleep(0.5)
    wait_for(lambda: stage == "tokenizer" or bool(rows_of(run_dir / "metrics.jsonl")), process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "run again to continue" in out
    assert not (run_dir / "result.json").exists()


def test_two_starts_of_a_run_on_two_devices_are_one(make_run: MakeRun, tokenizer_dir: Path) -> None:
    run_dir = make_run(pretraining(tokenizer_dir, steps=100_000, devices=2), {"a.txt": corpus(100)})
    process = start_stage("pretrain", run_dir)
    wait_for(lambda: len(rows_of(run_dir / "metrics.jsonl")) > 1, process)
    second = run_stage("pretrain", run_dir)
    assert second.returncode == 1
    assert "Another process" in second.stderr
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 0
