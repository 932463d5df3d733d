"""manage.py import_model: a Hugging Face folder becomes a numbered model; one that cannot be read leaves nothing."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from django.core.management import CommandError, call_command

from accounts.models import Project
from registry.models import ModelVersion
from tests.training import tiny
from training import checkpoint
from workers.prepare import digest_of


def _import(folder: Path, project: str = "plaza") -> dict[str, Any]:
    out = StringIO()
    call_command("import_model", str(folder), project=project, json=True, stdout=out, stderr=StringIO())
    return dict(json.loads(out.getvalue()))


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A GPT-2 folder as `transformers` leaves it: weights, config and tokenizer, no card."""
    tokenizer = tiny.make_tokenizer()
    tiny.save(tmp_path / "their-gpt2", tiny.make_model(tokenizer), tokenizer, "base")
    (tmp_path / "their-gpt2" / "bucle.json").unlink()
    return tmp_path / "their-gpt2"


def test_a_plain_folder_becomes_base_1_and_2(project: Project, artifacts: Path, plain: Path) -> None:
    said = _import(plain)
    version = ModelVersion.objects.get()
    assert (said["model"], version.name, version.kind) == ("base-1", "base-1", "base")
    assert said["sha256"] == version.sha256 == digest_of(version.folder)
    assert version.folder.is_relative_to(artifacts)
    model, _, card = checkpoint.load_model(version.folder)
    assert version.parameters == said["parameters"] == card["parameters"] == sum(p.numel() for p in model.parameters())
    assert (card["stage"], card["imported_from"]) == ("import", "their-gpt2")
    ours, theirs = model.state_dict(), checkpoint.load_model(plain)[0].state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert _import(plain)["model"] == "base-2"


def test_a_sequence_classifier_becomes_a_reward_model(project: Project, artifacts: Path, tmp_path: Path) -> None:
    tokenizer = tiny.make_tokenizer()
    tiny.save(tmp_path / "scorer", tiny.make_reward_model(tokenizer), tokenizer, "reward", reward_std=2.5)
    with_card = _import(tmp_path / "scorer")
    (tmp_path / "scorer" / "bucle.json").unlink()
    assert (with_card["model"], _import(tmp_path / "scorer")["model"]) == ("reward-1", "reward-2")
    _, _, card = checkpoint.load_reward_model(ModelVersion.objects.get(number=1).folder)
    assert card["reward_std"] == 2.5


@pytest.mark.parametrize(
    ("breakage", "sentence"),
    [("config.json", "There is no model at"), ("tokenizer.json", "holds no tokenizer"), ("", "is damaged")],
)
def test_a_folder_that_cannot_be_read_leaves_nothing(
    breakage: str, sentence: str, project: Project, artifacts: Path, plain: Path
) -> None:
    if breakage:
        (plain / breakage).unlink()
    else:
        (plain / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(CommandError, match=sentence):
        _import(plain)
    assert not ModelVersion.objects.exists()
    assert not [file for file in artifacts.rglob("*") if file.is_file()]


def test_an_unknown_project_is_named(project: Project, plain: Path) -> None:
    with pytest.raises(CommandError, match="There is no project 'nowhere'"):
        _import(plain, "nowhere")
