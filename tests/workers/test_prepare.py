"""A run directory holds all that its stage needs, by relative paths, and nothing that the stage does not know."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from accounts.models import Project
from labeling.models import Demonstration, Ranking
from registry.models import Dataset, ModelVersion, Run
from registry.services import RegistryError
from tests.make import ids, make_model, make_prompt, make_run, make_task
from training.config import STAGES
from training.parse import parse
from workers.prepare import artifact_of, digest_of, prepare


@pytest.fixture
def models(project: Project, artifacts: Path) -> dict[str, ModelVersion]:
    made = {kind: make_model(project, kind) for kind in ModelVersion.Kind.values}
    for model in made.values():
        model.folder.mkdir(parents=True)
    return made


@pytest.fixture
def filled(project: Project, artifacts: Path) -> Project:
    for n in range(30):
        task = make_task(project, [f"a{n}", f"b{n}"])
        Ranking.objects.create(project=project, task=task, tiers=[[pk] for pk in ids(task)])
    Demonstration.objects.create(project=project, prompt=make_prompt(project), response="Sí.")
    make_prompt(project, "¿Secreto?", "holdout")
    return project


def _corpus(project: Project, artifacts: Path, name: str = "town.txt", **changes: Any) -> Dataset:
    (artifacts / name).write_text("El pan sube.\n")
    return Dataset.objects.create(project=project, kind="corpus", name=name, path=name, sha256="0", **changes)


def _config(run: Run) -> dict[str, Any]:
    return dict(json.loads((prepare(run) / "config.json").read_text()))


@pytest.mark.parametrize(
    ("stage", "inputs"),
    [
        ("sft", {"base": "base"}),
        ("reward", {"base": "sft"}),
        ("ppo", {"base": "sft", "reward_model": "reward"}),
        ("dpo", {"base": "sft"}),
        ("grpo", {"base": "sft", "reward_model": "reward"}),
        ("rejection", {"base": "sft", "reward_model": "reward"}),
        ("best_of_n", {"base": "sft", "reward_model": "reward"}),
        ("evaluate", {"base": "policy", "reference": "sft", "reward_model": "reward"}),
    ],
)
def test_config_has_the_stages_own_keys_and_files_that_are_there(
    filled: Project, models: dict[str, ModelVersion], stage: str, inputs: dict[str, str]
) -> None:
    run = make_run(filled, stage, config={"seed": 5}, **{name: models[kind] for name, kind in inputs.items()})
    config = _config(run)
    assert set(config) <= {field.name for field in dataclasses.fields(STAGES[stage])}
    assert parse(stage, config).seed == 5
    files = [value for value in config.values() if isinstance(value, str)]
    assert len(files) >= 2
    for file in files:
        assert not Path(file).is_absolute()
        assert (run.directory / file).exists()
    if stage == "evaluate":
        assert (run.directory / config["new"]).resolve() == models["policy"].folder.resolve()
        assert (run.directory / config["old"]).resolve() == models["sft"].folder.resolve()
        assert "¿Secreto?" in (run.directory / config["prompts"]).read_text()


def test_text_stages_name_their_files_weights_and_documents(
    project: Project, artifacts: Path, models: dict[str, ModelVersion]
) -> None:
    one = _corpus(project, artifacts)
    two = _corpus(project, artifacts, "tales.txt", weight=2.5, manifest={"documents": "paragraphs"})
    run = make_run(project, "pretrain", tokenizer=models["tokenizer"])
    run.datasets.set([one, two])
    config = _config(run)
    assert config["sources"] == [
        {"path": f"data/{one.pk}-town.txt", "weight": 1.0, "documents": "file"},
        {"path": f"data/{two.pk}-tales.txt", "weight": 2.5, "documents": "paragraphs"},
    ]
    assert "base" not in config
    assert parse("pretrain", config)
    learn = make_run(project, "tokenizer", config={"vocab_size": 300})
    learn.datasets.set([one])
    assert _config(learn) == {"vocab_size": 300, "files": [f"data/{one.pk}-town.txt"]}
    named = make_run(project, "tokenizer", config={"encoding": "gpt2"})
    assert _config(named) == {"encoding": "gpt2", "files": []}


def test_two_files_of_one_name_do_not_meet(project: Project, artifacts: Path) -> None:
    (artifacts / "other").mkdir()
    run = make_run(project, "tokenizer")
    run.datasets.set([_corpus(project, artifacts), _corpus(project, artifacts, "other/town.txt")])
    files = _config(run)["files"]
    assert len(set(files)) == 2


def test_ppos_judge_is_a_second_reward_model(filled: Project, models: dict[str, ModelVersion]) -> None:
    judge = make_model(filled, "reward", 2)
    judge.folder.mkdir(parents=True)
    run = make_run(filled, "ppo", base=models["sft"], reward_model=models["reward"], reference=judge)
    config = parse("ppo", _config(run))
    assert (run.directory / config.judge_model).resolve() == judge.folder.resolve()
    assert config.judge_model != config.reward_model


def test_a_second_attempt_finds_the_same_directory_and_data(filled: Project, models: dict[str, ModelVersion]) -> None:
    run = make_run(filled, "sft", base=models["base"], attempt=1)
    first = _config(run)
    data = (run.directory / first["data"]).read_bytes()
    (run.directory / "metrics.jsonl").write_text('{"step": 1}\n')
    Demonstration.objects.create(project=filled, prompt=make_prompt(filled, "¿Nueva?"), response="Sí.")
    again = Run.objects.get(pk=run.pk)
    again.attempt = 2
    assert _config(again) == first
    assert (run.directory / first["data"]).read_bytes() == data
    assert (run.directory / "metrics.jsonl").exists()
    assert (run.directory / "attempt").read_text() == "2"


def test_a_revived_older_attempt_does_not_lower_the_fence(filled: Project, models: dict[str, ModelVersion]) -> None:
    run = make_run(filled, "sft", base=models["base"], attempt=2)
    prepare(run)
    run.attempt = 1
    prepare(run)
    assert (run.directory / "attempt").read_text() == "2"


def test_a_copy_that_was_cut_short_is_made_again(
    filled: Project, artifacts: Path, models: dict[str, ModelVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the file system has no hard links; the worker dies while it copies."""
    run = make_run(filled, "tokenizer")
    run.datasets.set([corpus := _corpus(filled, artifacts)])
    whole = shutil.copyfile

    def half(source: Path, target: Path) -> None:
        Path(target).write_bytes(Path(source).read_bytes()[:4])
        raise SystemExit

    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError))
    monkeypatch.setattr(shutil, "copyfile", half)
    with pytest.raises(SystemExit):
        prepare(run)
    monkeypatch.setattr(shutil, "copyfile", whole)
    (name,) = _config(run)["files"]
    assert (run.directory / name).read_bytes() == corpus.file.read_bytes()


def test_files_that_are_gone_are_named_with_the_next_step(
    filled: Project, artifacts: Path, models: dict[str, ModelVersion]
) -> None:
    models["base"].folder.rmdir()
    with pytest.raises(RegistryError, match="files of model base-1 are missing: restore"):
        prepare(make_run(filled, "sft", base=models["base"]))
    corpus = _corpus(filled, artifacts)
    run = make_run(filled, "tokenizer")
    run.datasets.set([corpus])
    corpus.file.unlink()
    with pytest.raises(RegistryError, match=r"file of dataset 'town\.txt' is missing"):
        prepare(run)
    with pytest.raises(RegistryError, match="files of model one are missing"):
        prepare(make_run(filled, "pretrain"))


def test_the_artifact_is_what_the_stage_left(project: Project, writer: ModelVersion) -> None:
    run = make_run(project, "sft", base=writer)
    model = run.directory / "model"
    model.parent.mkdir(parents=True)
    model.symlink_to(writer.folder)
    made = artifact_of(run)
    assert made is not None
    assert (made["kind"], made["path"], made["parent"]) == ("sft", f"{run.path}/model", writer)
    assert made["sha256"] == digest_of(writer.folder)
    assert artifact_of(make_run(project, "evaluate")) is None


def test_a_digest_changes_with_every_name_and_byte(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    first = digest_of(tmp_path)
    assert digest_of(tmp_path) == first
    (tmp_path / "b").write_text("3")
    second = digest_of(tmp_path)
    (tmp_path / "b").rename(tmp_path / "c")
    assert len({first, second, digest_of(tmp_path)}) == 3
