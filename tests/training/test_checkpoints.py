"""Checkpoints that survive a crash, and files that are whole or not there."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from training import optim
from training.checkpoints import Checkpoints, atomic_dir, sweep, write_atomic
from training.config import TrainingError
from training.model import GPT

MakeRun = Callable[..., Path]


def test_atomic_dir_leaves_nothing_when_the_block_fails(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()

    def write_half() -> None:
        with atomic_dir(tmp_path / "model") as folder:
            (folder / "new").touch()
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        write_half()
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "old"]


def test_write_atomic_replaces_a_file(tmp_path: Path) -> None:
    for value in (1, 2):
        write_atomic(tmp_path / "a.json", {"x": value})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"x": 2}
    assert len(list(tmp_path.iterdir())) == 1


def saved_checkpoints(run_dir: Path) -> Checkpoints:
    checkpoints = Checkpoints(run_dir)
    for step in (1, 2, 3):
        checkpoints.save(step, {"w": torch.full((3,), float(step))}, {"kl_coef": step / 10})
    return checkpoints


def test_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    checkpoints = saved_checkpoints(tmp_path)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step-00000002", "step-00000003"]
    step, tensors, state = checkpoints.latest() or pytest.fail("no checkpoint")
    assert (step, tensors["w"].tolist(), state) == (3, [3, 3, 3], {"step": 3, "kl_coef": 0.3})


@pytest.mark.parametrize("tear", ["truncate", "no manifest", "other bytes", "no tensors"])
def test_a_torn_checkpoint_is_passed_over(tear: str, tmp_path: Path) -> None:
    checkpoints = saved_checkpoints(tmp_path)
    newest = tmp_path / "checkpoints" / "step-00000003"
    if tear == "truncate":
        os.truncate(newest / "tensors.safetensors", 40)
    elif tear == "no manifest":
        (newest / "manifest.json").unlink()
    elif tear == "other bytes":
        content = bytearray((newest / "tensors.safetensors").read_bytes())
        content[-1] ^= 1
        (newest / "tensors.safetensors").write_bytes(content)
    else:
        (newest / "tensors.safetensors").unlink()
    found = checkpoints.latest()
    assert found is not None
    assert found[0] == 2


def test_a_torn_checkpoint_does_not_outlive_the_steps_that_are_taken_again(tmp_path: Path) -> None:
    checkpoints = saved_checkpoints(tmp_path)
    (tmp_path / "checkpoints" / "step-00000003" / "manifest.json").unlink()
    checkpoints.save(2, {"w": torch.zeros(3)}, {})
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step-00000002"]


def test_as_many_checkpoints_are_kept_as_asked_for(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in range(1, 6):
        checkpoints.save(step, {"w": torch.zeros(1)}, {})
    assert sorted(os.listdir(tmp_path / "checkpoints")) == [f"step-0000000{n}" for n in (3, 4, 5)]


def test_the_best_weights_outlive_the_checkpoints_and_the_process(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    for step, loss in enumerate([3.0, 1.0, 1.0, 2.0], start=1):
        torch.nn.init.constant_(model.weight, step)
        checkpoints = Checkpoints(tmp_path, keep=1)  # a process of its own each time
        checkpoints.keep_best(step, loss, model)
        checkpoints.save(step, {"w": torch.zeros(1)}, {})
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["best", "step-00000004"]
    assert Checkpoints(tmp_path).load_best(model) == 2
    assert model.weight.tolist() == [[2, 2], [2, 2]]
    assert Checkpoints(tmp_path).about(4) == {"model_step": 4, "best_step": 2, "best_val_loss": 1.0}


def test_a_loss_that_is_no_number_is_never_the_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step, loss in enumerate([math.nan, 5.0, math.nan, 4.0], start=1):
        checkpoints.keep_best(step, loss, torch.nn.Linear(2, 2))
    assert checkpoints.best == {"step": 4, "loss": 4.0}


def test_the_best_weights_outlive_a_kill_while_better_ones_take_their_place(tmp_path: Path) -> None:
    """kill -9 between the two renames leaves no folder best, and two whole ones aside."""
    Checkpoints(tmp_path).keep_best(1, 3.0, torch.nn.Linear(2, 2))
    best = tmp_path / "checkpoints" / "best"
    best.rename(best.with_name(".best.1234.part"))
    for number in range(8):  # whatever order the folder is read in
        torn = best.with_name(f".best.{number}.part")
        torn.mkdir()
        (torn / "tensors.safetensors").write_bytes(b"half")
    sweep(tmp_path)
    assert Checkpoints(tmp_path).best == {"step": 1, "loss": 3.0}
    assert os.listdir(tmp_path / "checkpoints") == ["best"]


def test_a_torn_best_is_none(tmp_path: Path) -> None:
    Checkpoints(tmp_path).keep_best(1, 1.0, torch.nn.Linear(2, 2))
    os.truncate(tmp_path / "checkpoints" / "best" / "tensors.safetensors", 40)
    assert Checkpoints(tmp_path).best is None
    with pytest.raises(TrainingError, match="0 validations"):
        Checkpoints(tmp_path).load_best(torch.nn.Linear(2, 2))


def test_what_a_killed_process_left_half_written_is_swept(tmp_path: Path) -> None:
    saved_checkpoints(tmp_path)
    for stray in (tmp_path / ".model.1234.part", tmp_path / "checkpoints" / ".step-00000004.1234.part"):
        stray.mkdir()
        (stray / "tensors.safetensors").write_bytes(b"half")
    (tmp_path / ".result.json.1234.part").write_text("{")
    sweep(tmp_path)
    assert [path.name for path in tmp_path.rglob("*.part")] == []
    assert Checkpoints(tmp_path).latest() is not None


@pytest.mark.parametrize(("width", "prefix"), [(16, ""), (32, "policy.")])
def test_a_checkpoint_of_another_shape_is_a_sentence(tiny: Callable[..., GPT], width: int, prefix: str) -> None:
    saved, model = tiny(), tiny(n_embd=width)
    tensors = optim.state_tensors(saved, optim.adamw(saved, 1e-3))
    found = r"as \(\d+, 32\)" if width == 16 else "0 times"
    with pytest.raises(
        TrainingError, match=rf"holds {prefix}wte.weight {found} .* remove the run's folder checkpoints"
    ):
        optim.load_state_tensors(model, optim.adamw(model, 1e-3), tensors, prefix)


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path).latest() is None


def test_the_first_checkpoint_is_early() -> None:
    due = [step for step in range(1, 301) if Checkpoints(Path()).due(step, 100)]
    assert due == [10, 100, 200, 300]
    assert Checkpoints(Path()).due(3, 3)
