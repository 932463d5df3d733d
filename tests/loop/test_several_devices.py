"""A run on two devices under a real train worker: its progress arrives, and what is killed of it is taken up again."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.loop.conftest import TINY
from tests.loop.platform import Installation
from tests.processes import ranks_of, working_in

pytestmark = pytest.mark.services

SETTINGS = [
    *TINY, "devices=2", "device=cpu", "steps=150", "batch_size=6", "warmup_steps=2", "val_every=40", "sample_every=0",
    "log_every=1", "checkpoint_every=5", "threads=1",
]  # fmt: skip
OVER = {"succeeded", "failed", "cancelled"}


def _start(bucle: Installation, project: str) -> int:
    return int(bucle.manage("train", "pretrain", "--project", project, "--set", *SETTINGS)["run"])


def _end(bucle: Installation, run: int) -> dict[str, object]:
    bucle.wait_for(lambda: bucle.run_row(run)["status"] in OVER, 240)
    return bucle.run_row(run)


def _directory(bucle: Installation, run: int) -> Path:
    return next((bucle.home / "artifacts").glob(f"projects/*/runs/{run}"))


def _curve(bucle: Installation, run: int) -> list[tuple[int, dict[str, float]]]:
    rows = bucle.query('SELECT step, "values" FROM registry_metric WHERE run_id = ? ORDER BY step', run)
    return [(step, {k: v for k, v in json.loads(text).items() if k != "tokens_per_s"}) for step, text in rows]


def _weights(bucle: Installation, run: int) -> bytes:
    model = Path(bucle.query("SELECT path FROM registry_modelversion WHERE run_id = ?", run)[0][0])
    return (bucle.home / "artifacts" / model / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(bucle: Installation, project: str) -> int:
    run = _start(bucle, project)
    row = _end(bucle, run)
    assert row["status"] == "succeeded", row
    assert [step for step, _ in _curve(bucle, run)] == list(range(151))
    return run


@pytest.mark.parametrize("victim", ["rank 0", "rank 1", "torchrun"])
def test_what_is_killed_of_a_run_on_two_devices_is_taken_up_again_and_nobody_is_left_behind(
    bucle: Installation, project: str, undisturbed: int, victim: str
) -> None:
    run = _start(bucle, project)
    bucle.wait_for(lambda: int(bucle.run_row(run)["step"] or 0) >= 7, 120, every=0.02)
    directory = _directory(bucle, run)
    before, ranks = working_in(directory), ranks_of(directory)
    assert len(ranks) == 2
    parent = int(Path(f"/proc/{ranks[0]}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(parent if victim == "torchrun" else ranks[int(victim[-1])], signal.SIGKILL)
    row = _end(bucle, run)
    assert row["status"] == "succeeded", row
    assert (row["attempt"], row["attempts_lost"]) == (2, 1), "it must have been caught in the middle"
    assert _curve(bucle, run) == _curve(bucle, undisturbed)
    assert _weights(bucle, run) == _weights(bucle, undisturbed)
    assert len(before) >= 4, "the launcher, torchrun and two ranks"
    bucle.wait_for(lambda: not working_in(directory), 20)
