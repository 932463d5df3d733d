"""Files coming in: into artifacts of the test's own."""

import json
from pathlib import Path
from typing import Any

import pytest

from accounts.models import Project
from labeling.imports import import_file
from registry.models import Dataset


@pytest.fixture
def artifacts(settings: Any, tmp_path: Path) -> Path:
    settings.ARTIFACTS = tmp_path / "artifacts"
    return settings.ARTIFACTS


@pytest.fixture
def bring(project: Project, artifacts: Path, tmp_path: Path):
    """bring(kind, rows or bytes) -> the dataset."""

    def _bring(kind: str, content: Any, name: str = "rows.jsonl", **options: Any) -> Dataset:
        path = tmp_path / "incoming"
        path.write_bytes(content if isinstance(content, bytes) else _jsonl(content))
        return import_file(**{"project": project, "kind": kind, "path": path, "name": name, **options})

    return _bring


def _jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
