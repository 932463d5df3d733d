"""All of a file or nothing, and each file once."""

import gzip
import hashlib
import json
import os
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from django.utils import translation
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounts.models import Project, User
from labeling import imports
from labeling.imports import ImportFailed, import_or_find
from labeling.models import Completion, Demonstration, Prompt, Ranking, Slot, Task
from registry.models import Dataset


@pytest.fixture(autouse=True)
def _in_english():
    with translation.override("en"):
        yield


def _jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _demonstration(n: int = 0, **changes: Any) -> dict[str, Any]:
    return {"instruction": f"¿Cuánto es {n}?", "response": f"Es {n}.", **changes}


def _ranking(n: int = 0, **changes: Any) -> dict[str, Any]:
    return {"prompt": f"¿{n}?", "responses": ["a", "b", "c"], "ranking": [2, [0, 1]], **changes}


def _everything(artifacts: Path) -> list[Any]:
    """What an import could leave behind."""
    models = (Dataset, Prompt, Task, Slot, Completion, Demonstration, Ranking)
    return [*(model.objects.count() for model in models), *(f for f in artifacts.rglob("*") if f.is_file())]


def test_a_corpus_is_stored_normalised(bring: Any, alice: User, artifacts: Path):
    made = bring(
        "corpus", b"\xef\xbb\xbfHab\xc3\xada\r\nuna vez\n", "cuento 1.txt", by=alice, weight=2.5, documents="lines"
    )
    content = "Había\nuna vez\n".encode()
    assert made.file.read_bytes() == content
    assert made.sha256 == hashlib.sha256(content).hexdigest()
    assert made.path == f"projects/{made.project_id}/datasets/{made.sha256[:12]}/cuento_1.txt"
    assert (made.kind, made.name, made.rows, made.bytes, made.weight) == ("corpus", "cuento 1.txt", 2, 15, 2.5)
    assert (made.manifest["documents"], made.manifest["characters"], made.created_by) == ("lines", 14, alice)
    assert made.file.stat().st_mode & 0o777 == 0o644
    assert [f for f in artifacts.rglob("*") if f.is_file()] == [made.file]


def test_a_packed_corpus_is_stored_unpacked(bring: Any):
    made = bring("corpus", gzip.compress(b"hola"), "a.txt.gz")
    assert (made.file.name, made.file.read_bytes(), made.rows) == ("a.txt", b"hola", 1)


def test_the_same_file_twice_changes_nothing(bring: Any, artifacts: Path, project: Project, tmp_path: Path):
    for kind, rows in (
        ("demonstrations", [_demonstration()]),
        ("rankings", [_ranking()]),
        ("prompts", [{"prompt": "a"}]),
    ):
        first = bring(kind, rows)
        before = _everything(artifacts)
        packed = gzip.compress(_jsonl(rows))
        (tmp_path / "again").write_bytes(packed)
        again, made = import_or_find(
            project=project, kind=kind, path=tmp_path / "again", name="b.jsonl.gz", split="holdout"
        )
        assert (again, made) == (first, False)
        assert _everything(artifacts) == before


def test_a_lost_file_comes_back_with_the_same_import(bring: Any):
    made = bring("corpus", b"hola", "a.txt")
    made.file.unlink()
    bring("corpus", b"hola", "a.txt")
    assert made.file.read_bytes() == b"hola"


BROKEN = {
    "row": ("demonstrations", _jsonl([_demonstration()] * 700) + b'{"instruction": "a", "answer": "b"}\n', "rows.jsonl",
            "rows.jsonl line 701: 'response' is missing (fields: instruction, answer)."),
    "json": ("prompts", b'{"prompt": "a"}\n\n{"prompt\n', "p.jsonl", "p.jsonl line 3: it is not JSON"),
    "unknown": ("prompts", b'{"prompt": "a", "promt": "b"}', "p.jsonl", "the nearest known one is 'prompt'"),
    "k": ("rankings", _jsonl([_ranking(responses=["a"], ranking=[0])]), "r.jsonl", "needs at least 2"),
    "permutation": ("rankings", _jsonl([_ranking(), _ranking(ranking=[0, 1])]), "r.jsonl",
                    "r.jsonl line 2: 'ranking' leaves out response 2 of 3."),
    "empty": ("rankings", b"", "r.jsonl", "r.jsonl: it is empty"),
    "blank": ("rankings", b"\r\n \n", "r.jsonl", "r.jsonl: it is empty"),
    "empty corpus": ("corpus", b"\xef\xbb\xbf", "c.txt", "c.txt: it is empty"),
    "blank corpus": ("corpus", b" \n\n", "c.txt", "c.txt: it is empty"),
    "encoding": ("corpus", "año\nniño".encode("latin-1"), "c.txt", "c.txt line 1: byte 1 (0xF1) is not UTF-8"),
    "gzip": ("corpus", gzip.compress(b"hola" * 100)[:-4], "c.txt.gz", "damaged or cut off"),
    "long": ("prompts", b'{"prompt": "' + b"a" * 1_000_001 + b'"}', "p.jsonl", "longer than 1000000 characters"),
    "suffix": ("demonstrations", b"{}", "d.csv", "a file of kind demonstrations is named .jsonl, .jsonl.gz"),
    "corpus suffix": ("corpus", b"{}", "d.jsonl", "is named .txt, .txt.gz"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_leaves_nothing_behind(bring: Any, artifacts: Path, case: str):
    kind, content, name, reason = BROKEN[case]
    with pytest.raises(ImportFailed) as caught:
        bring(kind, content, name)
    assert reason in str(caught.value)
    assert _everything(artifacts) == [0] * 7


@pytest.mark.parametrize(
    "options", [{"kind": "csv"}, {"split": "test"}, {"documents": "pages"}, {"weight": 0}, {"weight": float("nan")}]
)
def test_unknown_options_are_refused(bring: Any, artifacts: Path, options: dict[str, Any]):
    with pytest.raises(ImportFailed, match="choose"):
        bring(**{"kind": "corpus", "content": b"hola", "name": "a.txt", **options})
    assert _everything(artifacts) == [0] * 7


def test_a_failure_in_the_database_leaves_nothing_behind(bring: Any, artifacts: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("the database is gone")

    monkeypatch.setattr(Demonstration.objects, "bulk_create", fail)
    with pytest.raises(RuntimeError):
        bring("demonstrations", [_demonstration()])
    assert _everything(artifacts) == [0] * 7


def test_a_full_disk_is_one_sentence(bring: Any, artifacts: Path, monkeypatch: pytest.MonkeyPatch):
    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(ImportFailed, match=r"could not be stored \(No space left on device\)"):
        bring("demonstrations", [_demonstration()])
    assert _everything(artifacts) == [0] * 7


def test_a_bomb_is_stopped(bring: Any, artifacts: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(imports, "MOST_CORPUS_BYTES", 1_000_000)
    with pytest.raises(ImportFailed, match="larger than 1 MB"):
        bring("corpus", gzip.compress(b"a" * 3_000_000), "a.txt.gz")
    monkeypatch.setattr(imports, "MOST_ROWS", 3)
    with pytest.raises(ImportFailed, match="more than 3 rows"):
        bring("prompts", b"a\nb\nc\nd\n", "a.txt")
    assert _everything(artifacts) == [0] * 7


def test_copies_of_killed_imports_are_swept(bring: Any, artifacts: Path, project: Project):
    folder = artifacts / f"projects/{project.pk}/datasets"
    folder.mkdir(parents=True)
    old, fresh = folder / ".incoming-old", folder / ".incoming-fresh"
    for aside in (old, fresh):
        aside.touch()
    os.utime(old, (0, time.time() - 100_000))
    bring("corpus", b"hola", "a.txt")
    assert (old.exists(), fresh.exists()) == (False, True)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd.txt", "...txt", "a/b\\c \u202e\udc80.txt", "x" * 400 + ".txt", "é.TXT.gz"]
)
def test_a_strange_name_stays_in_its_folder(bring: Any, artifacts: Path, name: str):
    content = gzip.compress(b"hola") if name.endswith(".gz") else b"hola"
    made = bring("corpus", content, name)
    made.refresh_from_db()
    assert made.file.resolve().parent.parent.parent.parent.parent == artifacts.resolve()
    assert made.file.is_file()
    assert made.name.isprintable()


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=200), st.sampled_from(["corpus", "prompts", "demonstrations", "rankings"]), st.booleans())
def test_any_bytes_come_in_or_fail_with_one_error(bring: Any, artifacts: Path, content: bytes, kind: str, packed: bool):
    name = "a.txt" if kind in ("corpus", "prompts") else "a.jsonl"
    with suppress(ImportFailed):
        assert bring(kind, gzip.compress(content) if packed else content, name).file.is_file()


def _many(n: int) -> bytes:
    return _jsonl([_ranking(i, responses=[f"{i} {k} " + "x" * 200 for k in "abc"]) for i in range(n)])


def test_three_thousand_rows_come_in_quickly(bring: Any):
    content = _many(3000)
    begin = time.process_time()
    bring("rankings", content)
    assert time.process_time() - begin < 3
    assert Completion.objects.count() == 9000


def test_checking_takes_no_more_memory_for_a_longer_file(tmp_path: Path):
    def peak(n: int) -> int:
        path = tmp_path / "many.jsonl"
        path.write_bytes(_many(n))
        tracemalloc.start()
        with imports._staged(path, path.name, "rankings", False, tmp_path):
            _now, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(4000) < 1.3 * peak(1000)
