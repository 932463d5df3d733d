"""Imported rows become prompts, demonstrations and rankings: in batches, each exact row once however often it comes."""

import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice

from accounts.models import User
from labeling.models import Completion, Demonstration, Prompt, Ranking, Slot, Source, Task, fingerprint
from labeling.rows import Row
from registry.models import Dataset

BATCH = 500


@dataclass
class Arrival:
    """One file on its way into the database. `counts` says what became of its rows."""

    dataset: Dataset
    kind: str
    split: str
    by: User | None
    counts: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    seen: Counter[bytes] = field(default_factory=Counter)


def store_rows(arrival: Arrival, rows: Iterable[Row]) -> None:
    """Call inside a transaction."""
    for batch in _batches(rows):
        for row in batch:
            arrival.notes.update(row.notes)
            arrival.ignored.update(row.ignored)
        if arrival.kind == "prompts":
            _store_prompts(arrival, batch)
        elif arrival.kind == "demonstrations":
            _store_demonstrations(arrival, batch)
        else:
            _store_rankings(arrival, batch)


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    source = iter(rows)
    while batch := list(islice(source, BATCH)):
        yield batch


def _store_prompts(arrival: Arrival, batch: list[Row]) -> None:
    prompts = _prompts_of(arrival, batch)
    for row in batch:
        prompt = prompts[fingerprint(row.prompt)]
        if _is_in_its_split(arrival, row, prompt):
            arrival.counts[_what_became_of(arrival, prompt)] += 1
    train = [prompt for prompt in prompts.values() if prompt.split == Prompt.Split.TRAIN]
    arrival.counts["tasks"] += _ask_for_answers(train)


def _what_became_of(arrival: Arrival, prompt: Prompt) -> str:
    if prompt.dataset_id != arrival.dataset.pk:
        return "already_there"
    mark = bytes.fromhex(prompt.fingerprint)
    arrival.seen[mark] += 1
    return "imported" if arrival.seen[mark] == 1 else "repeated"


def _ask_for_answers(prompts: list[Prompt]) -> int:
    """A writing task for each prompt that nobody has answered or been asked to answer."""
    pks = [prompt.pk for prompt in prompts]
    served = set(Demonstration.objects.filter(prompt__in=pks).values_list("prompt_id", flat=True))
    served |= set(Task.objects.filter(prompt__in=pks, kind=Task.Kind.WRITE).values_list("prompt_id", flat=True))
    tasks = Task.objects.bulk_create(
        Task(project_id=prompt.project_id, kind=Task.Kind.WRITE, prompt=prompt)
        for prompt in prompts
        if prompt.pk not in served
    )
    Slot.objects.bulk_create(Slot(task=task, number=0) for task in tasks)
    return len(tasks)


def _store_demonstrations(arrival: Arrival, batch: list[Row]) -> None:
    placed = _placed(arrival, batch)
    known = set(Demonstration.objects.filter(key__in=[key for key, _, _ in placed]).values_list("key", flat=True))
    arrival.counts["already_there"] += len(known)
    made = Demonstration.objects.bulk_create(
        Demonstration(
            project_id=prompt.project_id, prompt=prompt, response=row.responses[0], key=key,
            source=Source.IMPORTED, dataset=arrival.dataset,
        )
        for key, row, prompt in placed
        if key not in known
    )  # fmt: skip
    arrival.counts["imported"] += len(made)


def _store_rankings(arrival: Arrival, batch: list[Row]) -> None:
    """Each ranking has a closed task of its own, whose completions no model of ours wrote."""
    placed = _placed(arrival, [row for row in batch if _says_something(arrival, row)])
    known = set(Ranking.objects.filter(key__in=[key for key, _, _ in placed]).values_list("key", flat=True))
    arrival.counts["already_there"] += len(known)
    placed = [entry for entry in placed if entry[0] not in known]
    tasks = Task.objects.bulk_create(
        Task(project_id=prompt.project_id, kind=Task.Kind.RANK, status=Task.Status.CLOSED, prompt=prompt)
        for _, _, prompt in placed
    )
    completions = iter(
        Completion.objects.bulk_create(
            Completion(
                project_id=task.project_id, task=task, position=position, prompt_text=row.prompt, text=text,
                policy_name=row.policies[position] if row.policies else "", status=Completion.Status.DONE,
            )
            for task, (_, row, _) in zip(tasks, placed, strict=True)
            for position, text in enumerate(row.responses)
        )
    )  # fmt: skip
    rankings = []
    for task, (key, row, _) in zip(tasks, placed, strict=True):
        ids = [completion.pk for completion in islice(completions, len(row.responses))]
        tiers = [[ids[place] for place in tier] for tier in row.tiers]
        rankings.append(
            Ranking(
                project_id=task.project_id, task=task, source=Source.IMPORTED, dataset=arrival.dataset, key=key,
                tiers=tiers, none_good=row.none_good, annotator_name=row.annotator,
            )
        )  # fmt: skip
    Ranking.objects.bulk_create(rankings)
    arrival.counts["imported"] += len(rankings)


def _says_something(arrival: Arrival, row: Row) -> bool:
    """A preference between two texts that are the same to the letter teaches nothing."""
    if len(set(row.responses)) > 1:
        return True
    arrival.counts["left_out_equal"] += 1
    return False


def _placed(arrival: Arrival, batch: list[Row]) -> list[tuple[uuid.UUID, Row, Prompt]]:
    """The rows that may come in, each with its key and its prompt."""
    prompts = _prompts_of(arrival, batch)
    placed = []
    for row in batch:
        prompt = prompts[fingerprint(row.prompt)]
        if _is_in_its_split(arrival, row, prompt):
            placed.append((_key(arrival, row), row, prompt))
    return placed


def _is_in_its_split(arrival: Arrival, row: Row, prompt: Prompt) -> bool:
    """What is held out never enters training through an import, and what trained never becomes held out."""
    wanted = row.split or arrival.split
    if prompt.split == wanted:
        return True
    arrival.counts[f"left_out_{prompt.split}"] += 1
    return False


def _key(arrival: Arrival, row: Row) -> uuid.UUID:
    """The same for the same row of the same project, so that a mended file adds only what is new.

    A line that stands in a file n times counts n times: two people may well have judged alike.
    """
    times = arrival.seen[row.digest]
    arrival.seen[row.digest] += 1
    arrival.counts["repeated"] += times > 0
    name = f"{arrival.dataset.project_id} {arrival.kind} {row.digest.hex()} {times}"
    return uuid.UUID(bytes=sha256(name.encode()).digest()[:16])


def _prompts_of(arrival: Arrival, batch: list[Row]) -> dict[str, Prompt]:
    """Fingerprint -> prompt; those the project does not have yet are made."""
    wanted = {fingerprint(row.prompt): row for row in reversed(batch)}  # of the same prompts the first one's wording
    project = arrival.dataset.project
    known = set(
        Prompt.objects.filter(project=project, fingerprint__in=list(wanted)).values_list("fingerprint", flat=True)
    )
    Prompt.objects.bulk_create(
        (
            Prompt(
                project=project, text=row.prompt, fingerprint=mark, split=row.split or arrival.split,
                source=Source.IMPORTED, dataset=arrival.dataset, created_by=arrival.by,
            )
            for mark, row in reversed(wanted.items())
            if mark not in known
        ),
        ignore_conflicts=True,  # somebody may add the same prompt by hand at this moment
    )  # fmt: skip
    found = Prompt.objects.filter(project=project, fingerprint__in=list(wanted))
    return {prompt.fingerprint: prompt for prompt in found}
