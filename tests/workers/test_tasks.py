"""What the queues carry may come twice, late or never; the rows decide."""

from typing import Any

import pytest
from django.utils.timezone import now, timedelta

from accounts.models import Project
from labeling.models import Completion, Round
from registry.models import Run
from tests.make import make_model, make_prompt, make_run, make_task, succeed
from workers import supervise, tasks


@pytest.fixture
def rung(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []
    for place in ("workers.tasks.ring", "registry.lifecycle.ring", "registry.bell.ring"):
        monkeypatch.setattr(place, lambda *args: bool(calls.append(args)) or True)
    return calls


@pytest.fixture
def round(project: Project) -> Round:
    """A round whose one task has three completions to be written."""
    made = Round.objects.create(project=project, number=1, status="generating", policy=make_model(project))
    make_task(project, ["", "", ""], round=made)
    Completion.objects.update(status="pending", created_at=now() - timedelta(minutes=1))
    return made


def test_a_message_that_comes_three_times_trains_once(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    run, trained = make_run(project), []
    monkeypatch.setattr(supervise, "execute", trained.append)
    for _ in range(3):
        tasks.train(run.pk)
    tasks.train(run.pk + 1000)
    assert trained == [run]
    assert Run.objects.get().worker.startswith("train@")


def test_after_training_the_round_goes_on(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    make_prompt(project)
    reward = make_run(project, "reward")
    round = Round.objects.create(
        project=project, number=1, status="training_reward", policy=make_model(project), reward_run=reward
    )
    other = make_run(project)
    succeed(reward, "reward", val_accuracy=0.9, val_pairs=10)
    monkeypatch.setattr(supervise, "execute", lambda run: None)
    tasks.train(other.pk)
    round.refresh_from_db()
    assert round.status == "optimizing"


def test_what_a_silent_writer_had_is_taken_back(round: Round, rung: list[Any]) -> None:
    silent, writing, waiting = Completion.objects.all()
    past, future = now() - timedelta(seconds=1), now() + timedelta(seconds=30)
    Completion.objects.filter(pk=silent.pk).update(status="writing", leased_until=past)
    Completion.objects.filter(pk=writing.pk).update(status="writing", leased_until=future)
    tasks.reconcile_completions()
    assert dict(Completion.objects.values_list("pk", "status")) == {
        silent.pk: "pending", writing.pk: "writing", waiting.pk: "pending",
    }  # fmt: skip
    assert Completion.objects.get(pk=silent.pk).claim is None


def test_a_round_nobody_writes_is_rung_once_for_all_its_texts(round: Round, rung: list[Any]) -> None:
    tasks.reconcile_completions()
    assert rung == [("workers.serve.write_round", round.pk)]


def test_a_round_that_is_being_written_gets_no_second_writer(round: Round, rung: list[Any]) -> None:
    first = Completion.objects.first()
    Completion.objects.filter(pk=first.pk).update(status="writing", leased_until=now() + timedelta(seconds=30))
    tasks.reconcile_completions()
    assert rung == []


def test_fresh_texts_are_not_rung_again(round: Round, rung: list[Any]) -> None:
    Completion.objects.update(created_at=now())
    tasks.reconcile_completions()
    assert rung == []


def test_a_question_nobody_came_for_is_rung_again(project: Project, rung: list[Any]) -> None:
    asked = Completion.objects.create(project=project, prompt_text="¿?", model=make_model(project))
    Completion.objects.update(created_at=now() - timedelta(minutes=1))
    tasks.reconcile_completions()
    assert rung == [("workers.serve.write", asked.pk)]


def test_the_reconciler_moves_rounds_on_and_no_round_holds_up_another(
    project: Project, other_project: Project, rung: list[Any]
) -> None:
    stuck = Round.objects.create(
        project=project, number=1, status="training_reward", policy=make_model(project),
        reward_run=make_run(project, "reward"),
    )  # fmt: skip
    succeed(stuck.reward_run, "reward", val_accuracy=0.9, val_pairs=10)  # and not one prompt for PPO
    ready = Round.objects.create(project=other_project, number=1, status="generating", policy=make_model(other_project))
    make_task(other_project, round=ready)
    tasks.reconcile()
    stuck.refresh_from_db()
    ready.refresh_from_db()
    assert (stuck.status, ready.status) == ("training_reward", "ranking")
    assert stuck.error
    tasks.reconcile()


def test_a_run_whose_message_was_lost_is_rung_by_the_reconciler(project: Project, rung: list[Any]) -> None:
    run = make_run(project, rung_at=now() - timedelta(minutes=1))
    tasks.reconcile()
    assert rung == [("workers.train", run.pk)]
