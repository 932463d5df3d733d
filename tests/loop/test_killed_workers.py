"""kill -9 in the middle of every stage, a lost queue, a killed writer: nothing is lost, nothing is done twice."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.loop.conftest import TINY
from tests.loop.platform import Installation

pytestmark = pytest.mark.services

# Long enough to be caught in the middle; a checkpoint every few steps.
STAGES = {
    "pretrain": ["steps=60", "batch_size=32", "warmup_steps=2", "val_every=20", "sample_every=0", *TINY],
    "sft": ["epochs=8", "batch_size=16", "val_every=20", "sample_every=0"],
    "reward": ["epochs=4", "batch_size=4"],
    "ppo": ["updates=16", "batch_size=16", "max_new_tokens=24", "sample_every=5"],
}
NOT_REPEATABLE = {"tokens_per_s", "seconds", "samples_per_s", "seconds_rollout", "seconds_scoring", "seconds_update"}


@pytest.fixture(scope="module")
def ready(bucle: Installation, project: str) -> str:
    """PPO needs a reward model."""
    bucle.manage("train", "reward", "--project", project, "--wait")
    return project


def _curve(bucle: Installation, run: int) -> list[tuple[int, dict[str, float]]]:
    rows = bucle.query('SELECT step, "values" FROM registry_metric WHERE run_id = ? ORDER BY step', run)
    return [(step, {k: v for k, v in json.loads(text).items() if k not in NOT_REPEATABLE}) for step, text in rows]


def _start(bucle: Installation, project: str, stage: str) -> int:
    settings = [*STAGES[stage], "log_every=1", "checkpoint_every=3", "threads=1"]
    return int(bucle.manage("train", stage, "--project", project, "--set", *settings)["run"])


def _end(bucle: Installation, run: int) -> dict[str, object]:
    over = {"succeeded", "failed", "cancelled"}
    bucle.wait_for(lambda: bucle.run_row(run)["status"] in over, 150)
    return bucle.run_row(run)


@pytest.mark.parametrize("stage", list(STAGES))
def test_a_killed_train_worker_is_followed_by_the_same_curve(bucle: Installation, ready: str, stage: str) -> None:
    undisturbed = _start(bucle, ready, stage)
    assert _end(bucle, undisturbed)["status"] == "succeeded"
    worker = bucle.worker_pid("train")
    killed = _start(bucle, ready, stage)
    bucle.wait_for(lambda: bucle.lines(killed, "metrics.jsonl") >= 6, every=0.02)
    os.kill(worker, signal.SIGKILL)
    row = _end(bucle, killed)
    assert row["status"] == "succeeded", row
    assert (row["attempt"], row["attempts_lost"]) == (2, 1), "it must have been caught in the middle"
    assert _curve(bucle, killed) == _curve(bucle, undisturbed)
    weights = [_weights(bucle, run) for run in (undisturbed, killed)]
    assert weights[0] == weights[1]


def _weights(bucle: Installation, run: int) -> bytes:
    model = Path(bucle.query("SELECT path FROM registry_modelversion WHERE run_id = ?", run)[0][0])
    return (bucle.home / "artifacts" / model / "model.safetensors").read_bytes()


def test_a_redis_that_lost_its_queue_costs_seconds(bucle: Installation, project: str) -> None:
    """The message is taken away before a worker sees it: the reconciler rings again."""
    run = bucle.shell(
        "from labeling.stages import start_stage\nfrom registry.services import find_project\nimport registry.bell\n"
        "registry.bell.ring = lambda *a: True\n"
        f"print(start_stage(project=find_project('{project}'), stage='tokenizer', config={{'vocab_size': 300}}).pk)"
    )
    bucle.shell("from registry.live import client\nclient().flushall()")
    assert _end(bucle, int(run))["status"] == "succeeded"


def test_a_killed_serve_worker_finishes_its_round(bucle: Installation, project: str) -> None:
    bucle.manage("round", "open", "--project", project, "--prompts", "20", "--k", "4")
    bucle.kill_worker("serve")
    status = bucle.manage("round", "status", "--project", project)
    bucle.wait_for(lambda: bucle.manage("round", "status", "--project", project)["status"] == "ranking", 150)
    status = bucle.manage("round", "status", "--project", project)
    assert (status["completions_done"], status["completions_failed"]) == (80, 0)
    bucle.manage("round", "reject", "--project", project)
