"""Simulated annotators rank all there is, as people do, and are marked."""

import itertools

import pytest

from accounts.models import Membership, Project, User
from labeling import world
from labeling.errors import LabelingError
from labeling.models import Ranking, Slot, Task
from labeling.simulation import simulate, simulated_annotators
from tests.make import make_prompt, make_task

QUESTIONS = [p.text for p in world.prompts(1, 4, "es", split="train")]


def _tasks(project: Project, overlap: int = 1, right: bool = False) -> list[Task]:
    """Ranking tasks with a good and a bad answer each."""
    return [
        make_task(project, ["Ni idea.", _right(text), "zzz", "No."], overlap, prompt=make_prompt(project, text))
        for text in QUESTIONS
    ]


def _right(question: str) -> str:
    answers = [row["response"] for row in world.demonstrations(1, 3000) if row["instruction"] == question]
    return max(answers, key=lambda text: world.judge(question, text).utility) if answers else "No sé."


def test_all_that_waits_is_ranked_once_and_marked(project: Project) -> None:
    _tasks(project, overlap=2)
    assert simulate(project, annotators=3, noise=0.25) == 8
    assert set(Ranking.objects.values_list("source", flat=True)) == {"simulated"}
    assert not Slot.objects.filter(done_at=None).exists()
    assert simulate(project, annotators=3) == 0


def test_without_noise_the_better_answer_never_stands_below(project: Project) -> None:
    _tasks(project)
    simulate(project, annotators=1, noise=0)
    for ranking in Ranking.objects.all():
        text = dict(ranking.task.completions.values_list("pk", "text"))
        tiers = [[world.judge(ranking.task.prompt.text, text[pk]).utility for pk in tier] for tier in ranking.tiers]
        assert all(min(better) >= max(worse) for better, worse in itertools.pairwise(tiers))


def test_simulated_annotators_can_be_nobody(project: Project) -> None:
    (robot,) = simulated_annotators(project, 1)
    assert robot.is_simulated
    assert not robot.has_usable_password()
    assert simulated_annotators(project, 1) == [robot]
    assert Membership.objects.filter(user=robot).count() == 1


def test_a_persons_account_is_never_used(project: Project) -> None:
    User.objects.create_user("simulated-1", password="a-long-passphrase")
    with pytest.raises(LabelingError, match="simulated-1"):
        simulate(project, annotators=1)


def test_foreign_prompts_are_refused_before_anything_is_ranked(project: Project) -> None:
    _tasks(project)
    make_task(project, prompt=make_prompt(project, "¿Cuál es la capital de Francia?"))
    with pytest.raises(LabelingError, match=r"1.*5"):
        simulate(project)
    assert not Ranking.objects.exists()


@pytest.mark.parametrize("noise", [-0.1, 0.6])
def test_noise_has_its_limits(project: Project, noise: float) -> None:
    with pytest.raises(LabelingError):
        simulate(project, noise=noise)
