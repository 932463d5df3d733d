"""Rows that many tests begin with."""

from typing import Any

from accounts.models import Project
from labeling.models import Completion, Prompt, Round, Slot, Task
from registry.lifecycle import claim_run, finish_run
from registry.models import ModelVersion, Run

TEXTS = ["Sube.", "Baja.", "Sube, con gusto te lo explico.", "Pregunta al panadero."]


def make_model(project: Project, kind: str = "sft", number: int = 1, **changes: Any) -> ModelVersion:
    path = f"projects/{project.pk}/{kind}-{number}"
    return ModelVersion.objects.create(
        **{"project": project, "kind": kind, "number": number, "path": path, "sha256": "0" * 64, **changes}
    )


def make_run(project: Project, stage: str = "sft", **changes: Any) -> Run:
    return Run.objects.create(**{"project": project, "stage": stage, **changes})


def claimed(run: Run, worker: str = "train@here:1") -> Run:
    mine = claim_run(run.pk, worker)
    assert mine is not None
    return mine


def succeed(run: Run, kind: str | None, **result: Any) -> Run:
    """A worker takes the run and ends it well."""
    artifact = kind and {"kind": kind, "path": f"{run.path}/model", "sha256": "1" * 64, "parameters": 1, "parent": None}
    assert finish_run(claimed(run), result, artifact or None)
    return Run.objects.get(pk=run.pk)


def make_prompt(project: Project, text: str = "¿Sube el pan?", split: str = "train") -> Prompt:
    return Prompt.objects.create(project=project, text=text, split=split)


def make_task(
    project: Project,
    texts: list[str] = TEXTS,
    overlap: int = 1,
    prompt: Prompt | None = None,
    round: Round | None = None,
) -> Task:
    """A ranking task whose completions are written."""
    prompt = prompt or make_prompt(project, f"¿Y el precio? {Task.objects.count()}")
    task = Task.objects.create(project=project, kind=Task.Kind.RANK, prompt=prompt, round=round)
    Slot.objects.bulk_create(Slot(task=task, number=n) for n in range(overlap))
    for position, text in enumerate(texts):
        Completion.objects.create(
            project=project, task=task, position=position, prompt_text=prompt.text, text=text,
            status=Completion.Status.DONE,
        )  # fmt: skip
    return task


def ids(task: Task) -> list[int]:
    return list(task.completions.order_by("position").values_list("pk", flat=True))
