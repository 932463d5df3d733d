"""A training stage as a child process: relay its news, keep the run's heartbeat, pass on a cancel, judge its end."""

import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import OperationalError, close_old_connections

from registry import lifecycle
from registry.live import publish
from registry.models import Run
from registry.services import RegistryError
from workers.life import stopping
from workers.prepare import artifact_of, prepare

log = logging.getLogger(__name__)
LOOK_EVERY = 0.4  # seconds
GRACE = 60.0  # seconds from SIGTERM to SIGKILL: enough to write a checkpoint
SUPERSEDED = 75  # the child saw a newer attempt


def read_json(raw: bytes) -> dict[str, Any]:
    """JSON as the engine writes it; a figure that is not a number (nan) becomes null, which databases can hold."""
    return dict(json.loads(raw, parse_constant=lambda _name: None))


class Tail:
    """New complete lines of a growing file; begins again where the file was cut back."""

    def __init__(self, path: Path) -> None:
        self.path, self.offset, self.line = path, 0, 0

    def read(self) -> list[tuple[int, dict[str, Any]]]:
        """(line number, row) of every line that has come since."""
        try:
            if self.path.stat().st_size < self.offset:
                self.offset = self.line = 0
            with self.path.open("rb") as stream:
                stream.seek(self.offset)
                content = stream.read()
        except FileNotFoundError:
            return []
        whole, newline, _torn = content.rpartition(b"\n")
        rows = []
        for raw in (whole + newline).splitlines(keepends=True):
            try:
                rows.append((self.line, read_json(raw)))
            except ValueError:  # the file was cut and has grown again: read it from the start next time
                self.offset = self.line = 0
                return []
            self.line += 1
            self.offset += len(raw)
        return rows


def execute(run: Run) -> None:
    """Train a claimed run to its end; whatever happens stands on the run as one sentence."""
    try:
        _execute(run)
    except RegistryError as error:
        lifecycle.fail_run(run, str(error))
    except OperationalError:  # the database is away: the reconciler takes the run back, what is done is not done again
        log.exception("Run %d", run.pk)
        return
    except Exception as error:
        log.exception("Run %d", run.pk)
        lifecycle.fail_run(run, f"The train worker could not go on ({type(error).__name__}): its log says more.")
    tell(run)


def _execute(run: Run) -> None:
    directory = prepare(run)
    with (directory / "log.txt").open("ab") as log_file:
        # The pipe is a lifeline: when this process dies, however it dies, the child reads its end and dies too.
        command = [sys.executable, "-m", "training", run.stage, str(directory), "--attempt", str(run.attempt)]
        child = subprocess.Popen(
            [*command, "--stdin-lifeline"], stdin=subprocess.PIPE, stdout=log_file, stderr=log_file,
            cwd=settings.BASE_DIR,
        )  # fmt: skip
        try:
            code = _watch(run, directory, child)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
    if code is not None:
        _judge(run, directory, code)


def _watch(run: Run, directory: Path, child: "subprocess.Popen[bytes]") -> int | None:
    """Relay until the child ends; its exit code, or None when the run is no longer ours."""
    metrics, samples = Tail(directory / "metrics.jsonl"), Tail(directory / "samples.jsonl")
    beat_at = told_at = 0.0
    while True:
        ended = child.poll() is not None  # before reading, so that the last lines are not missed
        try:
            ours = _relay(run, metrics.read(), samples.read())
            if time.monotonic() - beat_at > settings.HEARTBEAT_SECONDS:
                ours = ours and lifecycle.beat_run(run)
                beat_at = time.monotonic()
            if not ours:
                log.warning("Run %d attempt %d has been taken over.", run.pk, run.attempt)
                return None
            if told_at == 0.0 and (stopping.is_set() or lifecycle.wants_cancel(run)):
                child.terminate()
                told_at = time.monotonic()
        except OperationalError as error:  # the database is away or locked: the child goes on, look again
            log.warning("Run %d: %s", run.pk, error)
            metrics.offset = metrics.line = samples.offset = samples.line = 0
            close_old_connections()
            ended = ended and stopping.is_set()  # the last lines are stored before the end is judged
        if told_at and time.monotonic() - told_at > GRACE:
            child.kill()
        if ended:
            return child.returncode
        time.sleep(LOOK_EVERY)


def _relay(run: Run, metrics: list[tuple[int, dict[str, Any]]], samples: list[tuple[int, dict[str, Any]]]) -> bool:
    if not metrics and not samples:
        return True
    rows = [row for _line, row in metrics]
    if not lifecycle.record(run, rows, samples):
        return False
    publish(f"run:{run.pk}", {"status": "running", "metrics": rows, "samples": [row for _line, row in samples]})
    return True


def _judge(run: Run, directory: Path, code: int) -> None:
    """What the end of the child means for the run."""
    result = directory / "result.json"
    if code == 0 and result.exists():
        lifecycle.finish_run(run, read_json(result.read_bytes()), artifact_of(run))
    elif code == SUPERSEDED:
        log.warning("Run %d attempt %d was superseded.", run.pk, run.attempt)
    elif lifecycle.wants_cancel(run):
        lifecycle.end_cancelled(run)
    elif code == 0 or stopping.is_set():  # it was asked to stop, by our own shutdown: go on elsewhere
        lifecycle.requeue_run(run, lost=False)
    elif code < 0:  # killed, most often by the system for want of memory
        lifecycle.requeue_run(run, lost=True)
    else:
        lifecycle.fail_run(run, _sentence(directory, code))


def _sentence(directory: Path, code: int) -> str:
    try:
        return str(json.loads((directory / "error.json").read_text(encoding="utf-8"))["error"])
    except (OSError, ValueError, KeyError):
        return f"The training process ended with code {code}; its last words are in {directory / 'log.txt'}."


def tell(run: Run) -> None:
    """Let live pages know how it ended."""
    fresh = Run.objects.get(pk=run.pk)
    publish(f"run:{run.pk}", {"status": fresh.status, "metrics": [], "samples": [], "error": fresh.error})
