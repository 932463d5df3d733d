"""python -m training STAGE RUN_DIR: run one stage in its directory."""

import argparse
import contextlib
import errno
import fcntl
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training.config import STAGES, TrainingError
from training.launch import launch, launched
from training.parse import parse
from training.report import Report, Stopped, die_with_stdin

# An idle thread spins for a moment, then sleeps. Spinning for ever is several times slower on cores shared with other
# programs, sleeping at once halves the speed on free ones. libgomp reads this when torch is loaded, which is later.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

FAILED = 1
STOPPED_AT_ONCE = ("tokenizer", "generate")  # stages that begin again anyway: nothing to save on SIGTERM
_LOCK_WAIT = 30.0  # seconds that a new attempt gives an older one to notice that it is over


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    run_dir: Path = options.run_dir
    if options.stdin_lifeline:
        die_with_stdin()
    if not run_dir.is_dir():
        print(f"There is no run directory {run_dir} (0 files): make it and write config.json in it.", file=sys.stderr)
        return FAILED
    report = Report(run_dir, options.attempt)
    report.listen()
    if launched():  # whoever started the ranks holds the lock for them
        return _run(options.stage, run_dir, report)
    try:
        with _locked(run_dir, _LOCK_WAIT if options.attempt is not None else 0.0) as lock:
            if (devices := _devices(options.stage, run_dir)) > 1:
                return launch(options.stage, run_dir, devices, options.attempt, lock)
            return _run(options.stage, run_dir, report)
    except BlockingIOError:
        print(f"Another process (1) works in {run_dir}: wait for it or stop it, then run again.", file=sys.stderr)
        return FAILED


def _run(stage: str, run_dir: Path, report: Report) -> int:
    from training import parallel
    from training.checkpoints import sweep, write_atomic

    report.fence()
    if report.writes:
        sweep(run_dir)
        if (run_dir / "result.json").exists():
            print("this run is finished: result.json is there", flush=True)
            return 0
        (run_dir / "error.json").unlink(missing_ok=True)
    try:
        parallel.start()
        config = parse(stage, _settings(run_dir))
        if stage in STOPPED_AT_ONCE:
            report.stop_at_once()
        result = importlib.import_module(f"training.{stage}").run(config, run_dir, report)
        report.at_once = False
    except Stopped as stopped:
        if report.writes:
            print(stopped, flush=True)
        return 0
    except TrainingError as error:
        return _fail(run_dir, report, str(error))
    except Exception as error:
        traceback.print_exc()
        if parallel.lost(error):
            return FAILED
        return _fail(run_dir, report, _sentence(error))
    report.fence()
    if report.writes:
        write_atomic(run_dir / "result.json", result)
    parallel.stop()
    return 0


def _sentence(error: Exception) -> str:
    from training.memory import full

    if full(error):
        return "The memory was full (0 bytes left): choose a smaller batch_size and run again."
    # safetensors writes in Rust, and its error knows no errno.
    if getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):
        return "The disk is full (0 bytes left): free space and run again; it goes on from its last checkpoint."
    return f"A programming error ended this run: {type(error).__name__}: {error}"[:500]


def _fail(run_dir: Path, report: Report, sentence: str) -> int:
    from training.checkpoints import write_atomic

    report.fence()
    # Of several ranks' sentences the first is the cause. On a full disk each of the two ways to tell it may fail.
    with contextlib.suppress(OSError):
        if report.writes or not (run_dir / "error.json").exists():
            write_atomic(run_dir / "error.json", {"error": sentence})
    with contextlib.suppress(OSError):
        print(sentence, file=sys.stderr, flush=True)
    return FAILED


def _devices(stage: str, run_dir: Path) -> int:
    try:
        return int(getattr(parse(stage, _settings(run_dir)), "devices", 1))
    except TrainingError:  # told once the run is locked
        return 1


def _settings(run_dir: Path) -> dict[str, Any]:
    try:
        settings = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TrainingError(f"{run_dir} has 0 files config.json: write the stage's settings in one.") from None
    except ValueError as error:
        raise TrainingError(f"config.json is not JSON ({error}): mend that line.") from None
    if not isinstance(settings, dict):
        raise TrainingError("config.json holds 0 settings: write one JSON object in it.")
    return settings


@contextlib.contextmanager
def _locked(run_dir: Path, wait: float) -> Iterator[int]:
    """Hold run.lock; the system lets go of it when the process dies."""
    with (run_dir / "run.lock").open("w") as lock:
        end = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise
                time.sleep(0.1)
        yield lock.fileno()


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--attempt", type=int, help="end as soon as RUN_DIR/attempt names a higher number")
    parser.add_argument("--stdin-lifeline", action="store_true", help="end when standard input closes")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
