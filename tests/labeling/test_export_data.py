"""manage.py export_data: the whole file or none, and it comes in again."""

import gzip
import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from accounts.models import Project
from labeling.errors import LabelingError
from labeling.imports import import_file
from labeling.management.commands import export_data

ROWS = {
    "prompts": [{"prompt": "¿Qué?"}, {"prompt": "uno\ndos"}],
    "demonstrations": [{"instruction": "¿Qué?", "response": "Nada.\u2028"}],
    "preferences": [{"prompt": "¿Qué?", "chosen": "sí", "rejected": "no"}],
    "rankings": [{"prompt": "¿Qué?", "responses": ["a", "b", "c"], "ranking": [0, [1, 2]]}],
}


@pytest.fixture(autouse=True)
def _own_artifacts(settings: Any, tmp_path: Path):
    settings.ARTIFACTS = tmp_path / "artifacts"


def _fill(project: Project, kind: str, folder: Path) -> None:
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[kind]))
    import_file(project=project, kind=kind, path=path, name=path.name)


def _run(out: Path | str, kind: str = "prompts", project: str = "plaza", **options: Any) -> str:
    said = StringIO()
    call_command("export_data", kind=kind, project=project, out=str(out), stdout=said, **options)
    return said.getvalue()


def _rows(content: str) -> list[Any]:
    return [json.loads(line) for line in content.split("\n") if line]


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_what_goes_out_comes_into_another_project(
    project: Project, other_project: Project, tmp_path: Path, kind: str, suffix: str
):
    _fill(project, kind, tmp_path)
    out = tmp_path / f"out{suffix}"
    assert _run(out, kind) == f"{out}: {len(ROWS[kind])} rows\n"
    call_command("import_data", str(out), project="puerto", kind=kind, stdout=StringIO())
    assert _rows(_run("-", kind, project="puerto")) == _rows(_run("-", kind)) == ROWS[kind]


def test_packed_files_are_the_same_every_time(project: Project, tmp_path: Path):
    _fill(project, "prompts", tmp_path)
    one, two = tmp_path / "1.jsonl.gz", tmp_path / "2.jsonl.gz"
    _run(one)
    _run(two)
    assert one.read_bytes() == two.read_bytes()
    assert _rows(gzip.decompress(one.read_bytes()).decode()) == ROWS["prompts"]


def test_standard_output_holds_the_rows_and_nothing_else(project: Project, tmp_path: Path):
    _fill(project, "prompts", tmp_path)
    assert _run("-") == '{"prompt": "¿Qué?"}\n{"prompt": "uno\\ndos"}\n'
    with pytest.raises(CommandError, match="name a file"):
        _run("-", json=True)


def test_trl_and_json_report(project: Project, tmp_path: Path):
    _fill(project, "preferences", tmp_path)
    out = tmp_path / "out.jsonl"
    said = json.loads(_run(out, "preferences", format="trl", json=True))
    assert said == {"project": "plaza", "kind": "preferences", "format": "trl", "rows": 1, "out": str(out)}
    assert json.loads(out.read_text())["chosen"] == [{"role": "assistant", "content": "sí"}]


def test_a_failed_export_keeps_what_stood_there(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out.jsonl"
    out.write_text("before")

    def broken(project: Project, kind: str, format: str, stream: Any) -> int:
        stream.write("half a ")
        raise LabelingError("Not today.")

    monkeypatch.setattr(export_data, "write_rows", broken)
    with pytest.raises(CommandError, match=r"^Not today\.$"):
        _run(out)
    assert out.read_text() == "before"
    assert [f.name for f in tmp_path.iterdir() if f.is_file()] == ["out.jsonl"]


def test_places_that_take_no_file_are_named(project: Project, tmp_path: Path):
    for out in (tmp_path, Path("/dev/null")):
        with pytest.raises(CommandError, match="is not a file"):
            _run(out)
    with pytest.raises(CommandError, match="There is no folder"):
        _run(tmp_path / "nowhere" / "out.jsonl")
    with pytest.raises(CommandError, match="There is no project 'plazza'"):
        _run(tmp_path / "out.jsonl", project="plazza")


def test_a_link_is_followed(project: Project, tmp_path: Path):
    _fill(project, "prompts", tmp_path)
    target, link = tmp_path / "target.jsonl", tmp_path / "link.jsonl"
    link.symlink_to(target)
    _run(link)
    assert link.is_symlink()
    assert _rows(target.read_text()) == ROWS["prompts"]
