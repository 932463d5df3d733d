"""kill -9 inside a step, a rollout or a save of every stage: started again it ends bit for bit as if undisturbed."""

import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.conftest import ROOT, curve, jsonl, rows_of, run_stage
from training.checkpoint import load_model, save_model
from training.model import RewardModel

MakeRun = Callable[..., Path]
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
RANKED = {"responses": ["miel", "miel y pan", "queso"], "ranking": [2, [0, 1]]}
COMMON = {"checkpoint_every": 3, "log_every": 1, "threads": 1, "batch_size": 4, "learning_rate": 1e-3}
SETTINGS: dict[str, dict[str, Any]] = {
    "pretrain": {
        "steps": 30, "val_every": 10, "sample_every": 10, "sample_tokens": 4, "dropout": 0.2, "grad_accum": 2,
        "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "sources": [{"path": "data/a.txt"}],
    },
    "sft": {"epochs": 6, "val_every": 7, "sample_every": 9, "sample_tokens": 4},
    "reward": {"epochs": 4, "min_comparisons": 1, "val": "data/train.jsonl"},
    "dpo": {"epochs": 4, "min_comparisons": 1, "max_new_tokens": 4, "kl_samples": 4, "val": "data/train.jsonl"},
    "ppo": {
        "updates": 8, "max_new_tokens": 6, "value_warmup": 1, "kl_target": 2.0, "kl_horizon": 100, "sample_every": 3,
        "ptx_coef": 0.1, "demonstrations": "data/demonstrations.jsonl",
    },
    "grpo": {"updates": 8, "max_new_tokens": 6, "group_size": 2, "sample_every": 3},
}  # fmt: skip
# What an undisturbed run calls is a few times more: each place is met, and not in its first calls alone.
CALLS = {STEP: (2, 14), WRITE: (2, 30), SAVE: (1, 4)}
PLACES = [(stage, STEP) for stage in SETTINGS] + [(stage, SAVE) for stage in SETTINGS]
PLACES += [("ppo", WRITE), ("grpo", WRITE)]
FAST = [("ppo", STEP), ("pretrain", SAVE)]


@pytest.fixture(scope="module")
def reward_dir(tmp_path_factory: pytest.TempPathFactory, base_dir: Path) -> Path:
    path = tmp_path_factory.mktemp("reward") / "model"
    trunk, tok, _ = load_model(base_dir)
    torch.manual_seed(5)
    save_model(path, RewardModel(trunk), tok, "reward", {"stage": "reward", "reward_std": 0.5})
    return path


@pytest.fixture
def build(make_run: MakeRun, base_dir: Path, tokenizer_dir: Path, reward_dir: Path, text: str) -> Callable[..., Path]:
    """build(stage, name) -> a run directory with everything the stage needs."""

    def made(stage: str, name: str) -> Path:
        demonstrations = jsonl([{"instruction": f"pan {i}", "response": "miel " * (1 + i % 5)} for i in range(22)])
        rankings = jsonl([{"prompt": f"pan {i}", **RANKED} for i in range(22)])
        files = {
            "a.txt": text,
            "train.jsonl": demonstrations if stage == "sft" else rankings,
            "demonstrations.jsonl": demonstrations,
            "prompts.jsonl": jsonl([{"prompt": f"pan {i}"} for i in range(10)]),
        }
        models = {"tokenizer": str(tokenizer_dir)} if stage == "pretrain" else {"base": str(base_dir)}
        models |= {"reward_model": str(reward_dir)} if stage in {"ppo", "grpo"} else {}
        return make_run({**COMMON, **SETTINGS[stage], **models}, files, name)

    return made


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
def test_killed_inside_it_ends_as_if_undisturbed(build: Callable[..., Path], stage: str, place: str, seed: int) -> None:
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
