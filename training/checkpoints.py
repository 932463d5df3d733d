"""The checkpoints that a run resumes from, and files that are whole or not there. safetensors only."""

import contextlib
import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training import parallel
from training.config import TrainingError
from training.report import finite


@contextlib.contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Write into a folder beside `path`; it takes its place, whole and on disk, only if the block succeeds."""
    aside, old = _beside(path), _beside(path)
    aside.mkdir(parents=True)
    try:
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                _sync(file)
        if path.exists():
            path.rename(old)
        aside.rename(path)
        _sync(path.parent)
    finally:
        for folder in (aside, old):
            shutil.rmtree(folder, ignore_errors=True)


def write_atomic(path: Path, value: dict[str, Any]) -> None:
    """One JSON file, whole or not at all; a figure that is not a number becomes null, as JSON has no other word."""
    aside = _beside(path)
    try:
        aside.write_text(json.dumps(finite(value), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        _sync(aside)
        aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)
    _sync(path.parent)


def sweep(run_dir: Path) -> None:
    """Remove what a killed process left half written. Only for the process that holds the run's lock.

    One that died while new best weights took the place of the old ones has left both aside, whole: either will do,
    since a resumed run meets the newer ones again.
    """
    best = run_dir / "checkpoints" / "best"
    whole = [] if best.exists() else [part for part in best.parent.glob(".best.*.part") if _state(part)]
    if whole:
        whole[0].rename(best)
    for stray in (*run_dir.glob(".*.part"), *run_dir.glob("checkpoints/.*.part"), *run_dir.glob("snapshots/.*.part")):
        shutil.rmtree(stray) if stray.is_dir() else stray.unlink()


class Checkpoints:
    """checkpoints/step-00000100/ with tensors, state and a manifest of sums; the last `keep` are kept.

    checkpoints/best/ holds the weights of the lowest validation loss, in stages that have one, whatever else goes.
    All ranks of a run come with whole tensors, rank 0 writes: the files are the same whatever the number of ranks.
    """

    def __init__(self, run_dir: Path, fence: Callable[[], None] = lambda: None, keep: int = 2) -> None:
        self.folder, self.fence, self.keep = run_dir / "checkpoints", fence, keep
        self.best = _state(self.folder / "best")  # {"step", "loss"} or None

    def due(self, step: int, every: int) -> bool:
        """After every `every` steps, and once early: a run that dies young has something to go on from."""
        return step % every == 0 or step == min(10, every)

    def save(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        self._write(f"step-{step:08d}", tensors, {"step": step, **state})
        if parallel.rank():
            return
        steps = self._all()
        here = steps.index(self.folder / f"step-{step:08d}")
        # What stands after this step was passed over by latest(): it is torn.
        for other in (*steps[: max(0, here + 1 - self.keep)], *steps[here + 1 :]):
            shutil.rmtree(other)

    def latest(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """The newest whole checkpoint as (step, tensors, state); torn ones are passed over."""
        for folder in reversed(self._all()):
            if state := _state(folder):
                return state["step"], load_file(folder / "tensors.safetensors"), state
        return None

    def keep_best(self, step: int, loss: float, model: nn.Module) -> None:
        """Keep these weights if no step before had so low a loss; a resumed run meets the same losses again.

        A loss that is no number is never the best: no later one would be lower.
        """
        if loss < (math.inf if self.best is None else self.best["loss"]):
            self.best = {"step": step, "loss": loss}
            weights = {name: parallel.whole(tensor) for name, tensor in model.state_dict().items()}
            self._write("best", weights, self.best)

    def load_best(self, model: nn.Module) -> int:
        """Put the weights of the lowest validation loss into the model; returns their step."""
        if self.best is None:
            raise TrainingError("save_best is on and 0 validations were made: give validation rows or turn it off.")
        with parallel.first():  # rank 0 may still be writing it
            weights = load_file(self.folder / "best" / "tensors.safetensors")
        parallel.load(model, weights)
        return int(self.best["step"])

    def about(self, step: int) -> dict[str, Any]:
        """For the result: which step the model is from, and which was the best."""
        best = {"best_step": self.best["step"], "best_val_loss": self.best["loss"]} if self.best else {}
        return {"model_step": step, **best}

    def _write(self, name: str, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        self.fence()
        if parallel.rank():
            return
        with atomic_dir(self.folder / name) as folder:
            save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, folder / "tensors.safetensors")
            (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
            sums = {file.name: _sha256(file) for file in sorted(folder.iterdir())}
            (folder / "manifest.json").write_text(json.dumps(sums), encoding="utf-8")

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def _state(folder: Path) -> dict[str, Any] | None:
    """A checkpoint's state, or None where it is torn: a file is missing or its sum is another."""
    with contextlib.suppress(OSError, ValueError):
        sums = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if all(_sha256(folder / name) == expected for name, expected in sums.items()):
            return dict(json.loads((folder / "state.json").read_text(encoding="utf-8")))
    return None


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
