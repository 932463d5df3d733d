"""The checkpoints that a run resumes from, and files that are whole or not there. safetensors only."""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


@contextlib.contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Write into a folder beside `path`; it takes its place, whole and on disk, only if the block succeeds."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    aside.mkdir(parents=True)
    try:
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                _sync(file)
        if path.exists():
            shutil.rmtree(path)
        aside.rename(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_atomic(path: Path, value: dict[str, Any]) -> None:
    """One JSON file, whole or not at all."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    aside.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _sync(aside)
    aside.rename(path)
    _sync(path.parent)


class Checkpoints:
    """checkpoints/step-00000100/ with tensors, state and a manifest of sums; the last two are kept."""

    def __init__(self, run_dir: Path, fence: Callable[[], None] = lambda: None) -> None:
        self.folder, self.fence = run_dir / "checkpoints", fence

    def due(self, step: int, every: int) -> bool:
        """After every `every` steps, and once early: a run that dies young has something to go on from."""
        return step % every == 0 or step == min(10, every)

    def save(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        self.fence()
        with atomic_dir(self.folder / f"step-{step:08d}") as folder:
            save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, folder / "tensors.safetensors")
            (folder / "state.json").write_text(json.dumps({"step": step, **state}), encoding="utf-8")
            sums = {file.name: _sha256(file) for file in sorted(folder.iterdir())}
            (folder / "manifest.json").write_text(json.dumps(sums), encoding="utf-8")
        for old in self._all()[:-2]:
            shutil.rmtree(old)

    def latest(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """The newest whole checkpoint as (step, tensors, state); torn ones are passed over."""
        for folder in reversed(self._all()):
            with contextlib.suppress(OSError, ValueError, SafetensorError):
                sums = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
                if all(_sha256(folder / name) == expected for name, expected in sums.items()):
                    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
                    return state["step"], load_file(folder / "tensors.safetensors"), state
        return None

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
