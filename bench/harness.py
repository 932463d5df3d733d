"""Ours beside the peers: each contender is a process of its own, and they take turns so that noise hits all alike."""

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results.md"
# As `python -m training` sets it; the same for every contender. See "Threads" in docs/results.md.
ENVIRONMENT = {"GOMP_SPINCOUNT": "20000", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


class NotRun(Exception):
    """Raised by a contender's setup: what is missing, as a person would say it."""


@dataclass(frozen=True)
class Measured:
    """Rates of one contender over the rounds; `reason` says why there are none."""

    median: float = 0.0
    low: float = 0.0
    high: float = 0.0
    peak_mib: int = 0  # largest resident size of the process in its whole life
    extra: dict[str, Any] = field(default_factory=dict)  # whatever else the last round's line held
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"not run: {self.reason}"
        return f"{_short(self.median)} ({_short(self.low)}-{_short(self.high)})"


def compare(contenders: dict[str, list[str]], rounds: int = 5) -> dict[str, Measured]:
    """Start every command, let each do one piece of work per round, one at a time; medians and spread by name."""
    children = {name: _Child(command) for name, command in contenders.items()}  # one starts after the other: quiet
    try:
        for number in range(rounds):
            for name, child in children.items():
                if not child.reason:
                    child.go()
                    done = f"{child.lines[-1]['rate']:,.1f}" if not child.reason else child.reason
                    print(f"  round {number + 1}: {name}: {done}", file=sys.stderr, flush=True)
        return {name: child.measured() for name, child in children.items()}
    finally:
        for child in children.values():
            child.end()


def serve(setup: Callable[[], Callable[[], dict[str, Any]]]) -> None:
    """A contender's life: set up, print `ready`, then one piece of work and one JSON line per `go`."""
    # Whatever a library prints goes to stderr: stdout carries the protocol alone.
    with os.fdopen(os.dup(1), "w", buffering=1) as out:
        os.dup2(2, 1)
        try:
            work = setup()
        except NotRun as missing:
            print(json.dumps({"not_run": str(missing)}), file=out)
            return
        except ImportError as error:
            print(json.dumps({"not_run": f"{error.name} is not installed (make bench installs it)"}), file=out)
            return
        print("ready", file=out)
        for line in sys.stdin:
            if line.strip() == "go":
                print(json.dumps(work()), file=out)


def section(name: str, markdown: str, path: Path = RESULTS) -> None:
    """Replace what stands between <!-- bench:NAME begin --> and <!-- bench:NAME end -->; new marks go to the end."""
    begin, end = f"<!-- bench:{name} begin -->", f"<!-- bench:{name} end -->"
    text = path.read_text(encoding="utf-8")
    if begin not in text:
        text = f"{text.rstrip()}\n\n{begin}\n{end}\n"
    before, rest = text.split(begin, 1)
    after = rest.split(end, 1)[1]
    path.write_text(f"{before}{begin}\n{markdown.strip()}\n{end}{after}", encoding="utf-8")


def machine() -> str:
    """The processor and the cores this process may use: goes beside every figure."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores"


class _Child:
    """A contender's process."""

    def __init__(self, command: list[str]) -> None:
        self.lines: list[dict[str, Any]] = []
        self.reason, self.peak_mib = "", 0
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=None, text=True, env={**os.environ, **ENVIRONMENT}
        )
        answer = self._read()
        if answer != "ready" and not self.reason:
            self.reason = str(json.loads(answer)["not_run"])

    def go(self) -> None:
        _pipe(self.process.stdin).write("go\n")
        _pipe(self.process.stdin).flush()
        if answer := self._read():
            self.lines.append(json.loads(answer))

    def measured(self) -> Measured:
        if self.reason:
            return Measured(reason=self.reason)
        rates = [line["rate"] for line in self.lines]
        extra = {key: value for key, value in self.lines[-1].items() if key != "rate"}
        return Measured(statistics.median(rates), min(rates), max(rates), _peak_mib(self.process.pid), extra)

    def end(self) -> None:
        _pipe(self.process.stdin).close()
        self.process.kill()
        self.process.wait()

    def _read(self) -> str:
        answer = _pipe(self.process.stdout).readline().strip()
        if not answer:
            self.reason = f"it ended with code {self.process.wait()}"
        return answer


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def _peak_mib(pid: int) -> int:
    """VmHWM of a living process; 0 where there is no /proc."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024
    return 0


def _short(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
