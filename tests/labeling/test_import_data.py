"""manage.py import_data: what it says, and how it ends."""

import json
import os
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core.management import CommandError, call_command

from accounts.models import Project
from labeling.models import Demonstration, Prompt
from registry.models import Dataset


@pytest.fixture(autouse=True)
def _own_artifacts(settings: Any, tmp_path: Path):
    settings.ARTIFACTS = tmp_path / "artifacts"


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.jsonl"
    path.write_text('{"instruction": "Hola", "response": "¡Hola!"}\n', "utf-8")
    return path


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"instruction": "Hola", "answer": "¡Hola!"}\n', "utf-8")
    return path


def _run(*files: Path, kind: str = "demonstrations", project: str = "plaza", **options: Any) -> str:
    out = StringIO()
    call_command("import_data", *map(str, files), kind=kind, project=project, stdout=out, **options)
    return out.getvalue()


def test_says_what_became_of_the_rows(project: Project, good: Path):
    assert _run(good) == "good.jsonl: lines: 1 · imported: 1 · new prompts: 1\n"
    assert _run(good) == "good.jsonl: it was there already, nothing changed\n"
    assert Demonstration.objects.count() == 1


def test_reports_every_file_as_json(project: Project, good: Path, tmp_path: Path):
    text = tmp_path / "a.txt"
    text.write_text("hola\n")
    said = json.loads(_run(text, kind="corpus", weight=2, documents="lines", json=True))
    made = Dataset.objects.get()
    assert (said["project"], said["kind"], made.weight) == ("plaza", "corpus", 2)
    assert said["files"][0]["sha256"] == made.sha256
    assert said["files"][0]["manifest"]["documents"] == "lines"
    again = json.loads(_run(text, kind="corpus", json=True))
    assert [file["new"] for file in again["files"]] == [False]


def test_good_files_come_in_beside_a_bad_one(project: Project, good: Path, bad: Path):
    out = StringIO()
    with pytest.raises(CommandError) as caught:
        call_command("import_data", str(bad), str(good), kind="demonstrations", project="plaza", json=True, stdout=out)
    reason = "bad.jsonl line 1: 'response' is missing (fields: instruction, answer)."
    assert str(caught.value) == reason
    files = json.loads(out.getvalue())["files"]
    assert files[0] == {"file": str(bad), "error": reason}
    assert files[1]["new"]
    assert Demonstration.objects.count() == 1


def test_unknown_fields_can_be_ignored(project: Project, tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a", "mood": 1}')
    with pytest.raises(CommandError, match="'mood' is not known"):
        _run(path, kind="prompts")
    _run(path, kind="prompts", ignore_unknown=True, split="holdout")
    assert Prompt.objects.get().split == "holdout"


def test_a_missing_project_is_made_on_request(db: None, good: Path):
    with pytest.raises(CommandError, match=r"There is no project 'plaza'.*--create"):
        _run(good)
    _run(good, create=True)
    assert Project.objects.get().slug == "plaza"


def test_from_the_shell_an_error_is_one_line_and_exit_code_1(tmp_path: Path, bad: Path):
    env = {**os.environ, "BUCLE_HOME": str(tmp_path / "home"), "LOG_LEVEL": "WARNING", "DATABASE_URL": ""}
    manage = [sys.executable, str(django_settings.BASE_DIR / "manage.py")]
    subprocess.run([*manage, "migrate", "-v0"], env=env, check=True)
    ended = subprocess.run(
        [*manage, "import_data", "--project", "plaza", "--create", "--kind", "demonstrations", str(bad)],
        env=env,
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert "bad.jsonl line 1: 'response' is missing" in ended.stderr
    assert not [f for f in (tmp_path / "home" / "artifacts").rglob("*") if f.is_file()]
