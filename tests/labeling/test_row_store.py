"""What becomes of imported rows: prompts, tasks, demonstrations, rankings; nothing held out enters training."""

from typing import Any

import pytest
from django.utils import translation

from accounts.models import Project, User
from labeling.exports import rows as export_rows
from labeling.imports import summary
from labeling.models import Demonstration, Prompt, Ranking, Slot, Task
from registry.models import Dataset


@pytest.fixture(autouse=True)
def _in_english():
    with translation.override("en"):
        yield


def _demonstration(n: int = 0, **changes: Any) -> dict[str, Any]:
    return {"instruction": f"¿Cuánto es {n}?", "response": f"Es {n}.", **changes}


def _ranking(n: int = 0, **changes: Any) -> dict[str, Any]:
    return {"prompt": f"¿{n}?", "responses": ["a", "b", "c"], "ranking": [2, [0, 1]], **changes}


def _texts(ranking: Ranking) -> list[list[str]]:
    text_of = {c.pk: c.text for c in ranking.task.completions.all()}
    return [[text_of[pk] for pk in tier] for tier in ranking.tiers]


def test_prompts_ask_for_answers_unless_held_out_or_answered(bring: Any, project: Project, alice: User):
    bring("demonstrations", [{"instruction": "Hola", "response": "¡Hola!"}])
    made = bring("prompts", [{"prompt": p} for p in ("Hola", "¿Quién?", "¿Qué?")], by=alice)
    asked = Task.objects.filter(kind="write", status="open", round=None)
    assert [task.prompt.text for task in asked] == ["¿Quién?", "¿Qué?"]
    assert [(slot.task_id, slot.number) for slot in Slot.objects.all()] == [(task.pk, 0) for task in asked]
    assert asked[0].prompt.source == "imported"
    assert asked[0].prompt.created_by == alice
    figures = {"imported": 2, "already_there": 1, "prompts_new": 2, "tasks": 2, "left_out_holdout": 0}
    assert figures.items() <= made.manifest.items()
    held = bring("prompts", [{"prompt": "¿Cuándo?"}], split="holdout")
    assert Prompt.objects.get(text="¿Cuándo?").split == "holdout"
    assert Task.objects.count() == 2
    assert held.manifest["split"] == "holdout"


def test_prompts_that_differ_in_case_and_space_are_one(bring: Any):
    made = bring("prompts", b"Hola  mundo\n\nhola mundo\nOtra\n", "prompts.txt")
    assert [p.text for p in Prompt.objects.all()] == ["Hola  mundo", "Otra"]
    assert {"imported": 2, "repeated": 1, "tasks": 2}.items() <= made.manifest.items()
    assert made.rows == 3


def test_a_row_may_name_its_split(bring: Any):
    bring("prompts", [{"prompt": "a", "split": "holdout"}, {"prompt": "b"}])
    assert list(Prompt.objects.values_list("text", "split")) == [("a", "holdout"), ("b", "train")]


def test_demonstrations_become_prompts_and_answers(bring: Any, project: Project):
    rows = [_demonstration(1, source="town"), _demonstration(1, response="Uno."), _demonstration(2)]
    made = bring("demonstrations", rows)
    assert list(Prompt.objects.values_list("text", flat=True)) == ["¿Cuánto es 1?", "¿Cuánto es 2?"]
    one = Demonstration.objects.get(response="Uno.")
    assert (one.source, one.author, one.dataset, one.prompt.text) == ("imported", None, made, "¿Cuánto es 1?")
    assert {"imported": 3, "prompts_new": 2}.items() <= made.manifest.items()
    assert made.manifest["notes"] == {"source": 1}


def test_preferences_become_rankings_of_two(bring: Any):
    made = bring("preferences", [{"prompt": "Hola", "chosen": "¡Hola!", "rejected": "¿Qué?"}])
    ranking = Ranking.objects.get()
    assert _texts(ranking) == [["¡Hola!"], ["¿Qué?"]]
    assert (ranking.source, ranking.annotator, ranking.slot, ranking.dataset) == ("imported", None, None, made)
    assert (ranking.task.kind, ranking.task.status, ranking.task.round) == ("rank", "closed", None)
    completions = ranking.task.completions.all()
    assert {(c.model, c.status, c.prompt_text) for c in completions} == {(None, "done", "Hola")}
    assert [c.position for c in completions] == [0, 1]
    assert made.kind == Dataset.Kind.RANKINGS


def test_rankings_keep_ties_and_what_was_not_good(bring: Any):
    bring("rankings", [_ranking(none_good=True)])
    ranking = Ranking.objects.get()
    assert _texts(ranking) == [["c"], ["a", "b"]]
    assert ranking.none_good


def test_equal_answers_are_left_out_and_counted(bring: Any):
    made = bring(
        "preferences",
        [{"prompt": "a", "chosen": "b", "rejected": "b"}, {"prompt": "a", "chosen": "b", "rejected": "c"}],
    )
    assert {"imported": 1, "left_out_equal": 1}.items() <= made.manifest.items()


def test_repeated_lines_count_each_and_are_reported(bring: Any):
    made = bring("rankings", [_ranking(), _ranking(), _ranking(1)])
    assert Ranking.objects.count() == 3
    assert {"imported": 3, "repeated": 1}.items() <= made.manifest.items()


def test_a_mended_file_adds_only_what_is_new(bring: Any):
    for kind, row, model in (("demonstrations", _demonstration, Demonstration), ("rankings", _ranking, Ranking)):
        bring(kind, [row(1), row(2)])
        made = bring(kind, [row(1), row(2), row(2), row(3)])
        assert model.objects.count() == 4
        assert {"imported": 2, "already_there": 2}.items() <= made.manifest.items()


def test_another_project_takes_the_same_file(bring: Any, other_project: Project):
    bring("demonstrations", [_demonstration()])
    made = bring("demonstrations", [_demonstration()], project=other_project)
    assert made.manifest["imported"] == 1
    assert Demonstration.objects.filter(project=other_project).count() == 1


def test_held_out_prompts_stay_out_of_training(bring: Any):
    bring("prompts", [{"prompt": "¿0?"}, {"prompt": "¿CUÁNTO es  1?"}], split="holdout")
    demonstrations = bring("demonstrations", [_demonstration(1), _demonstration(2)])
    rankings = bring("rankings", [_ranking(0), _ranking(1)])
    prompts = bring("prompts", [{"prompt": "¿0?"}, {"prompt": "nueva"}])
    for made in (demonstrations, rankings, prompts):
        assert {"left_out_holdout": 1, "imported": 1}.items() <= made.manifest.items()
        assert "left out, because the prompt is held out: 1" in summary(made)
    assert not Demonstration.objects.filter(prompt__split="holdout").exists()
    assert not Ranking.objects.filter(task__prompt__split="holdout").exists()
    assert not Task.objects.filter(prompt__split="holdout").exists()


def test_prompts_in_training_do_not_become_held_out(bring: Any):
    bring("demonstrations", [_demonstration(1)])
    made = bring("prompts", [{"prompt": "¿Cuánto es 1?"}, {"prompt": "b"}], split="holdout")
    assert {"left_out_train": 1, "imported": 1}.items() <= made.manifest.items()
    assert Prompt.objects.get(text="¿Cuánto es 1?").split == "train"


def _judgements(ranking: Any) -> list[set[str]]:
    return [set(tier) for tier in _texts(ranking)]


@pytest.mark.parametrize("kind", ["demonstrations", "preferences", "rankings"])
def test_what_goes_out_comes_in_equal(bring: Any, project: Project, other_project: Project, kind: str):
    rows = {
        "demonstrations": [_demonstration(n % 3, response=f"  Es {n}.\n") for n in range(7)],
        "preferences": [{"prompt": f"{n}\u2028", "chosen": "sí", "rejected": "no"} for n in range(4)],
        "rankings": [_ranking(n, none_good=bool(n)) for n in range(3)] + [_ranking(2, none_good=True)],
    }[kind]
    bring(kind, rows)
    out = list(export_rows(project, kind))
    bring(kind, out, project=other_project)
    assert list(export_rows(other_project, kind)) == out
    if kind != "rankings":  # the export numbers responses anew
        assert out == rows
    here, there = (Ranking.objects.filter(project=p).order_by("pk") for p in (project, other_project))
    assert [_judgements(r) for r in here] == [_judgements(r) for r in there]
