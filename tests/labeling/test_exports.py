"""What leaves the project: every judgement as it was made, and nothing that is held out."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounts.models import Project, User
from labeling import exports
from labeling.errors import LabelingError
from labeling.exports import (
    freeze,
    freeze_demonstrations,
    freeze_prompts,
    freeze_rankings,
    pairs,
    ranking_row,
    write_rows,
)
from labeling.imports import import_file
from labeling.models import Demonstration, Ranking, Task
from tests.make import ids, make_model, make_prompt, make_task


def _rank(task: Task, tiers: list[list[int]], **changes: Any) -> Ranking:
    """Tiers by position."""
    pks = ids(task)
    named = [[pks[place] for place in tier] for tier in tiers]
    return Ranking.objects.create(project=task.project, task=task, tiers=named, **changes)


def _written(project: Project, kind: str, format: str = "jsonl") -> list[dict[str, Any]]:
    out = StringIO()
    count = write_rows(project, kind, format, out)
    rows = [json.loads(line) for line in out.getvalue().split("\n") if line]
    assert len(rows) == count
    return rows


@pytest.fixture
def mixed(project: Project) -> Project:
    """A demonstration and a ranking of a training prompt, and both of a held-out one."""
    for split in ("train", "holdout"):
        prompt = make_prompt(project, f"{split}?", split)
        Demonstration.objects.create(project=project, prompt=prompt, response=f"{split}!")
        _rank(make_task(project, [f"{split} a", f"{split} b"], prompt=prompt), [[0], [1]])
    return project


@pytest.mark.parametrize("kind", exports.KINDS)
@pytest.mark.parametrize("format", exports.FORMATS)
def test_nothing_held_out_leaves_unmarked(mixed: Project, kind: str, format: str) -> None:
    if (kind, format) == ("rankings", "trl"):
        return
    rows = _written(mixed, kind, format)
    assert any("train" in json.dumps(row) for row in rows)
    assert not [row for row in rows if "holdout" in json.dumps(row) and row.get("split") != "holdout"]


def test_nothing_held_out_is_frozen_for_training(mixed: Project, artifacts: Path) -> None:
    frozen = [
        freeze_demonstrations(mixed), freeze_prompts(mixed, "train"),
        freeze_rankings(mixed, validation=False), freeze_rankings(mixed, validation=True),
    ]  # fmt: skip
    assert all("holdout" not in dataset.file.read_text() for dataset in frozen)
    assert sum(dataset.rows for dataset in frozen) == 3


def test_another_projects_rows_stay_there(mixed: Project, other_project: Project) -> None:
    assert all(_written(other_project, kind) == [] for kind in exports.KINDS)


def test_a_ranking_goes_out_with_its_ties(project: Project) -> None:
    ranking = _rank(make_task(project, ["a", "b", "c", "d"]), [[2], [0, 3], [1]], none_good=True)
    row = ranking_row(ranking)
    assert row["responses"] == ["c", "a", "d", "b"]
    assert row["ranking"] == [0, [1, 2], 3]
    assert (row["none_good"], row["id"]) == (True, ranking.pk)
    assert "id" not in _written(project, "rankings")[0]


def test_a_ranking_says_who_judged_and_what_wrote(project: Project, bob: User) -> None:
    task = make_task(project, ["a", "b", "a"])
    policy = make_model(project, "policy", 3)
    task.completions.filter(position=1).update(model=policy)
    row = ranking_row(_rank(task, [[1], [0], [2]], annotator=bob))
    assert (row["responses"], row["policies"]) == (["b", "a"], [policy.name, ""])
    assert row["annotator"] == f"person-{bob.pk}"
    assert bob.username not in json.dumps(row)
    nameless = ranking_row(_rank(make_task(project, ["a", "b"]), [[0], [1]]))
    assert not {"annotator", "policies"} & set(nameless)


def test_what_goes_out_comes_in_the_same(project: Project, other_project: Project, bob: User, tmp_path: Path) -> None:
    task = make_task(project, ["a", "b", "c"])
    task.completions.update(model=make_model(project, "sft", 1))
    _rank(task, [[2], [0, 1]], annotator=bob, none_good=True)
    rows = _written(project, "rankings")
    file = tmp_path / "rankings.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    import_file(project=other_project, kind="rankings", path=file, name=file.name)
    assert _written(other_project, "rankings") == rows
    assert {"annotator", "policies", "none_good"} < set(rows[0])


def test_equal_texts_are_one_response_at_its_best_place(project: Project) -> None:
    row = ranking_row(_rank(make_task(project, ["a", "b", "a"]), [[0], [1], [2]]))
    assert (row["responses"], row["ranking"]) == (["a", "b"], [0, 1])
    assert row.get("none_good") is None


def test_a_ranking_of_one_text_only_is_no_row(project: Project, artifacts: Path) -> None:
    _rank(make_task(project, ["a", "a"]), [[0], [1]])
    assert _written(project, "rankings") == []
    assert freeze_rankings(project, validation=False).rows + freeze_rankings(project, validation=True).rows == 0


@given(st.permutations(range(5)), st.lists(st.integers(1, 3), min_size=5, max_size=5))
def test_pairs_are_all_untied_ones_best_first(order: list[int], sizes: list[int]) -> None:
    tiers, rest = [], list(order)
    for size in sizes:
        if rest:
            tiers.append([rest.pop(0) for _ in range(min(size, len(rest)))])
    row = {
        "prompt": "p",
        "responses": [str(n) for n in range(5)],
        "ranking": [t if len(t) > 1 else t[0] for t in tiers],
    }
    place = {str(n): rank for rank, tier in enumerate(tiers) for n in tier}
    found = list(pairs(row))
    assert all(place[pair["chosen"]] < place[pair["rejected"]] for pair in found)
    assert len({(p["chosen"], p["rejected"]) for p in found}) == len(found)
    tied = sum(len(tier) * (len(tier) - 1) // 2 for tier in tiers)
    assert len(found) == 10 - tied


def test_trl_layouts(mixed: Project) -> None:
    assert _written(mixed, "prompts", "trl") == [{"prompt": [{"role": "user", "content": "train?"}]}]
    assert _written(mixed, "demonstrations", "trl")[0]["messages"][1] == {"role": "assistant", "content": "train!"}
    assert _written(mixed, "preferences", "trl")[0]["rejected"] == [{"role": "assistant", "content": "train b"}]


@pytest.mark.parametrize(("kind", "format"), [("rankings", "trl"), ("prompts", "csv"), ("poems", "jsonl")])
def test_what_cannot_be_written_is_said(project: Project, kind: str, format: str) -> None:
    with pytest.raises(LabelingError):
        write_rows(project, kind, format, StringIO())


def test_freezing_the_same_rows_again_writes_nothing_new(project: Project, artifacts: Path) -> None:
    rows = [{"prompt": "¿Qué?\u2028"}]
    first = freeze(project, "prompts", rows, {})
    stamp = first.file.stat()
    again = freeze(project, "prompts", rows, {})
    assert (again.path, again.sha256) == (first.path, first.sha256)
    assert (again.file.stat().st_ino, again.file.stat().st_mtime_ns) == (stamp.st_ino, stamp.st_mtime_ns)
    assert [f.name for f in artifacts.rglob("*") if f.is_file()] == ["prompts.jsonl"]
    assert freeze(project, "prompts", [*rows, {"prompt": "b"}], {}).path != first.path


def test_a_frozen_dataset_lists_what_is_in_it(project: Project, artifacts: Path) -> None:
    made = [_rank(make_task(project), [[0], [1], [2], [3]]) for _ in range(3)]
    parts = [freeze_rankings(project, validation=v) for v in (False, True)]
    assert sorted(pk for part in parts for pk in part.manifest["rankings"]) == [r.pk for r in made]
    for part in parts:
        assert part.bytes == part.file.stat().st_size
        assert [json.loads(line)["id"] for line in part.file.open()] == part.manifest["rankings"]
