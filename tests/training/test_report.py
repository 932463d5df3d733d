"""News of a run: lines, fencing, rewinding, pace."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.conftest import rows_of
from training.checkpoints import write_atomic
from training.report import FENCED, Pace, Report


def test_each_report_is_a_line(tmp_path: Path) -> None:
    report = Report(tmp_path)
    report(10, {"steps": 20, "loss": 1.5})
    report.sample(10, prompt="¿pan?", text="sí\nno")
    assert rows_of(tmp_path / "metrics.jsonl") == [{"step": 10, "steps": 20, "loss": 1.5}]
    assert rows_of(tmp_path / "samples.jsonl") == [{"step": 10, "prompt": "¿pan?", "text": "sí\nno"}]


def test_a_figure_that_is_no_number_is_null_to_every_reader_of_json(tmp_path: Path) -> None:
    Report(tmp_path)(1, {"loss": float("nan"), "of": [float("inf"), 1.0], "parts": {"kl": float("-inf")}})
    write_atomic(tmp_path / "result.json", {"loss": float("nan"), "steps": 3})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert line == '{"step": 1, "loss": null, "of": [null, 1.0], "parts": {"kl": null}}\n'
    assert json.loads((tmp_path / "result.json").read_text()) == {"loss": None, "steps": 3}


def test_rewind_cuts_later_and_torn_lines(tmp_path: Path) -> None:
    report = Report(tmp_path)
    for step in (1, 2, 3):
        report(step, {})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "lo')
    report.rewind(2)
    assert [row["step"] for row in rows_of(tmp_path / "metrics.jsonl")] == [1, 2]
    report.rewind(-1)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("own", "newest", "code"), [(1, "2", FENCED), (2, "2", 0), (3, "2", 0), (1, "", 0), (1, None, 0)]
)
def test_an_older_attempt_ends_without_writing(own: int, newest: str | None, code: int, tmp_path: Path) -> None:
    if newest is not None:
        (tmp_path / "attempt").write_text(newest)
    script = (
        f"from pathlib import Path; from training.report import Report; Report(Path({str(tmp_path)!r}), {own})(1, {{}})"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == code
    assert (tmp_path / "metrics.jsonl").exists() == (code == 0)


def test_rewind_keeps_texts_with_line_separators_of_unicode(tmp_path: Path) -> None:
    report = Report(tmp_path)
    report.sample(1, text="a\u2028b\x85c")
    report.rewind(1)
    assert rows_of(tmp_path / "samples.jsonl") == [{"step": 1, "text": "a\u2028b\x85c"}]


def test_pace_counts_only_the_time_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0, 100.0, 101.0])
    monkeypatch.setattr("training.report.time.perf_counter", lambda: next(clock))
    pace = Pace()
    with pace.of(10):
        pass
    assert pace.lap() == 5.0
    with pace.of(20):
        pass
    assert (pace.lap(), pace.overall()) == (20.0, 10.0)


def test_lines_are_json_with_letters_as_they_are(tmp_path: Path) -> None:
    Report(tmp_path).sample(1, text="año")
    line = (tmp_path / "samples.jsonl").read_text(encoding="utf-8")
    assert "año" in line
    assert json.loads(line)["text"] == "año"
