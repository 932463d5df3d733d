"""What goes wrong, stage by stage: a sentence, the exit code that is due, and nothing lost."""

import fcntl
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.conftest import curve, error_of, rows_of, tiny_config
from tests.training.stages import SETTINGS, Build
from training import __main__ as command
from training import checkpoints
from training.checkpoint import load_model, save_model
from training.checkpoints import Checkpoints
from training.config import STAGES
from training.engine import Engine
from training.model import GPT
from training.report import Report

every_trained = pytest.mark.parametrize("stage", list(SETTINGS))
every = pytest.mark.parametrize("stage", list(STAGES))


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """A stage listens to SIGTERM, and here it runs in the tests' own process."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def calm(build: Build) -> Callable[[str], Path]:
    """calm(stage) -> the directory of an undisturbed run."""
    done: dict[str, Path] = {}

    def run(stage: str) -> Path:
        if stage not in done:
            done[stage] = build(stage, "calm")
            assert command.main([stage, str(done[stage])]) == 0
        return done[stage]

    return run


def learning(monkeypatch: pytest.MonkeyPatch, meet: Callable[[Tensor], Tensor | None]) -> None:
    """Call meet(tokens) in every forward pass that a gradient will need; a tensor it gives is the pass's answer."""
    honest = GPT.forward

    def forward(self: GPT, tokens: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        hidden = honest(self, tokens, *args, **kwargs)
        given = meet(hidden) if torch.is_grad_enabled() else None
        return hidden if given is None else given

    monkeypatch.setattr(GPT, "forward", forward)


def ends_as_if_undisturbed(stage: str, run_dir: Path, calm: Path) -> None:
    assert command.main([stage, str(run_dir)]) == 0
    assert curve(run_dir) == curve(calm)
    assert rows_of(run_dir / "samples.jsonl") == rows_of(calm / "samples.jsonl")
    assert (run_dir / "model/model.safetensors").read_bytes() == (calm / "model/model.safetensors").read_bytes()


@every_trained
def test_where_memory_ends_the_sentence_names_a_batch_that_fits(
    build: Build, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, most = [0], float("inf")

    def meet(hidden: Tensor) -> None:
        sizes.append(hidden.numel())
        if hidden.numel() > most:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate ...")

    learning(monkeypatch, meet)
    assert command.main([stage, str(build(stage, "whole", batch_size=8))]) == 0
    most = 0.6 * max(sizes)
    run_dir = build(stage, "short", batch_size=8)
    assert command.main([stage, str(run_dir)]) == 1
    told = re.fullmatch(
        r"A batch of \d rows found no memory; \d rows at once fit: set batch_size to (\d)\b.*", error_of(run_dir)
    )
    assert told, error_of(run_dir)
    assert 1 <= int(told[1]) < 8
    assert not list(run_dir.glob("checkpoints/step-*")), "the weights of a trial are no weights"
    # The number is no guess: with it the run ends well.
    settings = json.loads((run_dir / "config.json").read_text())
    (run_dir / "config.json").write_text(json.dumps(settings | {"batch_size": int(told[1])}))
    assert command.main([stage, str(run_dir)]) == 0


@pytest.mark.parametrize("stage", ["ppo", "grpo", "rejection", "best_of_n"])
def test_where_memory_ends_while_answers_are_written_the_sentence_names_how_many_fit(
    build: Build, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What writes more than 7 answers at once finds no memory for their keys and values."""
    name = "batch_size" if stage in {"ppo", "grpo"} else "write_batch"
    groups = {"group_size": 4} if stage == "grpo" else {}
    run_dir, honest = build(stage, "short", **{name: 12}, **groups), Engine.__init__

    def begin(self: Engine, model: GPT, tokenizer: Any, max_batch: int = 16, *args: Any) -> None:
        if max_batch > 7:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        honest(self, model, tokenizer, max_batch, *args)

    monkeypatch.setattr(Engine, "__init__", begin)
    assert command.main([stage, str(run_dir)]) == 1
    fits = 4 if stage == "grpo" else 6  # whole groups of 4; two minibatches; all 6 answers to a prompt
    expected = f"A batch of 12 rows found no memory; {fits} rows at once fit: set {name} to {fits}."
    assert error_of(run_dir) == expected
    settings = json.loads((run_dir / "config.json").read_text())
    (run_dir / "config.json").write_text(json.dumps(settings | {name: fits}))
    assert command.main([stage, str(run_dir)]) == 0


@every_trained
def test_a_loss_that_turns_nan_is_a_sentence_and_reaches_no_checkpoint(
    build: Build, calm: Callable[[str], Path], stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, passes = build(stage, "nan"), 0

    def meet(hidden: Tensor) -> Tensor | None:
        nonlocal passes
        passes += bool(list(run_dir.glob("checkpoints/step-*")))
        return hidden * float("nan") if passes > 3 else None  # no first ratio of an update

    with monkeypatch.context() as patch:
        learning(patch, meet)
        assert command.main([stage, str(run_dir)]) == 1
    assert re.search(r"(loss|gradient|norm) is nan .*lower learning_rate", error_of(run_dir)), error_of(run_dir)
    saved = Checkpoints(run_dir).latest()
    assert saved is not None
    assert all(tensor.isfinite().all() for tensor in saved[1].values())
    ends_as_if_undisturbed(stage, run_dir, calm(stage))


@every_trained
def test_a_checkpoint_of_another_shape_is_refused_and_kept(
    build: Build, stage: str, base_dir: Path, tmp_path: Path
) -> None:
    run_dir = build(stage, "other")
    assert command.main([stage, str(run_dir)]) == 0
    (run_dir / "result.json").unlink()
    before = {path: path.read_bytes() for path in run_dir.glob("checkpoints/*/*")}
    _, tok, _ = load_model(base_dir)
    save_model(tmp_path / "wide", GPT(tiny_config(tok.vocab_size, n_embd=48, n_positions=64)), tok, "base", {})
    settings = json.loads((run_dir / "config.json").read_text())
    change = {"n_embd": 32} if stage == "pretrain" else {"base": str(tmp_path / "wide")}
    (run_dir / "config.json").write_text(json.dumps(settings | change))
    assert command.main([stage, str(run_dir)]) == 1
    assert re.search(r"\d.*put (the settings|the model's files|those) back, or ", error_of(run_dir)), error_of(run_dir)
    assert {path: path.read_bytes() for path in run_dir.glob("checkpoints/*/*")} == before


@every_trained
def test_a_disk_that_fills_up_while_saving_costs_nothing_but_time(
    build: Build, calm: Callable[[str], Path], stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, honest, saves = build(stage, "full"), checkpoints.save_file, 0

    def save_file(tensors: dict[str, Tensor], path: Path) -> None:
        nonlocal saves
        saves += 1
        honest(tensors, path)
        if saves > 2:
            os.truncate(path, path.stat().st_size // 2)
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", save_file)
        assert command.main([stage, str(run_dir)]) == 1
    assert error_of(run_dir).startswith("The disk is full (0 bytes left): free space and run again")
    assert Checkpoints(run_dir).latest() is not None
    assert not list(run_dir.rglob("*.part"))
    ends_as_if_undisturbed(stage, run_dir, calm(stage))


@every_trained
@pytest.mark.parametrize("news", [1, 4])
def test_sigterm_saves_ends_in_order_and_the_next_start_goes_on(
    build: Build, calm: Callable[[str], Path], stage: str, news: int, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run_dir, honest, told = build(stage, "stopped"), Report.__call__, 0

    def call(self: Report, step: int, figures: dict[str, Any]) -> None:
        nonlocal told
        honest(self, step, figures)
        told += 1
        if told == news:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Report, "__call__", call)
        assert command.main([stage, str(run_dir)]) == 0
    assert re.search(r"stopped at step \d+; run again to continue", capsys.readouterr().out)
    assert not (run_dir / "result.json").exists()
    assert not (run_dir / "error.json").exists()
    # Rejection sampling keeps what it has written before it learns.
    assert Checkpoints(run_dir).latest() is not None or (run_dir / "pool.jsonl").exists()
    ends_as_if_undisturbed(stage, run_dir, calm(stage))


@every
def test_two_runs_on_one_directory_are_one(stage: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "config.json").write_text("{}")
    with (tmp_path / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert command.main([stage, str(tmp_path)]) == 1
    assert f"Another process (1) works in {tmp_path}: wait for it or stop it" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["config.json", "run.lock"]


@every
def test_an_unknown_key_is_named_with_its_neighbour(stage: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"learning_rat": 1.0}))
    assert command.main([stage, str(tmp_path)]) == 1
    assert re.fullmatch(
        rf"Stage {stage} has no setting 'learning_rat' \(it has \d+\): did you mean '\w+'\?", error_of(tmp_path)
    )
