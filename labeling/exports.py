"""Rows for training and for download. A run trains on a frozen copy that lists every judgement in it."""

import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any, TextIO

from django.conf import settings
from django.db.models import QuerySet
from django.utils.timezone import now

from accounts.models import Project, User
from labeling.errors import LabelingError
from labeling.models import Demonstration, Prompt, Ranking
from registry.models import Dataset

KINDS = ("prompts", "demonstrations", "preferences", "rankings")
FORMATS = ("jsonl", "trl")
# Of a hundred ranked prompts this many are kept from the reward model to measure it.
VALIDATION_PERCENT = 15

Row = dict[str, Any]


def prompts(project: Project, split: str | None = None) -> QuerySet[Prompt]:
    rows = Prompt.objects.filter(project=project).order_by("pk")
    return rows.filter(split=split) if split else rows


def demonstrations(project: Project) -> QuerySet[Demonstration]:
    """What training may learn from: held-out prompts never appear in it."""
    train = Demonstration.objects.filter(project=project, prompt__split=Prompt.Split.TRAIN)
    return train.select_related("prompt").order_by("pk")


def rankings(project: Project) -> QuerySet[Ranking]:
    train = Ranking.objects.filter(project=project, task__prompt__split=Prompt.Split.TRAIN)
    return train.select_related("task__prompt").prefetch_related("task__completions__model").order_by("pk")


def is_validation(prompt: Prompt) -> bool:
    """The same prompts in every run: what one reward model was measured on, no later one was trained on."""
    return int(prompt.fingerprint[:8], 16) % 100 < VALIDATION_PERCENT


def ranking_row(ranking: Ranking) -> Row:
    """{"prompt", "responses", "ranking"}; texts that are the same to the letter are one response, at its best place.

    Where it is known, "annotator" says who judged (by number, never by name) and "policies" what wrote each response.
    """
    written = {c.pk: c for c in ranking.task.completions.all()}
    policies: dict[str, str] = {}  # response -> what wrote it
    order: list[Any] = []
    for tier in ranking.tiers:
        places = []
        for completion in (written[pk] for pk in tier):
            if completion.text not in policies:
                policies[completion.text] = completion.model.name if completion.model else completion.policy_name
                places.append(len(policies) - 1)
        if places:
            order.append(places if len(places) > 1 else places[0])
    row: Row = {"id": ranking.pk, "prompt": ranking.task.prompt.text, "responses": list(policies), "ranking": order}
    if any(policies.values()):
        row["policies"] = list(policies.values())
    if annotator := ranking.annotator_name or (f"person-{ranking.annotator_id}" if ranking.annotator_id else ""):
        row["annotator"] = annotator
    if ranking.none_good:
        row["none_good"] = True
    return row


def rows(project: Project, kind: str) -> Iterator[Row]:
    """The project's rows of a kind, in the layout that import_data reads."""
    if kind == "prompts":
        for prompt in prompts(project).iterator():
            held_out = prompt.split == Prompt.Split.HOLDOUT
            yield {"prompt": prompt.text, **({"split": "holdout"} if held_out else {})}
    elif kind == "demonstrations":
        for demonstration in demonstrations(project).iterator():
            yield {"instruction": demonstration.prompt.text, "response": demonstration.response}
    elif kind == "rankings":
        for ranking in rankings(project).iterator(chunk_size=500):
            row = ranking_row(ranking)
            if len(row["responses"]) > 1:
                yield {name: row[name] for name in row if name != "id"}
    elif kind == "preferences":
        for ranking in rankings(project).iterator(chunk_size=500):
            yield from pairs(ranking_row(ranking))
    else:
        raise LabelingError(f"There is no kind {kind!r}: choose one of {', '.join(KINDS)}.")


def pairs(row: Row) -> Iterator[Row]:
    """Every untied pair of a ranking as {"prompt", "chosen", "rejected"}."""
    tiers = [tier if isinstance(tier, list) else [tier] for tier in row["ranking"]]
    for better, tier in enumerate(tiers):
        for worse in tiers[better + 1 :]:
            for chosen in tier:
                for rejected in worse:
                    yield {
                        "prompt": row["prompt"],
                        "chosen": row["responses"][chosen],
                        "rejected": row["responses"][rejected],
                    }


def _as_trl(row: Row, kind: str) -> Row:
    """The conversational layouts that TRL's trainers read."""
    if kind == "prompts":
        return {"prompt": [{"role": "user", "content": row["prompt"]}]}
    if kind == "demonstrations":
        said = [("user", row["instruction"]), ("assistant", row["response"])]
        return {"messages": [{"role": role, "content": text} for role, text in said]}
    answers = {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
    return {"prompt": [{"role": "user", "content": row["prompt"]}], **answers}


def write_rows(project: Project, kind: str, format: str, out: TextIO) -> int:
    """Write one JSON object a line; returns how many."""
    if format not in FORMATS:
        raise LabelingError(f"There is no format {format!r}: choose one of {', '.join(FORMATS)}.")
    if format == "trl" and kind == "rankings":
        raise LabelingError("TRL has no layout for rankings of more than two: export kind preferences instead.")
    count = 0
    for row in rows(project, kind):
        if format == "trl" and row.get("split"):  # that layout cannot say that a prompt is held out
            continue
        out.write(json.dumps(_as_trl(row, kind) if format == "trl" else row, ensure_ascii=False) + "\n")
        count += 1
    return count


def freeze(project: Project, kind: str, rows: list[Row], manifest: Row, by: User | None = None) -> Dataset:
    """Rows on disk under their own sha256, and a Dataset that says what is in them."""
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    digest = hashlib.sha256(content).hexdigest()
    path = f"projects/{project.pk}/datasets/{digest[:12]}/{kind}.jsonl"
    file = settings.ARTIFACTS / path
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f".{kind}.{os.getpid()}")
        with aside.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        aside.rename(file)
    return Dataset.objects.create(
        project=project, kind=kind, name=f"{kind} {now():%Y-%m-%d %H:%M}", path=path, sha256=digest, rows=len(rows),
        bytes=len(content), manifest={"frozen": True, **manifest}, created_by=by,
    )  # fmt: skip


def freeze_demonstrations(project: Project, by: User | None = None) -> Dataset:
    found = list(demonstrations(project))
    content = [{"instruction": d.prompt.text, "response": d.response} for d in found]
    return freeze(project, "demonstrations", content, {"demonstrations": [d.pk for d in found]}, by)


def freeze_rankings(project: Project, *, validation: bool, by: User | None = None) -> Dataset:
    """The rankings a reward model learns from, or those it is measured on."""
    found = [r for r in rankings(project) if is_validation(r.task.prompt) == validation]
    content = [row for row in map(ranking_row, found) if len(row["responses"]) > 1]
    part = "validation" if validation else "train"
    return freeze(project, "rankings", content, {"part": part, "rankings": [r["id"] for r in content]}, by)


def freeze_prompts(project: Project, split: str, by: User | None = None) -> Dataset:
    found = list(prompts(project, split))
    content = [{"prompt": p.text} for p in found]
    return freeze(project, "prompts", content, {"part": split, "prompts": [p.pk for p in found]}, by)
