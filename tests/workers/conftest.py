"""Tiny real models in the registry, and artifacts of the test's own."""

from pathlib import Path
from typing import Any

import pytest
import torch

from accounts.models import Project
from registry.models import ModelVersion
from tests.make import make_model
from tests.training import tiny

torch.set_num_threads(1)


@pytest.fixture
def artifacts(settings: Any, tmp_path: Path) -> Path:
    settings.ARTIFACTS = tmp_path / "artifacts"
    settings.ARTIFACTS.mkdir()
    return settings.ARTIFACTS


@pytest.fixture
def writer(project: Project, artifacts: Path) -> ModelVersion:
    """A model with random weights that can be loaded and written with."""
    version = make_model(project, "sft", parameters=1)
    tokenizer = tiny.make_tokenizer()
    tiny.save(version.folder, tiny.make_model(tokenizer), tokenizer, "sft")
    return version
