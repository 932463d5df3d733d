"""Stages of the engine as the shell starts them, in pieces: a run that was stopped goes on at the next call."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


class OutOfTime(Exception):
    """The time of this call is used up; the next one goes on from here."""


class Clock:
    """How many seconds this call may still compute; 0 at the start = no limit."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.end = time.monotonic() + seconds if seconds else None

    def left(self) -> float | None:
        if self.end is None:
            return None
        if (left := self.end - time.monotonic()) <= 0:
            raise OutOfTime
        return left


def stage(name: str, run_dir: Path, settings: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """The result of `python -m training NAME RUN_DIR`; a finished run with the same settings is not run again."""
    return run([sys.executable, "-m", "training", name, str(run_dir)], run_dir, settings, clock)


def run(command: list[str], run_dir: Path, settings: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """result.json of a command that reads RUN_DIR/config.json; other settings than last time start it anew.

    OutOfTime when the clock ran out: the command got SIGTERM. RuntimeError when it failed.
    """
    config = run_dir / "config.json"
    if config.is_file() and json.loads(config.read_text(encoding="utf-8")) != settings:
        shutil.rmtree(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps(settings, indent=2), encoding="utf-8")
    if not (run_dir / "result.json").is_file():
        clock.left()
        print(f"{' '.join(command[1:4])} ...", file=sys.stderr, flush=True)
        with (run_dir / "log.txt").open("ab") as log, subprocess.Popen(command, stdout=log, stderr=log) as child:
            stopped = _wait(child, clock)
        if child.returncode and not stopped:
            raise RuntimeError((run_dir / "log.txt").read_text(encoding="utf-8", errors="replace")[-2000:])
        if not (run_dir / "result.json").is_file():
            raise OutOfTime
    return result(run_dir)


def result(run_dir: Path) -> dict[str, Any]:
    """What a finished run says about itself."""
    return dict(json.loads((run_dir / "result.json").read_text(encoding="utf-8")))


def _wait(child: subprocess.Popen[bytes], clock: Clock) -> bool:
    """Wait for the end; SIGTERM at the end of the time (True), and when this program is stopped itself."""
    try:
        child.wait(clock.left())
        return False
    except BaseException as ended:
        child.send_signal(signal.SIGTERM)
        child.wait()
        if not isinstance(ended, (subprocess.TimeoutExpired, OutOfTime)):
            raise
        return True


def rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def write_rows(path: Path, things: list[dict[str, Any]]) -> Path:
    """The inverse of `rows`; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(thing, ensure_ascii=False) + "\n" for thing in things), encoding="utf-8")
    return path
