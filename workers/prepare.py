"""Writing a run directory: from here on a stage needs nothing but these files."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from labeling.stages import freeze_inputs
from registry.models import Dataset, ModelVersion, Run
from registry.services import RegistryError
from training.config import STAGES

KIND_OF_RESULT = {
    Run.Stage.TOKENIZER: ModelVersion.Kind.TOKENIZER,
    Run.Stage.PRETRAIN: ModelVersion.Kind.BASE,
    Run.Stage.SFT: ModelVersion.Kind.SFT,
    Run.Stage.REWARD: ModelVersion.Kind.REWARD,
    Run.Stage.PPO: ModelVersion.Kind.POLICY,
    Run.Stage.DPO: ModelVersion.Kind.POLICY,
    Run.Stage.GRPO: ModelVersion.Kind.POLICY,
    Run.Stage.REJECTION: ModelVersion.Kind.POLICY,
}


def prepare(run: Run) -> Path:
    """The run's directory with config.json, its data and the number of this attempt; raises RegistryError."""
    directory = run.directory
    (directory / "data").mkdir(parents=True, exist_ok=True)
    config = {**run.config, **_inputs(run, directory)}
    known = {field.name for field in dataclasses.fields(STAGES[run.stage])}
    _write(directory / "config.json", json.dumps({k: v for k, v in config.items() if k in known}, indent=1))
    # The fence: a process of an older attempt reads this before it writes, and ends.
    if _newest_attempt(directory) < run.attempt:
        _write(directory / "attempt", str(run.attempt))
    return directory


def _newest_attempt(directory: Path) -> int:
    try:
        return int((directory / "attempt").read_text())
    except (FileNotFoundError, ValueError):
        return 0


def _inputs(run: Run, directory: Path) -> dict[str, Any]:
    """The settings that name files, relative to the directory, so that a home can be moved."""
    if run.stage in {Run.Stage.TOKENIZER, Run.Stage.PRETRAIN}:
        corpora = list(run.datasets.filter(kind=Dataset.Kind.CORPUS).order_by("pk"))
        files = [_place(corpus, directory, f"{corpus.pk}-{corpus.file.name}") for corpus in corpora]
        if run.stage == Run.Stage.TOKENIZER:
            return {"files": [] if run.config.get("encoding") else files}
        sources = [
            {"path": file, "weight": corpus.weight, "documents": corpus.manifest.get("documents", "file")}
            for file, corpus in zip(files, corpora, strict=True)
        ]
        base = {"base": _model(run.base, directory)} if run.base else {}
        return {"sources": sources, "tokenizer": _model(run.tokenizer, directory), **base}
    data = {
        role: _place(dataset, directory, f"{role}.jsonl") for role, dataset in freeze_inputs(run).items() if dataset
    }
    if run.stage == Run.Stage.EVALUATE:
        models = {"new": run.base, "old": run.reference, "reward_model": run.reward_model}
    else:
        models = {"base": run.base, "reward_model": run.reward_model}
        if run.stage == Run.Stage.PPO:
            models["judge_model"] = run.reference
    return {**data, **{name: _model(model, directory) for name, model in models.items() if model is not None}}


def _model(model: ModelVersion | None, directory: Path) -> str:
    if model is None or not model.folder.is_dir():
        name = model.name if model else "one"
        raise RegistryError(f"The files of model {name} are missing: restore the artifacts or choose another model.")
    return os.path.relpath(model.folder, directory)


def _place(dataset: Dataset, directory: Path, name: str) -> str:
    """A hard link where the file system allows it, else a copy: the directory stands on its own."""
    target = directory / "data" / name
    if not dataset.file.is_file():
        raise RegistryError(
            f"The file of dataset {dataset.name!r} is missing: restore the artifacts or import it again."
        )
    if not target.exists():
        with contextlib.suppress(OSError):
            os.link(dataset.file, target)
        if not target.exists():
            aside = target.with_name(f".{name}.{os.getpid()}")
            shutil.copyfile(dataset.file, aside)
            aside.replace(target)  # a worker that dies while it copies leaves no half of a dataset behind
    return f"data/{name}"


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def artifact_of(run: Run) -> dict[str, Any] | None:
    """What the registry stores of a finished run's model; None for a stage without one."""
    kind = KIND_OF_RESULT.get(Run.Stage(run.stage))
    if kind is None:
        return None
    folder = run.directory / "model"
    about = json.loads((folder / "bucle.json").read_text(encoding="utf-8"))
    return {
        "kind": kind,
        "path": f"{run.path}/model",
        "sha256": digest_of(folder),
        "parameters": int(about.get("parameters") or 0),
        "parent": run.base or run.tokenizer,
    }


def digest_of(folder: Path) -> str:
    """One sha256 for a folder: of its files' names and digests."""
    whole = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            with file.open("rb") as stream:
                whole.update(
                    f"{file.relative_to(folder)} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode()
                )
    return whole.hexdigest()
