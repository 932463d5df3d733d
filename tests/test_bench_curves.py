"""The real runs' program on a text of a few lines: what it trains, reads back, draws and writes."""

from pathlib import Path
from typing import Any

import pytest

from bench import curves, runs
from bench.runs import Clock
from tests.training.conftest import corpus


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with one subject, and settings that train in a moment."""
    (tmp_path / "data" / "pretrain").mkdir(parents=True)
    (tmp_path / "data" / "pretrain" / "prices.txt").write_text(corpus(300), encoding="utf-8")
    rows = [{"instruction": f"Price {n}?", "response": "El pan.", "source": "made up"} for n in range(20)]
    runs.write_rows(tmp_path / "data" / "instructions" / "prices.jsonl", rows)
    subject = curves.Subject("Prices", ("prices",), ("prices",), "El precio", "Price 1?", steps=10)
    monkeypatch.setattr(curves, "SUBJECTS", {"prices": subject})
    monkeypatch.setattr(curves, "VOCABULARY", 300)
    monkeypatch.setattr(curves, "MODEL", {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 32})
    common: dict[str, Any] = {"batch_size": 4, "learning_rate": 1e-3, "val_every": 5, "log_every": 5, "compile": "off"}
    monkeypatch.setattr(curves, "PRETRAIN", {**common, "precision": "fp32"})
    monkeypatch.setattr(curves, "SFT", {**common, "epochs": 2, "val_fraction": 0.1})
    return tmp_path


def test_three_stages_run_and_are_reported(tiny: Path) -> None:
    work, data = tiny / "work", tiny / "data"
    results = curves.train("prices", data, Clock(), work)
    assert results["sft"]["rows"] == 18
    assert results["sft"]["val_rows"] == 2
    steps, losses = curves.curve(work / "prices" / "pretrain", "val_loss")
    assert steps == [0, 5, 10]
    assert losses[-1] == results["pretrain"]["val_loss"] < losses[0]
    text = curves.report({"prices": results}, data, work)
    assert f"{losses[0]:.2f} -> {losses[-1]:.2f}" in text
    assert f"| prices | 18, 2 | {results['sft']['steps']} |" in text
    assert curves.samples("prices", work, tokens=5) == curves.samples("prices", work, tokens=5)


def test_curves_are_drawn_small_and_without_background(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib comes with the extra `bench`")
    from bench import plots

    monkeypatch.setattr(plots, "DOCS", tiny)
    for stage in ("pretrain", "sft"):
        points = [{"step": n, "loss": 2 / n, "val_loss": 3 / n} for n in range(1, 9)]
        runs.write_rows(tiny / "work" / "prices" / stage / "metrics.jsonl", points)
    curves.draw(["prices"], tiny / "work")
    for stage in ("pretrain", "sft"):
        svg = (tiny / f"curves-{stage}.svg").read_text(encoding="utf-8")
        assert len(svg) < 100_000
        assert "Optimizer steps" in svg
        assert "held out" in svg
        assert "fill: #ffffff" not in svg
