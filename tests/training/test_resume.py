"""kill -9 inside a step, a rollout or a save of every stage: started again it ends bit for bit as if undisturbed."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.conftest import ROOT, curve, rows_of, run_stage
from tests.training.stages import SETTINGS, Build

# Runs a stage and kills its process in the n-th call of a function: no test can meet that moment from outside.
DIE = """
import importlib, os, signal, sys
place, call = sys.argv[1], int(sys.argv[2])
module, _, path = place.partition(":")
*owner, name = path.split(".")
holder = importlib.import_module(module)
for part in owner:
    holder = getattr(holder, part)
whole, calls = getattr(holder, name), 0
def counted(*args, **kwargs):
    global calls
    calls += 1
    if calls == call:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*args, **kwargs)
setattr(holder, name, counted)
from training.__main__ import main
sys.exit(main(sys.argv[3:]))
"""
STEP, WRITE, SAVE = "training.optim:clip", "training.engine:Engine.step", "training.checkpoints:_sha256"
# What an undisturbed run calls is a few times more: each place is met, and not in its first calls alone.
CALLS = {STEP: (2, 14), WRITE: (2, 30), SAVE: (1, 4)}
PLACES = [(stage, STEP) for stage in SETTINGS] + [(stage, SAVE) for stage in SETTINGS]
PLACES += [("ppo", WRITE), ("grpo", WRITE), ("rejection", WRITE)]
FAST = [("ppo", STEP), ("pretrain", SAVE)]


def die_in(place: str, call: int, stage: str, run_dir: Path) -> None:
    """Run until the `call`-th call of module:function, in which the process is killed."""
    command = [sys.executable, "-c", DIE, place, str(call), stage, str(run_dir)]
    died = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert died.returncode == -signal.SIGKILL, f"call {call} of {place}: {died.returncode} {died.stderr}"
    assert not (run_dir / "result.json").exists()


@pytest.mark.parametrize(
    ("stage", "place", "seed"),
    [(*which, 1) for which in FAST]
    + [pytest.param(*which, seed, marks=pytest.mark.slow) for which in PLACES for seed in (2, 3)],
)
def test_killed_inside_it_ends_as_if_undisturbed(build: Build, stage: str, place: str, seed: int) -> None:
    draw = random.Random(f"{stage} {place} {seed}")
    calm, killed = build(stage, "calm"), build(stage, "killed")
    assert run_stage(stage, calm).returncode == 0
    for _ in range(2):  # a resumed run is killed too
        die_in(place, draw.randint(*CALLS[place]), stage, killed)
    done = run_stage(stage, killed)
    assert done.returncode == 0, done.stderr
    assert curve(killed) == curve(calm)
    assert rows_of(killed / "samples.jsonl") == rows_of(calm / "samples.jsonl")
    assert (killed / "model/model.safetensors").read_bytes() == (calm / "model/model.safetensors").read_bytes()
    newest = sorted((calm / "checkpoints").glob("step-*"))[-1].name
    assert newest == sorted((killed / "checkpoints").glob("step-*"))[-1].name
    tensors = [(run / "checkpoints" / newest / "tensors.safetensors").read_bytes() for run in (killed, calm)]
    assert tensors[0] == tensors[1], "weights, and all that the optimizers remember"
    assert not list(killed.rglob("*.part"))
