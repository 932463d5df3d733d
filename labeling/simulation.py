"""Simulated annotators for the small world. Their rankings are marked as simulated wherever they appear."""

import random
import uuid

from django.utils.translation import gettext as _

from accounts.models import Membership, Project, Role, User
from labeling import world
from labeling.errors import LabelingError
from labeling.judging import submit_ranking
from labeling.models import Task
from labeling.queue import next_task, open_tasks


def simulated_annotators(project: Project, count: int) -> list[User]:
    """Accounts that nobody can sign in to."""
    people = []
    for n in range(1, count + 1):
        user, made = User.objects.get_or_create(
            username=f"simulated-{n}", defaults={"is_simulated": True, "first_name": f"Simulated {n}"}
        )
        if made:
            user.set_unusable_password()
            user.save()
        elif not user.is_simulated:
            raise LabelingError(_("%(name)s is a person's account: rename it first.") % {"name": user.username})
        Membership.objects.get_or_create(project=project, user=user, defaults={"role": Role.ANNOTATOR})
        people.append(user)
    return people


def simulate(project: Project, annotators: int = 3, noise: float = 0.25, seed: int = 0) -> int:
    """Rank all that waits, by the hidden utility with each comparison wrong with probability `noise`; how many."""
    if not 0 <= noise <= 0.5:
        raise LabelingError(_("Noise is %(noise)s: it must lie between 0 and 0.5.") % {"noise": noise})
    tasks = open_tasks(project, Task.Kind.RANK)
    foreign = [t for t in tasks.select_related("prompt") if not world.asked(t.prompt.text)]
    if foreign:
        raise LabelingError(
            _("%(n)d of %(all)d prompts are not of the small world, and simulated annotators can judge no other.")
            % {"n": len(foreign), "all": tasks.count()}
        )
    count = 0
    for user in simulated_annotators(project, annotators):
        while (slot := next_task(project, user, Task.Kind.RANK)) is not None:
            task = slot.task
            shown = list(task.completions.order_by("position"))  # not as shown: a seed repeats in any home
            turn = task.round.number if task.round else 0
            draws = random.Random(f"{seed}:{turn}:{user.username}:{task.prompt.fingerprint}")
            order = world.rank(task.prompt.text, [c.text for c in shown], noise, draws)
            tiers = [[shown[place].pk for place in tier] for tier in order]
            submit_ranking(task=task, user=user, key=uuid.uuid4(), tiers=tiers)
            count += 1
    return count
