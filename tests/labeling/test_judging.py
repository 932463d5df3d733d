"""What people send is stored once, edits keep what stood before, and a lost lease loses nothing."""

import threading
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import connection
from django.utils.timezone import now, timedelta

from accounts.models import Membership, Project, User
from labeling.errors import LabelingError
from labeling.judging import (
    LONGEST,
    draft_of,
    save_draft,
    shown_completions,
    submit_demonstration,
    submit_ranking,
)
from labeling.models import Demonstration, Ranking, Round, Slot, Task
from labeling.queue import next_task, release
from tests.make import ids, make_model, make_prompt, make_task


def _rank(task: Task, user: User, order: list[int] | None = None, key: UUID | None = None, **changes: Any) -> Ranking:
    """Rank by positions, best first."""
    pks = ids(task)
    tiers = [[pks[place]] for place in (order or range(len(pks)))]
    return submit_ranking(**{"task": task, "user": user, "key": key or uuid4(), "tiers": tiers, **changes})


def _writing_task(project: Project, overlap: int = 1) -> Task:
    task = Task.objects.create(project=project, kind="write", prompt=make_prompt(project))
    Slot.objects.bulk_create(Slot(task=task, number=n) for n in range(overlap))
    return task


def _lend(task: Task, user: User) -> None:
    slot = next_task(task.project, user, task.kind)
    assert slot is not None
    assert slot.task == task


def _pass_on(task: Task, loser: User, winner: User) -> None:
    """The loser's lease runs out and the winner gets the slot."""
    Slot.objects.filter(task=task, holder=loser).update(leased_until=now() - timedelta(seconds=1))
    _lend(task, winner)


@pytest.fixture
def task(project: Project) -> Task:
    return make_task(project)


@pytest.fixture
def round_task(project: Project) -> Task:
    round = Round.objects.create(project=project, number=1, status="ranking", policy=make_model(project))
    return make_task(project, round=round)


def test_a_ranking_takes_the_slot_and_ends_the_draft(task: Task, bob: User) -> None:
    _lend(task, bob)
    save_draft(task, bob, {"places": {}})
    ranking = _rank(task, bob, seconds=31, comment="Bien.", none_good=True)
    assert ranking.slot == task.slots.exclude(done_at=None).get(holder=bob)
    assert (ranking.source, ranking.seconds, ranking.comment, ranking.none_good) == ("human", 31, "Bien.", True)
    assert ranking.shown_order == [c.pk for c in shown_completions(task, bob)]
    assert draft_of(task, bob) == {}


def test_the_same_form_posted_twice_stores_one_ranking(task: Task, bob: User) -> None:
    _lend(task, bob)
    key = uuid4()
    first, again = _rank(task, bob, key=key), _rank(task, bob, key=key)
    assert first == again
    assert Ranking.objects.get().history == []


def test_another_order_is_an_edit_that_keeps_the_first(task: Task, bob: User) -> None:
    _lend(task, bob)
    before = _rank(task, bob, [0, 1, 2, 3], comment="Primero.").tiers
    _rank(task, bob, [3, 2, 1, 0], comment="Segundo.")
    ranking = Ranking.objects.get()
    assert ranking.tiers == before[::-1]
    assert [(entry["tiers"], entry["comment"]) for entry in ranking.history] == [(before, "Primero.")]
    assert ranking.slot is not None
    _rank(task, bob, [1, 0, 2, 3], comment="Tercero.")
    assert [entry["comment"] for entry in Ranking.objects.get().history] == ["Primero.", "Segundo."]


def test_an_old_form_that_arrives_late_does_not_undo_an_edit(task: Task, bob: User) -> None:
    _lend(task, bob)
    first, second = uuid4(), uuid4()
    _rank(task, bob, [0, 1, 2, 3], key=first)
    edited = _rank(task, bob, [3, 2, 1, 0], key=second).tiers
    _rank(task, bob, [0, 1, 2, 3], key=first)
    ranking = Ranking.objects.get()
    assert ranking.tiers == edited
    assert len(ranking.history) == 1


def test_a_second_form_with_the_same_order_changes_nothing(task: Task, bob: User) -> None:
    _lend(task, bob)
    _rank(task, bob, seconds=10)
    _rank(task, bob, seconds=99)
    assert (Ranking.objects.get().history, Ranking.objects.get().seconds) == ([], 10)


@pytest.mark.parametrize("status", ["training_reward", "optimizing", "awaiting_approval", "promoted", "rejected"])
def test_after_the_round_is_closed_an_edit_is_refused(round_task: Task, bob: User, status: str) -> None:
    _lend(round_task, bob)
    before = _rank(round_task, bob).tiers
    Round.objects.update(status=status)
    round_task = Task.objects.get()
    with pytest.raises(LabelingError, match=r"1.*(closed|cerrada)"):
        _rank(round_task, bob, [3, 2, 1, 0])
    assert Ranking.objects.get().tiers == before
    assert Ranking.objects.get().history == []
    assert _rank(round_task, bob).tiers == before  # the same order again is no edit


def test_after_the_round_is_closed_a_first_ranking_is_kept(round_task: Task, bob: User) -> None:
    _lend(round_task, bob)
    Round.objects.update(status="training_reward")
    Task.objects.update(status="closed")
    _rank(Task.objects.get(), bob)
    assert Ranking.objects.get().slot == Slot.objects.get()


def test_a_lost_lease_keeps_the_ranking_as_an_extra_and_the_other_persons_counts(
    task: Task, bob: User, dana: User
) -> None:
    _lend(task, bob)
    _pass_on(task, bob, dana)
    extra = _rank(task, bob)
    assert extra.slot is None
    assert Slot.objects.get().done_at is None
    counted = _rank(task, dana, [3, 2, 1, 0])
    assert counted.slot == Slot.objects.get()
    assert Ranking.objects.count() == 2
    assert next_task(task.project, bob, "rank") is None


def test_a_lease_that_ran_out_but_went_to_nobody_still_counts(task: Task, bob: User) -> None:
    _lend(task, bob)
    Slot.objects.update(leased_until=now() - timedelta(days=1))
    assert _rank(task, bob).slot == Slot.objects.get()


def test_whoever_skipped_and_then_ranks_after_all_is_kept(task: Task, bob: User, dana: User) -> None:
    _lend(task, bob)
    release(task, bob)
    _lend(task, dana)
    assert _rank(task, dana).slot is not None
    assert _rank(task, bob).slot is None


def test_rankings_with_a_slot_never_exceed_the_overlap(project: Project, bob: User, dana: User, rita: User) -> None:
    task = make_task(project, overlap=2)
    for user in (bob, dana):
        _lend(task, user)
    _pass_on(task, bob, rita)
    for user in (bob, dana, rita):
        _rank(task, user)
    assert Ranking.objects.exclude(slot=None).count() == 2
    assert set(Ranking.objects.filter(slot=None).values_list("annotator__username", flat=True)) == {"bob"}
    assert not Slot.objects.filter(done_at=None).exists()


@pytest.mark.django_db(transaction=True)
def test_one_form_sent_five_times_at_once_stores_one_ranking() -> None:
    project = Project.objects.create(name="Plaza", slug="plaza")
    user = User.objects.create_user("bob")
    Membership.objects.create(project=project, user=user)
    task = make_task(project, overlap=2)
    _lend(task, user)
    key, start, stored = uuid4(), threading.Barrier(5), []

    def send() -> None:
        start.wait()
        stored.append(_rank(task, user, key=key).pk)
        connection.close()

    threads = [threading.Thread(target=send) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stored == [Ranking.objects.get().pk] * 5
    assert Slot.objects.exclude(done_at=None).count() == 1
    assert Ranking.objects.get().history == []


@pytest.mark.parametrize(
    ("places", "sentence"),
    [
        ([[0], [1], [2]], "3.*4"),
        ([[0, 1, 2, 3], []], "4.*4"),
        ([[0], [0], [1], [2], [3]], "4.*4"),
        ([], "0.*4"),
        ([[0], [1], [2], [99]], "(reload|recarga)"),
    ],
)
def test_every_text_needs_exactly_one_place(task: Task, bob: User, places: list[list[int]], sentence: str) -> None:
    pks = [*ids(task), *[0] * 100]
    with pytest.raises(LabelingError, match=f"(?i){sentence}"):
        _rank(task, bob, tiers=[[pks[place] for place in tier] for tier in places])
    assert not Ranking.objects.exists()


def test_ties_are_kept_as_they_are(task: Task, bob: User) -> None:
    a, b, c, d = ids(task)
    assert _rank(task, bob, tiers=[[b, d], [a, c]]).tiers == [[b, d], [a, c]]


@pytest.mark.parametrize("axes", [{"beauty": 3}, {"safety": 0}, {"safety": 6}])
def test_scores_outside_the_axes_are_refused(task: Task, bob: User, axes: dict[str, int]) -> None:
    with pytest.raises(LabelingError, match="4"):
        _rank(task, bob, scores={str(ids(task)[0]): axes})
    assert not Ranking.objects.exists()


def test_scores_of_a_foreign_text_are_refused(task: Task, bob: User) -> None:
    with pytest.raises(LabelingError):
        _rank(task, bob, scores={"0": {"safety": 3}})


def test_a_key_of_another_task_is_refused_with_a_sentence(project: Project, bob: User, dana: User) -> None:
    one, two = make_task(project), make_task(project)
    key = _rank(one, bob).key
    for user, other in ((bob, two), (dana, one)):
        with pytest.raises(LabelingError, match=r"(reload|recarga)"):
            _rank(other, user, key=key)
    assert Ranking.objects.count() == 1


def test_the_order_shown_is_the_persons_own_and_stable(project: Project, bob: User, dana: User) -> None:
    task = make_task(project, [f"text {n}" for n in range(9)])
    first = [c.pk for c in shown_completions(task, bob)]
    assert first == [c.pk for c in shown_completions(task, bob)]
    assert sorted(first) == ids(task)
    assert first != [c.pk for c in shown_completions(task, dana)]


def test_a_draft_is_the_persons_own_and_the_newest(task: Task, bob: User, dana: User) -> None:
    save_draft(task, bob, {"comment": "a"})
    save_draft(task, bob, {"comment": "ab"})
    assert draft_of(task, bob) == {"comment": "ab"}
    assert draft_of(task, dana) == {}


def test_what_a_simulated_person_sends_is_marked(task: Task) -> None:
    robot = User.objects.create_user("simulated-1", is_simulated=True)
    assert _rank(task, robot).source == "simulated"


def test_a_demonstration_takes_the_slot_and_closes_the_task(project: Project, bob: User) -> None:
    task, key = _writing_task(project), uuid4()
    _lend(task, bob)
    save_draft(task, bob, {"response": "Sub"})
    for _ in range(2):
        submit_demonstration(task=task, user=bob, key=key, response="  Sube.\n")
    stored = Demonstration.objects.get()
    assert (stored.response, stored.author, stored.prompt, stored.history) == ("Sube.", bob, task.prompt, [])
    assert Task.objects.get().status == "closed"
    assert draft_of(task, bob) == {}


def test_a_task_stays_open_until_all_its_demonstrations_are_there(project: Project, bob: User, dana: User) -> None:
    task = _writing_task(project, overlap=2)
    for user, status in ((bob, "open"), (dana, "closed")):
        _lend(task, user)
        submit_demonstration(task=task, user=user, key=uuid4(), response="Sube.")
        assert Task.objects.get().status == status


def test_another_answer_is_an_edit_that_keeps_the_first(project: Project, bob: User) -> None:
    task, first = _writing_task(project), uuid4()
    _lend(task, bob)
    submit_demonstration(task=task, user=bob, key=first, response="Sube.")
    submit_demonstration(task=task, user=bob, key=uuid4(), response="Baja.")
    submit_demonstration(task=task, user=bob, key=first, response="Sube.")
    stored = Demonstration.objects.get()
    assert stored.response == "Baja."
    assert [entry["response"] for entry in stored.history] == ["Sube."]


def test_an_answer_after_a_lost_lease_is_kept(project: Project, bob: User, dana: User) -> None:
    task = _writing_task(project)
    _lend(task, bob)
    _pass_on(task, bob, dana)
    submit_demonstration(task=task, user=bob, key=uuid4(), response="Sube.")
    assert Slot.objects.get().done_at is None
    submit_demonstration(task=task, user=dana, key=uuid4(), response="Baja.")
    assert Demonstration.objects.count() == 2


@pytest.mark.parametrize("response", ["", " \n\t", "x" * (LONGEST + 1)])
def test_an_empty_or_endless_answer_is_refused(project: Project, bob: User, response: str) -> None:
    with pytest.raises(LabelingError):
        submit_demonstration(task=_writing_task(project), user=bob, key=uuid4(), response=response)
    assert not Demonstration.objects.exists()


def test_a_demonstrations_key_of_another_task_is_refused(project: Project, bob: User, dana: User) -> None:
    task = _writing_task(project, overlap=2)
    key = submit_demonstration(task=task, user=bob, key=uuid4(), response="Sube.").key
    with pytest.raises(LabelingError, match=r"(reload|recarga)"):
        submit_demonstration(task=task, user=dana, key=key, response="Baja.")
    assert Demonstration.objects.count() == 1
