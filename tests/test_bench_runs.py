"""Runs in pieces: a finished one is not run again, a stopped one goes on, other settings start anew."""

import sys
from pathlib import Path

import pytest

from bench import runs
from bench.runs import Clock, OutOfTime

# Counts its starts in a file; ends at SIGTERM without a result, as a stage does, when `wait` is set.
CHILD = """
import json, pathlib, signal, sys, time
here = pathlib.Path(sys.argv[1])
config = json.loads((here / "config.json").read_text())
starts = here / "starts.txt"
starts.write_text(starts.read_text() + "x" if starts.exists() else "x")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
if config["wait"] and len(starts.read_text()) == 1:
    time.sleep(60)
if config.get("fail"):
    sys.exit("this child fails")
(here / "result.json").write_text(json.dumps({"starts": len(starts.read_text()), "seed": config["seed"]}))
"""


def _run(folder: Path, clock: Clock, **changes: object) -> dict[str, object]:
    return runs.run([sys.executable, "-c", CHILD, str(folder)], folder, {"wait": False, "seed": 1, **changes}, clock)


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    assert _run(tmp_path / "run", Clock()) == {"starts": 1, "seed": 1}
    assert _run(tmp_path / "run", Clock()) == {"starts": 1, "seed": 1}


def test_other_settings_start_anew(tmp_path: Path) -> None:
    _run(tmp_path / "run", Clock())
    assert _run(tmp_path / "run", Clock(), seed=2) == {"starts": 1, "seed": 2}


def test_a_stopped_run_goes_on_at_the_next_call(tmp_path: Path) -> None:
    with pytest.raises(OutOfTime):
        _run(tmp_path / "run", Clock(1.5), wait=True)
    assert _run(tmp_path / "run", Clock(), wait=True) == {"starts": 2, "seed": 1}


def test_a_failed_run_tells_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="this child fails"):
        _run(tmp_path / "run", Clock(), fail=True)
