"""A small corpus, its tokenizer, tiny models, and run directories for the engine's tests."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from training import kernels
from training import vocabulary as tokenizers
from training.chat import render_prompt
from training.checkpoint import load_model, save_model
from training.config import ModelConfig
from training.model import GPT, RewardModel
from training.vocabulary import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
GOODS = ["pan", "queso", "miel", "bread", "cheese", "honey"]
# Keys that may differ between two equal runs.
CLOCKS = ("tokens_per_s", "seconds", "samples_per_s", "seconds_rollout", "seconds_scoring", "seconds_update")

torch.set_num_threads(1)


def corpus(lines: int, seed: int = 1) -> str:
    draw = random.Random(seed)
    return "".join(
        f"El precio del {draw.choice(GOODS)} es {draw.randint(1, 9)} monedas. The {draw.choice(GOODS)} costs more.\n"
        for _ in range(lines)
    )


@pytest.fixture(scope="session")
def text() -> str:
    return corpus(400)


@pytest.fixture(scope="session")
def tok(text: str) -> Tokenizer:
    return tokenizers.train([text], 320)


def tiny_config(vocab_size: int, **changes: Any) -> ModelConfig:
    sizes: dict[str, Any] = {"n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2}
    return ModelConfig(vocab_size=vocab_size, **{**sizes, **changes})


@pytest.fixture
def tiny(tok: Tokenizer) -> Callable[..., GPT]:
    """tiny(norm="post", ...) -> a random model in eval mode; the same weights each time."""

    def build(**changes: Any) -> GPT:
        torch.manual_seed(3)
        return GPT(tiny_config(tok.vocab_size, **changes)).eval()

    return build


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory: pytest.TempPathFactory, tok: Tokenizer) -> Path:
    """A base model with random weights, as a directory."""
    path = tmp_path_factory.mktemp("base") / "model"
    torch.manual_seed(3)
    save_model(path, GPT(tiny_config(tok.vocab_size, n_positions=64)), tok, "base", {"stage": "pretrain"})
    return path


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory, tok: Tokenizer) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    tok.save(path)
    return path


@pytest.fixture(scope="session")
def reward_dir(tmp_path_factory: pytest.TempPathFactory, base_dir: Path) -> Path:
    """A reward model with random weights, as a directory."""
    path = tmp_path_factory.mktemp("reward") / "model"
    trunk, tok, _ = load_model(base_dir)
    torch.manual_seed(5)
    save_model(path, RewardModel(trunk), tok, "reward", {"stage": "reward", "reward_std": 0.5})
    return path


@pytest.fixture(scope="session")
def build(
    tmp_path_factory: pytest.TempPathFactory, base_dir: Path, tokenizer_dir: Path, reward_dir: Path, text: str
) -> Callable[..., Path]:
    """build(stage, "calm", batch_size=8) -> a run directory of stages.py with everything the stage needs."""
    from tests.training import stages

    models = {"base": base_dir, "tokenizer": tokenizer_dir, "reward_model": reward_dir}

    def made(stage: str, name: str = "run", **changes: Any) -> Path:
        return stages.fill(tmp_path_factory.mktemp(f"{stage}-{name}"), stage, models, text, **changes)

    return made


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """make_run({"steps": 3}, {"a.txt": "..."}, name="b") -> a run directory with config.json and data/a.txt."""

    def build(config: dict[str, Any], files: dict[str, str | bytes] | None = None, name: str = "run") -> Path:
        run_dir = tmp_path / name
        (run_dir / "data").mkdir(parents=True)
        (run_dir / "config.json").write_text(json.dumps(config), encoding="utf-8")
        for file, content in (files or {}).items():
            raw = content.encode() if isinstance(content, str) else content
            (run_dir / "data" / file).write_bytes(raw)
        return run_dir

    return build


@pytest.fixture(params=["kernels", "torch"])
def setting(request: pytest.FixtureRequest) -> Iterator[str]:
    """A test that asks for it runs twice: on the compiled kernels, and on torch's own operations."""
    if not kernels.enable("on" if request.param == "kernels" else "off") and request.param == "kernels":
        pytest.skip("no C++ compiler")
    yield request.param
    kernels.enable("off")


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def start_stage(stage: str, run_dir: Path, *options: str, **popen: Any) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "training", stage, str(run_dir), *options]
    popen = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **popen}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **popen)


def run_stage(stage: str, run_dir: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    process = start_stage(stage, run_dir, *options)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def kill_at(stage: str, run_dir: Path, step: int) -> None:
    """kill -9 a real process once its curve has reached `step`."""
    process = start_stage(stage, run_dir)
    wait_for(lambda: any(row["step"] >= step for row in rows_of(run_dir / "metrics.jsonl")), process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (run_dir / "result.json").exists(), "the run ended before it was killed: give it more steps"


def wait_for(holds: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    end = time.monotonic() + 60
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "waited for 60 s"
        time.sleep(0.002)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a .jsonl file; a line that is still being written is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def curve(run_dir: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows_of(run_dir / "metrics.jsonl")]


def error_of(run_dir: Path) -> str:
    return str(json.loads((run_dir / "error.json").read_text(encoding="utf-8"))["error"])


def prompt_ids(tok: Tokenizer, text: str = "¿Cuánto cuesta el pan?") -> list[int]:
    return render_prompt(tok, text)
