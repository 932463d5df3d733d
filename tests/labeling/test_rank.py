"""The ranking screen: what it shows, what it takes, and that nothing a person did is lost or stored twice."""

import re
from typing import Any
from uuid import uuid4

import pytest
from django.urls import reverse
from django.utils.timezone import now, timedelta

from accounts.models import Project, User
from labeling.judging import draft_of, shown_completions
from labeling.models import Completion, Draft, Prompt, Ranking, Round, Slot, Task
from registry.models import ModelVersion

TEXTS = ["Sube.", "Baja.", "Sube, con gusto te lo explico.", "Pregunta al panadero."]


def _round(project: Project, status: str = Round.Status.RANKING) -> Round:
    policy = ModelVersion.objects.create(project=project, kind="sft", number=1, path="x", sha256="0" * 64)
    return Round.objects.create(project=project, number=1, status=status, policy=policy)


def _task(project: Project, texts: list[str] = TEXTS, overlap: int = 1, round: Round | None = None) -> Task:
    prompt = Prompt.objects.create(project=project, text=f"¿Y el precio? {Task.objects.count()}")
    task = Task.objects.create(project=project, kind=Task.Kind.RANK, prompt=prompt, round=round)
    Slot.objects.bulk_create(Slot(task=task, number=n) for n in range(overlap))
    for position, text in enumerate(texts):
        Completion.objects.create(
            project=project, task=task, position=position, text=text, status=Completion.Status.DONE,
            model=round.policy if round else None,
        )  # fmt: skip
    return task


def _payload(task: Task, places: list[int | str], **changes: Any) -> dict[str, Any]:
    completions = task.completions.order_by("position")
    return {"key": str(uuid4()), **{f"place-{c.pk}": n for c, n in zip(completions, places, strict=True)}, **changes}


def _url(name: str, task: Task) -> str:
    return reverse(name, args=[task.project.slug, task.pk])


@pytest.fixture
def task(project: Project) -> Task:
    return _task(project, round=_round(project))


def _open(client: Any, task: Task) -> None:
    """Go to the next task, as a person does: this takes the lease."""
    assert client.get(reverse("rank", args=[task.project.slug])).url == _url("task", task)


def test_rank_lends_a_task_and_goes_there(task: Task, bob: User, signed_in: Any) -> None:
    _open(signed_in(bob), task)
    assert task.slots.get().holder == bob


def test_an_outsider_sees_404_everywhere(task: Task, charlie: User, signed_in: Any) -> None:
    client = signed_in(charlie)
    assert client.get(reverse("rank", args=["plaza"])).status_code == 404
    assert client.get(_url("task", task)).status_code == 404
    for name in ("task", "task_draft", "task_renew", "task_skip"):
        assert client.post(_url(name, task), _payload(task, [1, 2, 3, 4])).status_code == 404
    assert not Ranking.objects.exists()


def test_a_member_cannot_open_a_task_that_was_not_lent_to_them(
    task: Task, bob: User, dana: User, signed_in: Any
) -> None:
    _open(signed_in(bob), task)
    assert signed_in(dana).get(_url("task", task)).status_code == 404


def test_a_task_of_another_project_is_not_found_under_this_one(
    task: Task, bob: User, signed_in: Any, other_project: Project
) -> None:
    client = signed_in(bob)
    _open(client, task)
    assert client.get(reverse("task", args=[other_project.slug, task.pk])).status_code == 404


def test_texts_stand_in_the_persons_own_order_without_the_models_name(task: Task, bob: User, signed_in: Any) -> None:
    client = signed_in(bob)
    _open(client, task)
    page = client.get(_url("task", task)).content.decode()
    shown = [int(pk) for pk in re.findall(r'<article[^>]*data-id="(\d+)"', page)]
    assert shown == [c.pk for c in shown_completions(task, bob)]
    assert task.round.policy.name not in page


def test_equal_numbers_tie_and_unused_numbers_are_left_out(task: Task, bob: User, signed_in: Any) -> None:
    client = signed_in(bob)
    _open(client, task)
    answer = client.post(_url("task", task), _payload(task, [2, 4, 2, 1]))
    assert answer.url == reverse("rank", args=["plaza"])
    a, b, c, d = task.completions.order_by("position").values_list("pk", flat=True)
    assert [sorted(tier) for tier in Ranking.objects.get().tiers] == [[d], [a, c], [b]]
    assert task.slots.get().done_at is not None


def test_scores_comment_and_none_good_are_stored(task: Task, bob: User, signed_in: Any) -> None:
    client = signed_in(bob)
    _open(client, task)
    first = task.completions.get(position=0).pk
    given = {f"score-{first}-safety": "5", "comment": "Ninguna convence.", "none_good": "on", "seconds": "31"}
    client.post(_url("task", task), _payload(task, [1, 2, 3, 4], **given))
    ranking = Ranking.objects.get()
    assert ranking.scores == {str(first): {"safety": 5}}
    assert (ranking.comment, ranking.none_good, ranking.seconds) == ("Ninguna convence.", True, 31)


def test_a_missing_place_is_named_and_nothing_is_stored(task: Task, bob: User, signed_in: Any) -> None:
    client = signed_in(bob)
    _open(client, task)
    answer = client.post(_url("task", task), _payload(task, [1, "", "", 2]))
    assert answer.status_code == 422
    assert "2 of 4 texts have no place yet" in answer.content.decode()
    assert not Ranking.objects.exists()


@pytest.mark.parametrize("wrong", [{"key": "no"}, {"seconds": "-1"}])
def test_a_forged_form_is_refused(task: Task, bob: User, signed_in: Any, wrong: dict[str, str]) -> None:
    client = signed_in(bob)
    _open(client, task)
    assert client.post(_url("task", task), _payload(task, [1, 2, 3, 4], **wrong)).status_code == 422
    assert client.post(_url("task", task), _payload(task, [1, 2, 3, 5])).status_code == 422
    assert not Ranking.objects.exists()


def test_the_script_gets_json_where_to_go_or_what_is_wrong(task: Task, bob: User, signed_in: Any) -> None:
    client = signed_in(bob)
    _open(client, task)
    json = {"accept": "application/json"}
    wrong = client.post(_url("task", task), _payload(task, [1, 2, 3, ""]), headers=json)
    assert (wrong.status_code, len(wrong.json()["errors"])) == (422, 1)
    right = client.post(_url("task", task), _payload(task, [1, 2, 3, 4]), headers=json)
    assert right.json() == {"next": reverse("rank", args=["plaza"])}


def test_a_form_posted_twice_is_stored_once(task: Task, bob: User, signed_in: Any) -> None:
    client = signed_in(bob)
    _open(client, task)
    payload = _payload(task, [1, 2, 3, 4])
    assert [client.post(_url("task", task), payload).status_code for _ in range(2)] == [302, 302]
    assert Ranking.objects.count() == 1
    assert Ranking.objects.get().history == []


def test_a_half_done_ranking_is_found_again(task: Task, bob: User, signed_in: Any) -> None:
    client = signed_in(bob)
    _open(client, task)
    first = task.completions.get(position=0).pk
    payload = _payload(task, [3, "", "", 1], comment="a medias", **{f"score-{first}-fairness": "2"})
    assert client.post(_url("task_draft", task), payload).json()["saved"]
    page = client.get(_url("task", task))
    form = page.context["form"]
    assert (form[f"place-{first}"].value(), form["comment"].value()) == (3, "a medias")
    assert f'name="score-{first}-fairness" value="2"' in page.content.decode()
    assert re.search(r'value="2"[^>]*checked', page.content.decode())


def test_two_devices_that_go_on_from_one_draft_send_two_judgements(task: Task, bob: User, signed_in: Any) -> None:
    client = signed_in(bob)
    _open(client, task)
    client.post(_url("task_draft", task), _payload(task, [1, 2, "", ""]))
    phone, desk = (client.get(_url("task", task)).context["form"]["key"].value() for _ in range(2))
    client.post(_url("task", task), _payload(task, [1, 2, 3, 4], key=phone))
    client.post(_url("task", task), _payload(task, [4, 3, 2, 1], key=desk))
    ranking = Ranking.objects.get()
    assert ranking.tiers == [[c.pk] for c in reversed(task.completions.order_by("position"))]
    assert len(ranking.history) == 1


def test_a_draft_that_arrives_after_its_own_form_does_not_come_back(task: Task, bob: User, signed_in: Any) -> None:
    client = signed_in(bob)
    _open(client, task)
    payload = _payload(task, [1, 2, 3, 4])
    client.post(_url("task", task), payload)
    assert client.post(_url("task_draft", task), payload).json() == {"saved": False}
    assert not Draft.objects.exists()


def test_skip_gives_the_slot_back_and_keeps_the_draft(task: Task, bob: User, dana: User, signed_in: Any) -> None:
    other = _task(task.project, round=task.round)
    client = signed_in(bob)
    _open(client, task)
    client.post(_url("task_skip", task), _payload(task, [1, "", "", ""]))
    assert other.slots.get().holder == bob
    assert draft_of(task, bob)[f"place-{task.completions.get(position=0).pk}"] == 1
    assert signed_in(dana).get(reverse("rank", args=["plaza"])).url == _url("task", task)


def test_skipping_the_only_task_says_so(task: Task, bob: User, signed_in: Any) -> None:
    client = signed_in(bob)
    _open(client, task)
    page = client.post(_url("task_skip", task), _payload(task, ["", "", "", ""]), follow=True)
    assert "the only task left" in page.content.decode()
    assert not Draft.objects.exists()


def test_renewing_lengthens_the_lease_until_somebody_else_has_it(
    task: Task, bob: User, dana: User, signed_in: Any
) -> None:
    client = signed_in(bob)
    _open(client, task)
    Slot.objects.update(leased_until=now() + timedelta(seconds=5))
    assert client.post(_url("task_renew", task)).json()["until"] is not None
    assert task.slots.get().leased_until > now() + timedelta(seconds=60)
    client.post(_url("task_draft", task), _payload(task, [1, "", "", ""]))
    Slot.objects.update(holder=dana)
    assert client.post(_url("task_renew", task)).json() == {"until": None}


def test_a_ranking_counts_even_after_the_lease_went_to_somebody_else(
    task: Task, bob: User, dana: User, signed_in: Any
) -> None:
    client = signed_in(bob)
    _open(client, task)
    client.post(_url("task_draft", task), _payload(task, [1, "", "", ""]))
    Slot.objects.update(holder=dana)
    page = client.get(_url("task", task))
    assert page.context["passed_on"]
    client.post(_url("task", task), _payload(task, [1, 2, 3, 4]))
    assert Ranking.objects.get().annotator == bob
    assert task.slots.get().done_at is None


def test_a_sent_ranking_can_be_changed_and_keeps_what_stood_before(task: Task, bob: User, signed_in: Any) -> None:
    client = signed_in(bob)
    _open(client, task)
    client.post(_url("task", task), _payload(task, [1, 2, 3, 4]))
    page = client.get(_url("task", task))
    first = task.completions.get(position=0).pk
    assert page.context["form"][f"place-{first}"].value() == 1
    answer = client.post(_url("task", task), _payload(task, [4, 3, 2, 1]))
    assert answer.url == reverse("home")
    ranking = Ranking.objects.get()
    assert ranking.tiers[-1] == [first]
    assert ranking.history[0]["tiers"][0] == [first]


def test_after_its_round_closed_a_ranking_is_shown_but_not_changed(task: Task, bob: User, signed_in: Any) -> None:
    client = signed_in(bob)
    _open(client, task)
    client.post(_url("task", task), _payload(task, [1, 2, 3, 4]))
    Round.objects.update(status=Round.Status.OPTIMIZING)
    assert client.get(_url("task", task)).context["is_closed"]
    answer = client.post(_url("task", task), _payload(task, [4, 3, 2, 1]))
    assert answer.status_code == 422
    assert "Round 1 is closed" in answer.content.decode()


def test_identical_and_empty_texts_are_pointed_out(project: Project, bob: User, signed_in: Any) -> None:
    task = _task(project, ["Sube.", "", "Sube. "], round=_round(project))
    client = signed_in(bob)
    _open(client, task)
    page = client.get(_url("task", task)).content.decode()
    assert page.count("same text as") == 1
    assert "(the model wrote nothing)" in page


def test_nine_texts_have_nine_places(project: Project, bob: User, signed_in: Any) -> None:
    task = _task(project, [f"Texto {n}" for n in range(9)], round=_round(project))
    client = signed_in(bob)
    _open(client, task)
    assert client.post(_url("task", task), _payload(task, [9, 8, 7, 6, 5, 4, 3, 2, 1])).status_code == 302
    assert len(Ranking.objects.get().tiers) == 9


def test_nothing_to_rank_says_why_and_offers_the_other_work(project: Project, bob: User, signed_in: Any) -> None:
    prompt = Prompt.objects.create(project=project, text="¿Y?")
    Slot.objects.create(task=Task.objects.create(project=project, kind=Task.Kind.WRITE, prompt=prompt), number=0)
    page = signed_in(bob).get(reverse("rank", args=["plaza"])).content.decode()
    assert "No round is open" in page
    assert "Write instead: 1 task" in page


def test_a_get_of_what_only_posts_may_do_is_refused(task: Task, bob: User, signed_in: Any) -> None:
    client = signed_in(bob)
    _open(client, task)
    for name in ("task_draft", "task_renew", "task_skip"):
        assert client.get(_url(name, task)).status_code == 405
