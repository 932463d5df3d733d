"""Checkpoints that survive a crash, and files that are whole or not there."""

import json
import os
from pathlib import Path

import pytest
import torch

from training.checkpoints import Checkpoints, atomic_dir, write_atomic


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


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path).latest() is None


def test_the_first_checkpoint_is_early() -> None:
    due = [step for step in range(1, 301) if Checkpoints(Path()).due(step, 100)]
    assert due == [10, 100, 200, 300]
    assert Checkpoints(Path()).due(3, 3)
