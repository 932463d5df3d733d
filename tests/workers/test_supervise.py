"""A stage as a child process: whatever its end, the run says so, once, in one sentence."""

import json
import stat
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError

from accounts.models import Project
from registry.lifecycle import requeue_run
from registry.models import Dataset, Metric, ModelVersion, Run, Sample
from registry.services import cancel_run
from tests.make import claimed, make_run
from workers import supervise
from workers.supervise import Tail, execute

# Stands where the Python of `python -m training STAGE RUN_DIR --attempt N` stands.
FAKE = """#!{python}
import json, os, pathlib, signal, sys, time
run = pathlib.Path(sys.argv[4])
def report(name, **row):
    with (run / name).open("a") as lines:
        lines.write(json.dumps(row) + "\\n")
def write(name, row):
    (run / name).write_text(json.dumps(row))
{body}
"""
DONE = """
(run / "model").mkdir()
write("model/bucle.json", {"parameters": 12})
report("metrics.jsonl", step=1, steps=2, loss=2.0)
report("samples.jsonl", step=1, text="Hola")
report("metrics.jsonl", step=2, steps=2, loss=float("nan"), val_loss=1.0)
write("result.json", {"loss": 1.0, "other": float("nan")})
"""


@pytest.fixture(autouse=True)
def _quick(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.HEARTBEAT_SECONDS = 0
    monkeypatch.setattr(supervise, "LOOK_EVERY", 0.02)
    monkeypatch.setattr(supervise, "stopping", threading.Event())


@pytest.fixture
def run(project: Project, artifacts: Path) -> Run:
    (artifacts / "town.txt").write_text("El pan sube y el queso baja.\n" * 50)
    corpus = Dataset.objects.create(project=project, kind="corpus", name="t", path="town.txt", sha256="0")
    made = make_run(project, "tokenizer", config={"vocab_size": 300})
    made.datasets.set([corpus])
    return claimed(made)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """stage("...") puts a ten-line program in place of the engine."""

    def _stage(body: str) -> None:
        script = tmp_path / "python"
        script.write_text(FAKE.format(python=sys.executable, body=body))
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(supervise.sys, "executable", str(script))

    return _stage


def test_a_stage_that_ends_well_leaves_metrics_samples_and_a_model(run: Run, stage: Any) -> None:
    stage(DONE)
    execute(run)
    run.refresh_from_db()
    assert (run.status, run.error, run.step, run.steps) == ("succeeded", "", 2, 2)
    assert run.result == {"loss": 1.0, "other": None}
    assert dict(Metric.objects.values_list("step", "values")) == {1: {"loss": 2.0}, 2: {"loss": None, "val_loss": 1.0}}
    assert Sample.objects.get().values == {"step": 1, "text": "Hola"}
    assert (run.model.name, run.model.parameters) == ("tokenizer-1", 12)


def test_the_real_engine_ends_well(run: Run) -> None:
    execute(run)
    run.refresh_from_db()
    assert (run.status, run.error) == ("succeeded", "")
    assert (run.model.folder / "tokenizer.json").is_file()


def test_the_child_is_told_its_stage_and_attempt(run: Run, stage: Any) -> None:
    stage('write("error.json", {"error": " ".join(sys.argv[1:4] + sys.argv[5:])}); sys.exit(1)')
    execute(run)
    run.refresh_from_db()
    assert run.error == "-m training tokenizer --attempt 1 --stdin-lifeline"


def test_the_sentence_of_the_stage_stands_on_the_run(run: Run, stage: Any) -> None:
    stage('write("error.json", {"error": "Only 12 comparisons; this run needs 32."}); sys.exit(1)')
    execute(run)
    run.refresh_from_db()
    assert (run.status, run.error) == ("failed", "Only 12 comparisons; this run needs 32.")
    assert not ModelVersion.objects.exists()


def test_a_stage_that_says_nothing_points_to_its_log(run: Run, stage: Any) -> None:
    stage('print("last words", file=sys.stderr); sys.exit(3)')
    execute(run)
    run.refresh_from_db()
    assert run.status == "failed"
    assert "code 3" in run.error
    assert "last words" in (run.directory / "log.txt").read_text()


def test_a_killed_stage_goes_back_to_the_queue_and_fails_at_last(run: Run, stage: Any, settings: Any) -> None:
    settings.MAX_ATTEMPTS = 2
    stage("os.kill(os.getpid(), signal.SIGKILL)")
    execute(run)
    run.refresh_from_db()
    assert (run.status, run.attempts_lost) == ("queued", 1)
    execute(claimed(run))
    run.refresh_from_db()
    assert run.status == "failed"
    assert "out of memory" in run.error


def test_a_cancelled_run_ends_after_its_checkpoint(run: Run, stage: Any) -> None:
    stage("""
def stop(*_):
    write("checkpoint", 1)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
report("metrics.jsonl", step=1, steps=9, loss=2.0)
time.sleep(30)
""")
    cancel_run(run)
    execute(run)
    run.refresh_from_db()
    assert run.status == "cancelled"
    assert not ModelVersion.objects.exists()


def test_the_child_has_a_lifeline(run: Run, stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stage('write("pid", os.getpid()); sys.stdin.read(); write("error.json", {"error": "Cut off."}); sys.exit(1)')
    pipes: list[Any] = []

    def cut(_seconds: float) -> None:
        """What the system does to the pipe of a worker that was killed."""
        if (run.directory / "pid").exists():
            pipes.pop().close() if pipes else None

    original = supervise._watch

    def watch(run: Run, directory: Path, child: Any) -> int | None:
        pipes.append(child.stdin)
        return original(run, directory, child)

    monkeypatch.setattr(supervise, "_watch", watch)
    monkeypatch.setattr(supervise.time, "sleep", cut)
    execute(run)
    run.refresh_from_db()
    assert run.error == "Cut off."


def test_a_run_that_was_taken_over_is_left_alone_and_its_child_ended(run: Run, stage: Any) -> None:
    stage('write("pid", os.getpid()); report("metrics.jsonl", step=1, loss=2.0); time.sleep(30)')
    requeue_run(run, lost=True)
    newer = claimed(run)
    began = time.monotonic()
    execute(run)
    assert time.monotonic() - began < 15
    run.refresh_from_db()
    assert (run.status, run.attempt) == ("running", newer.attempt)
    assert not Metric.objects.exists()


def test_a_superseded_child_changes_nothing(run: Run, stage: Any) -> None:
    stage("sys.exit(75)")
    before = Run.objects.values("status", "attempt", "error", "attempts_lost").get()
    execute(run)
    assert Run.objects.values("status", "attempt", "error", "attempts_lost").get() == before


def test_a_worker_that_stops_puts_its_run_back_without_losing_an_attempt(run: Run, stage: Any) -> None:
    stage("time.sleep(30)")
    supervise.stopping.set()
    execute(run)
    run.refresh_from_db()
    assert (run.status, run.attempts_lost) == ("queued", 0)


def test_a_child_that_does_not_listen_is_killed_in_the_end(
    run: Run, stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "GRACE", 0.3)
    stage('signal.signal(signal.SIGTERM, signal.SIG_IGN); write("ready", 1); time.sleep(30)')
    original = supervise.lifecycle.wants_cancel
    monkeypatch.setattr(supervise.lifecycle, "wants_cancel", lambda r: (r.directory / "ready").exists() and original(r))
    cancel_run(run)
    execute(run)
    run.refresh_from_db()
    assert run.status == "cancelled"


def test_a_run_that_cannot_be_prepared_fails_with_its_sentence(run: Run) -> None:
    Dataset.objects.get().file.unlink()
    execute(run)
    run.refresh_from_db()
    assert run.status == "failed"
    assert "is missing: restore the artifacts" in run.error


def test_a_bug_of_ours_does_not_leave_a_run_waiting(run: Run, stage: Any) -> None:
    stage('write("result.json", {"loss": 1.0})')  # and no model
    execute(run)
    run.refresh_from_db()
    assert run.status == "failed"
    assert "log says more" in run.error


@pytest.mark.parametrize("when", ["on the way", "at the last look"])
def test_a_database_that_is_away_for_a_moment_costs_nothing(
    run: Run, stage: Any, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    stage(DONE)
    record, watch, calls = supervise.lifecycle.record, supervise._watch, []

    def record_later(*args: Any) -> bool:
        calls.append(args)
        if len(calls) == 1:
            raise OperationalError("database is locked")
        return record(*args)

    def watch_late(run: Run, directory: Path, child: Any) -> int | None:
        if when == "at the last look":
            child.wait()
        return watch(run, directory, child)

    monkeypatch.setattr(supervise.lifecycle, "record", record_later)
    monkeypatch.setattr(supervise, "_watch", watch_late)
    monkeypatch.setattr(supervise, "close_old_connections", lambda: None)
    execute(run)
    run.refresh_from_db()
    assert run.status == "succeeded"
    assert len(calls) >= 2
    assert Metric.objects.count() == 2


def test_a_database_that_is_away_at_the_end_does_not_fail_a_finished_run(
    run: Run, stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(DONE)

    def away(*_: Any) -> bool:
        raise OperationalError("server closed the connection")

    monkeypatch.setattr(supervise.lifecycle, "finish_run", away)
    execute(run)
    run.refresh_from_db()
    assert run.status == "running"  # the reconciler takes it back; result.json is there


def _line(**row: Any) -> str:
    return json.dumps(row) + "\n"


def test_tail_gives_each_line_once_and_a_torn_one_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.read() == []
    path.write_text(_line(step=1) + _line(step=2)[:5])
    assert tail.read() == [(0, {"step": 1})]
    assert tail.read() == []
    path.write_text(_line(step=1) + _line(step=2))
    assert tail.read() == [(1, {"step": 2})]


def test_tail_begins_again_where_the_file_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    path.write_text("".join(_line(step=n) for n in range(5)))
    assert len(tail.read()) == 5
    path.write_text(_line(step=0))
    assert tail.read() == [(0, {"step": 0})]


def test_tail_recovers_from_a_file_that_was_cut_and_has_grown_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    path.write_text(_line(step=1, text="short"))
    tail.read()
    path.write_text(_line(step=1, text="a much longer line than before") + _line(step=2))
    rows = tail.read() or tail.read()
    assert [row["step"] for _line_number, row in rows] == [1, 2]


def test_tail_takes_only_newlines_for_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps({"text": "a\u2028b\x85c\x0bd\re"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert Tail(path).read() == [(0, {"text": "a\u2028b\x85c\x0bd\re"})]
