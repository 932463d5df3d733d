"""Storing what people write and rank: once, whatever happens to the browser, and never overwritten without a trace."""

import random
from typing import Any, NoReturn, TypeVar
from uuid import UUID

from django.db import IntegrityError, transaction
from django.utils.timezone import now
from django.utils.translation import gettext as _

from accounts.models import User
from labeling.errors import LabelingError
from labeling.models import AXES, Completion, Demonstration, Draft, Ranking, Round, Source, Task
from labeling.queue import finish_slot

LONGEST = 20_000  # characters of one response or comment

Judgement = TypeVar("Judgement", Ranking, Demonstration)


def shown_completions(task: Task, user: User) -> list[Completion]:
    """A task's completions in this person's own order: shuffled, and the same at every visit."""
    completions = list(task.completions.order_by("position"))
    random.Random(f"{task.pk}:{user.pk}").shuffle(completions)
    return completions


def save_draft(task: Task, user: User, data: dict[str, Any]) -> Draft:
    draft, _created = Draft.objects.update_or_create(task=task, user=user, defaults={"data": data})
    return draft


def draft_of(task: Task, user: User) -> dict[str, Any]:
    draft = Draft.objects.filter(task=task, user=user).first()
    return draft.data if draft else {}


def source_of(user: User) -> str:
    return Source.SIMULATED if user.is_simulated else Source.HUMAN


def check_tiers(task: Task, tiers: list[list[int]]) -> None:
    """Every completion stands in exactly one tier."""
    known = set(task.completions.values_list("pk", flat=True))
    placed = [pk for tier in tiers for pk in tier]
    if set(placed) - known:
        raise LabelingError(_("The ranking names a text that is not part of this task: reload the page."))
    if len(placed) != len(set(placed)) or set(placed) != known or not all(tiers):
        raise LabelingError(
            _("%(placed)d of %(all)d texts have a place: give each of them exactly one.")
            % {"placed": len(set(placed)), "all": len(known)}
        )


def check_scores(task: Task, scores: dict[str, dict[str, int]]) -> None:
    known = {str(pk) for pk in task.completions.values_list("pk", flat=True)}
    for pk, axes in scores.items():
        if pk not in known or set(axes) - set(AXES) or any(value not in range(1, 6) for value in axes.values()):
            raise LabelingError(_("A score is a number from 1 to 5 on one of the %(n)d axes.") % {"n": len(AXES)})


@transaction.atomic
def submit_ranking(
    *,
    task: Task,
    user: User,
    key: UUID,
    tiers: list[list[int]],
    none_good: bool = False,
    scores: dict[str, dict[str, int]] | None = None,
    comment: str = "",
    seconds: int = 0,
) -> Ranking:
    """Store a ranking once per key; another one by the same person on the same task is an edit that keeps the first."""
    check_tiers(task, tiers)
    check_scores(task, scores or {})
    content = {
        "tiers": tiers,
        "none_good": none_good,
        "scores": scores or {},
        "comment": comment[:LONGEST],
        "shown_order": [c.pk for c in shown_completions(task, user)],
        "seconds": max(0, min(seconds, 86_400)),
    }
    identity = {"task": task, "annotator": user}
    made = _create_once(Ranking, identity, key, {**content, "project": task.project, "source": source_of(user)})
    if made is None:
        earlier = Ranking.objects.select_for_update().filter(**identity).first()
        return _edit(earlier or _refuse_key(), key, content)
    made.slot = finish_slot(task, user)
    made.save(update_fields=["slot"])
    Draft.objects.filter(task=task, user=user).delete()
    return made


@transaction.atomic
def submit_demonstration(*, task: Task, user: User, key: UUID, response: str) -> Demonstration:
    """Store an answer once per key; a second answer by the same person is an edit that keeps the first."""
    Task.objects.select_for_update().get(pk=task.pk)  # the same form posted twice at once waits here
    response = response.strip()
    if not response:
        raise LabelingError(_("The answer is empty: write at least one sentence."))
    if len(response) > LONGEST:
        raise LabelingError(
            _("The answer has %(n)d characters, the longest allowed has %(most)d: shorten it.")
            % {"n": len(response), "most": LONGEST}
        )
    earlier = Demonstration.objects.select_for_update().filter(task=task, author=user).first()
    if earlier is not None:
        return _edit(earlier, key, {"response": response})
    if Demonstration.objects.filter(key=key).exists():
        _refuse_key()
    demonstration = Demonstration.objects.create(
        project=task.project, prompt=task.prompt, task=task, author=user, key=key, response=response,
        source=source_of(user),
    )  # fmt: skip
    finish_slot(task, user)
    if not task.slots.filter(done_at=None).exists():
        Task.objects.filter(pk=task.pk).update(status=Task.Status.CLOSED)
    Draft.objects.filter(task=task, user=user).delete()
    return demonstration


def _create_once(model: type[Ranking], identity: dict[str, Any], key: UUID, content: dict[str, Any]) -> Ranking | None:
    """A new row, or None where this person already has one here (a second click, another tab)."""
    try:
        with transaction.atomic():
            return model.objects.create(**identity, key=key, **content)
    except IntegrityError:
        return None


def _refuse_key() -> NoReturn:
    raise LabelingError(_("This form has been used for another task: reload the page, what you wrote is in the draft."))


def _edit(row: Judgement, key: UUID, content: dict[str, Any]) -> Judgement:
    """Change a stored judgement and keep what stood before; a form posted again, however late, changes nothing."""
    seen = {str(row.key), *(entry.get("key") for entry in row.history)}
    if str(key) in seen or all(getattr(row, name) == value for name, value in content.items() if name != "seconds"):
        return row
    current = row.task.round if row.task else None
    if current is not None and current.status not in {Round.Status.GENERATING, Round.Status.RANKING}:
        raise LabelingError(
            _("Round %(number)d is closed: what you sent first is kept, it can no longer be changed.")
            % {"number": current.number}
        )
    before = {name: getattr(row, name) for name in content}
    row.history = [*row.history, {"at": now().isoformat(), "key": str(row.key), **before}]
    row.key = key
    for name, value in content.items():
        setattr(row, name, value)
    row.save()
    Draft.objects.filter(task=row.task, user=getattr(row, "annotator", None) or getattr(row, "author", None)).delete()
    return row
