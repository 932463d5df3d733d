"""News of a run: metrics.jsonl, samples.jsonl, fencing by attempt number, and the wish to stop."""

import contextlib
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FENCED, ORPHANED = 75, 76


class Stopped(Exception):
    """Raised by a stage once its checkpoint is written after SIGTERM."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped at step {step}; run again to continue")


class Report:
    """report(step, {...}) appends one line to metrics.jsonl; `stopping` turns true after SIGTERM."""

    def __init__(self, run_dir: Path, attempt: int | None = None) -> None:
        self.run_dir, self.attempt, self.stopping = run_dir, attempt, False
        self.at_once = False
        self.writes = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started, one

    def __call__(self, step: int, figures: dict[str, Any]) -> None:
        self._append("metrics.jsonl", {"step": step, **figures})

    def sample(self, step: int, **row: Any) -> None:
        self._append("samples.jsonl", {"step": step, **row})

    def fence(self) -> None:
        """End the process at once, writing nothing, if a newer attempt has this directory."""
        if self.attempt is None:
            return
        try:
            newest = int((self.run_dir / "attempt").read_text())
        except (FileNotFoundError, ValueError):
            return
        if newest > self.attempt:
            print(f"attempt {self.attempt} ends: attempt {newest} has this run", file=sys.stderr, flush=True)
            os._exit(FENCED)

    def rewind(self, step: int) -> None:
        """Cut the lines after `step`, so that a resumed run's files equal an undisturbed one's."""
        self.fence()
        if not self.writes:
            return
        for name in ("metrics.jsonl", "samples.jsonl"):
            path = self.run_dir / name
            if path.exists():
                # Not splitlines: a sampled text may hold U+2028, which that would break a row at.
                kept = [line for line in path.read_text(encoding="utf-8").split("\n") if _step(line) <= step]
                aside = path.with_suffix(".part")
                aside.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
                aside.replace(path)

    def listen(self) -> None:
        """Turn SIGTERM into the flag `stopping`."""
        signal.signal(signal.SIGTERM, self._stop)

    def stop_at_once(self) -> None:
        """From here on SIGTERM ends the stage where it meets it, and one that has come already ends it now."""
        self.at_once = True
        if self.stopping:
            self._stop()

    def _stop(self, *_: Any) -> None:
        self.stopping = True
        if self.at_once:
            self.at_once = False
            raise Stopped(0)

    def _append(self, name: str, row: dict[str, Any]) -> None:
        self.fence()
        if not self.writes:
            return
        with (self.run_dir / name).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(finite(row), ensure_ascii=False) + "\n")


class Pace:
    """Things per second, counting only the time spent inside `with pace.of(n)`."""

    def __init__(self) -> None:
        self.total, self.seconds = 0, 0.0
        self._since = (0, 0.0)

    @contextlib.contextmanager
    def of(self, things: int) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.total, self.seconds = self.total + things, self.seconds + time.perf_counter() - started

    def lap(self) -> float:
        """The pace since the last lap."""
        things, seconds = self.total - self._since[0], self.seconds - self._since[1]
        self._since = (self.total, self.seconds)
        return round(things / max(seconds, 1e-9), 1)

    def overall(self) -> float:
        return round(self.total / max(self.seconds, 1e-9), 1)


def finite(value: Any) -> Any:
    """The same value for JSON: nan and inf, which its readers refuse, become None."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def die_with_stdin() -> None:
    """End the process when its standard input closes: a child never outlives a killed supervisor."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(ORPHANED)

    threading.Thread(target=watch, daemon=True, name="stdin-lifeline").start()


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):  # a line torn by kill -9
        return float("inf")
