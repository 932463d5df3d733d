"""Handing out work: a slot is lent to one person at a time, by one conditional UPDATE."""

from datetime import datetime, timedelta

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Case, Exists, OuterRef, Q, QuerySet, When
from django.http import Http404
from django.utils.html import escape, format_html
from django.utils.safestring import mark_safe
from django.utils.timezone import localtime, now
from django.utils.translation import gettext as _

from accounts.models import Project, User
from labeling.models import Demonstration, Prompt, Ranking, Round, Slot, Task

# How many free slots are tried before looking again: people asking at the same moment want the same first one.
TRIED_AT_ONCE = 16


def _lease_end() -> datetime:
    return now() + timedelta(seconds=settings.LEASE_SECONDS)


def open_tasks(project: Project, kind: str) -> QuerySet[Task]:
    return Task.objects.filter(project=project, kind=kind, status=Task.Status.OPEN)


def _fresh_slots(project: Project, user: User, kind: str) -> QuerySet[Slot]:
    """Undone slots of open tasks that this person has never judged or held."""
    judged = Ranking if kind == Task.Kind.RANK else Demonstration
    by_me = Q(annotator=user) if kind == Task.Kind.RANK else Q(author=user)
    return Slot.objects.filter(
        ~Exists(Slot.objects.filter(task=OuterRef("task"), holder=user)),
        ~Exists(judged.objects.filter(by_me, task=OuterRef("task"))),
        task__project=project, task__kind=kind, task__status=Task.Status.OPEN, done_at=None,
    ).order_by("task_id", "number")  # fmt: skip


def _my_open_slot(project: Project, user: User, kind: str) -> Slot | None:
    return (
        Slot.objects.filter(
            task__project=project, task__kind=kind, task__status=Task.Status.OPEN, holder=user, done_at=None
        )
        .exclude(leased_until=None)
        .order_by("-leased_until")
        .first()
    )


def next_task(project: Project, user: User, kind: str, leaving: Task | None = None) -> Slot | None:
    """My open lease first, else a free slot of a task I have not worked on; None when there is nothing to do."""
    mine = _my_open_slot(project, user, kind)
    if mine is not None and renew(mine.task, user):
        return mine
    while True:
        candidates = list(_fresh_slots(project, user, kind).free()[:TRIED_AT_ONCE])  # type: ignore[attr-defined]
        if not candidates:
            return _skipped_before(project, user, kind, leaving)
        for slot in candidates:
            if take(slot.pk, user):
                return Slot.objects.select_related("task").get(pk=slot.pk)


def take(pk: int, user: User) -> bool:
    """Lend a slot if it is still free; two people asking at once get one yes."""
    try:
        with transaction.atomic():
            return bool(Slot.objects.free().filter(pk=pk).update(holder=user, leased_until=_lease_end()))
    except IntegrityError:  # this person already holds another slot of the same task
        return False


def _skipped_before(project: Project, user: User, kind: str, leaving: Task | None) -> Slot | None:
    """What this person gave back comes last, when nothing else is left; skipping again goes round all of it."""
    mine = Slot.objects.free().filter(
        task__project=project, task__kind=kind, task__status=Task.Status.OPEN, holder=user
    )
    if leaving is not None:
        mine = mine.annotate(behind=Case(When(task__gt=leaving.pk, then=0), default=1)).order_by("behind", "task_id")
    for slot in mine[:TRIED_AT_ONCE]:
        if take(slot.pk, user):
            return slot
    return None


def renew(task: Task, user: User) -> datetime | None:
    """Lengthen my lease; None when the slot has gone to somebody else or is done."""
    end = _lease_end()
    return end if Slot.objects.filter(task=task, holder=user, done_at=None).update(leased_until=end) else None


def release(task: Task, user: User) -> None:
    """Give the slot back; a draft stays. The holder stays noted, so that it comes back to this person last."""
    Slot.objects.filter(task=task, holder=user, done_at=None).update(leased_until=None)


def finish_slot(task: Task, user: User) -> Slot | None:
    """Mark my slot done. None when it went to somebody else meanwhile: then the judgement is an extra one."""
    slot = Slot.objects.filter(task=task, holder=user).first()
    if slot is None or not Slot.objects.filter(pk=slot.pk, holder=user, done_at=None).update(done_at=now()):
        return None
    return slot


def task_for(project: Project, user: User, pk: int) -> Task:
    """A task this person has in hand, had in hand, or judged; else 404."""
    tasks = Task.objects.filter(project=project).select_related("prompt", "round")
    mine = Q(slots__holder=user) | Q(rankings__annotator=user) | Q(demonstrations__author=user) | Q(drafts__user=user)
    task = tasks.filter(mine, pk=pk).distinct().first()
    if task is None:
        raise Http404
    return task


def counts(project: Project, user: User) -> dict[str, int]:
    """How many tasks of each kind wait for this person, the one in hand included."""
    waiting = {}
    for kind in Task.Kind.values:
        fresh = _fresh_slots(project, user, kind).free().values("task").distinct().count()  # type: ignore[attr-defined]
        held = Slot.objects.filter(
            task__project=project, task__kind=kind, task__status=Task.Status.OPEN, holder=user, done_at=None
        ).count()
        waiting[kind] = fresh + held
    return waiting


def why_nothing(project: Project, user: User, kind: str) -> str:
    """Why there is no task, in one sentence with the next step."""
    lent = _fresh_slots(project, user, kind).order_by("leased_until").first()
    if lent is not None and lent.leased_until is not None:
        at = localtime(lent.leased_until)  # in the reader's zone where there are scripts
        clock = format_html('<time data-clock datetime="{}">{}</time>', at.isoformat(), f"{at:%H:%M}")
        sentence = _("Everything left is in other people's hands; the next lease ends at %(time)s: look again then.")
        return mark_safe(escape(sentence) % {"time": clock})  # noqa: S308
    if kind == Task.Kind.WRITE:
        if Prompt.objects.filter(project=project).exists():
            return _("Every prompt has its demonstration: a manager can add prompts on the data page.")
        return _("There are no prompts to answer yet: a manager can add some on the data page.")
    current = Round.objects.filter(project=project).exclude(status__in=Round.OVER).first()
    if current is None:
        return _("No round is open: a manager opens the next one on the rounds page.")
    if current.status in {Round.Status.OPEN, Round.Status.GENERATING}:
        return _("Round %(number)d is still writing its completions: look again in a minute.") % {
            "number": current.number
        }
    if current.status == Round.Status.RANKING:
        return _("You have ranked all you can of round %(number)d: a manager can close it now.") % {
            "number": current.number
        }
    return _("Round %(number)d is closed for ranking: the next round brings new completions.") % {
        "number": current.number
    }
