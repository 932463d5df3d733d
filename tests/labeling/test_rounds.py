"""A round takes each step once, whoever pushes and however often; it stands still only with a sentence."""

import threading
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection

from accounts.models import Project, User
from labeling import rounds
from labeling.errors import LabelingError
from labeling.judging import submit_ranking
from labeling.models import Completion, Prompt, Ranking, Round, Slot, Task
from labeling.queue import next_task
from registry.lifecycle import fail_run
from registry.models import ModelVersion, Run
from registry.services import RegistryError, live_model, promote
from tests.make import claimed, ids, make_model, make_prompt, make_run, succeed

GOOD = {"val_accuracy": 0.7, "val_pairs": 100}
BAD = {"val_accuracy": 0.51, "val_pairs": 100}


@pytest.fixture
def ready(project: Project) -> Project:
    """A project with a live model, four training prompts and one that is held out."""
    promote(model=make_model(project, "sft"))
    for n in range(4):
        make_prompt(project, f"¿Sube el precio {n}?")
    make_prompt(project, "¿Secreto?", "holdout")
    return project


def _open(project: Project, **changes: Any) -> Round:
    return rounds.open_round(**{"project": project, "prompts": 2, "k": 2, "seed": 1, **changes})


def _write(round: Round) -> None:
    """What the serve worker does."""
    for completion in Completion.objects.filter(task__round=round, status="pending"):
        completion.text, completion.status = f"text {completion.position}", "done"
        completion.save()
    rounds.advance_round(round)
    round.refresh_from_db()


def _rank_all(round: Round, user: User) -> int:
    count = 0
    while (slot := next_task(round.project, user, "rank")) is not None:
        submit_ranking(task=slot.task, user=user, key=uuid4(), tiers=[[pk] for pk in ids(slot.task)])
        count += 1
    return count


def _closed(project: Project, user: User, **changes: Any) -> Round:
    """A round up to the training of its reward model."""
    round = _open(project, **changes)
    _write(round)
    _rank_all(round, user)
    return rounds.close_round(round)


def _at_gate(project: Project, user: User, **result: Any) -> Round:
    round = _closed(project, user)
    succeed(round.reward_run, "reward", **result)
    return _advance(round)


def _awaiting(project: Project, user: User) -> Round:
    round = _at_gate(project, user, **GOOD)
    succeed(round.ppo_run, "policy")
    _advance(round)
    succeed(round.evaluate_run, None, win_rate=0.7)
    return _advance(round)


def _advance(round: Round, times: int = 1) -> Round:
    for _ in range(times):
        rounds.advance_round(round)
    round.refresh_from_db()
    return round


def test_an_open_round_has_tasks_slots_and_empty_completions(ready: Project, alice: User) -> None:
    round = _open(ready, prompts=3, k=4, overlap=2, sampling={"temperature": 0.7}, by=alice)
    assert (round.number, round.status, round.policy) == (1, "generating", live_model(ready))
    counted = rounds.progress(round)
    assert (counted["completions"], counted["completions_done"], counted["slots"]) == (12, 0, 6)
    assert not round.tasks.exclude(status="waiting").exists()
    one = Completion.objects.first()
    assert one.model == round.policy
    assert one.sampling == {"temperature": 0.7, "top_k": 0, "top_p": 1.0, "max_new_tokens": 48}
    assert Completion.objects.values("seed").distinct().count() == 12


def test_held_out_prompts_are_never_drawn(ready: Project) -> None:
    round = _open(ready, prompts=4)
    assert set(round.tasks.values_list("prompt__split", flat=True)) == {"train"}
    rounds.reject_round(round)
    with pytest.raises(LabelingError, match=r"5.*4"):
        _open(ready, prompts=5)


def test_prompts_that_no_round_has_used_come_first(ready: Project) -> None:
    first = _open(ready)
    used = set(first.tasks.values_list("prompt", flat=True))
    rounds.reject_round(first)
    assert not used & set(_open(ready, seed=2).tasks.values_list("prompt", flat=True))


def test_a_seed_repeats_the_draws(ready: Project) -> None:
    drawn = []
    for _ in range(2):
        round = _open(ready, prompts=4, seed=7)
        drawn.append(list(Completion.objects.filter(task__round=round).values_list("prompt_text", "seed")))
        rounds.reject_round(round)
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"k": 1}, {"k": 10}, {"overlap": 0}, {"prompts": 0}, {"sampling": {"top_p": 2}},
        {"plan": {"ppo": {"update": 3}}}, {"plan": {"reward": {"base": "x"}}},
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_and_nothing_is_written(ready: Project, changes: dict[str, Any]) -> None:
    with pytest.raises(RegistryError):
        _open(ready, **changes)
    assert not Round.objects.exists()
    assert not Task.objects.exists()


def test_a_second_open_round_is_refused(ready: Project) -> None:
    _open(ready)
    with pytest.raises(LabelingError, match=r"(already open|abierta)"):
        _open(ready)
    assert Round.objects.count() == 1
    assert Task.objects.count() == 2


@pytest.mark.django_db(transaction=True)
def test_two_who_open_at_once_get_one_round() -> None:
    project = Project.objects.create(name="Plaza", slug="plaza")
    policy = make_model(project)
    make_prompt(project)
    outcomes = _at_once(lambda: rounds.open_round(project=project, policy=policy, prompts=1, k=2), times=2)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["LabelingError", "Round"]
    assert Round.objects.count() == 1
    assert Completion.objects.count() == 2


def test_models_of_others_and_those_that_cannot_write_are_refused(ready: Project, other_project: Project) -> None:
    for model in (make_model(other_project), make_model(ready, "reward")):
        with pytest.raises(LabelingError, match=model.name):
            _open(ready, policy=model)


def test_no_model_and_no_prompts_are_said(project: Project) -> None:
    with pytest.raises(LabelingError, match=r"(no model|modelo)"):
        _open(project)
    make_model(project)
    with pytest.raises(LabelingError, match=r"(no training prompts|instrucci|pregunta|prompt)"):
        _open(project)


def test_tasks_open_as_their_completions_arrive(ready: Project) -> None:
    round = _open(ready)
    first = round.tasks.first()
    first.completions.update(status="done")
    _advance(round)
    assert round.status == "generating"
    assert list(round.tasks.values_list("status", flat=True)) == ["open", "waiting"]
    _write(round)
    assert round.status == "ranking"
    assert set(round.tasks.values_list("status", flat=True)) == {"open"}


def test_a_text_that_failed_stops_the_round_until_it_is_tried_again(ready: Project) -> None:
    round = _open(ready)
    failed = Completion.objects.first()
    Completion.objects.filter(pk=failed.pk).update(status="failed", error="The model is missing.")
    _write(round)
    assert (round.status, round.error) == ("generating", "The model is missing.")
    rounds.retry_round(round)
    failed.refresh_from_db()
    assert (round.error, failed.status, failed.error) == ("", "pending", "")
    _write(round)
    assert (round.status, round.error) == ("ranking", "")


def test_a_round_without_rankings_is_not_closed(ready: Project) -> None:
    round = _open(ready)
    _write(round)
    with pytest.raises(LabelingError, match=r"(Nobody|Nadie)"):
        rounds.close_round(round)
    round.refresh_from_db()
    assert round.status == "ranking"


def test_closing_twice_starts_one_reward_run(ready: Project, bob: User) -> None:
    round = _closed(ready, bob)
    with pytest.raises(LabelingError):
        rounds.close_round(Round.objects.get())
    run = Run.objects.get()
    assert (run.stage, run.base, round.reward_run) == ("reward", round.policy, run)
    assert set(round.tasks.values_list("status", flat=True)) == {"closed"}


def test_every_step_is_taken_once_however_often_it_is_pushed(ready: Project, bob: User) -> None:
    round = _closed(ready, bob, plan={"reward": {"epochs": 2}, "ppo": {"updates": 4}, "evaluate": {"seed": 5}})
    _advance(round, 5)
    assert round.status == "training_reward"
    succeed(round.reward_run, "reward", **GOOD)
    _advance(round, 5)
    assert round.status == "optimizing"
    succeed(round.ppo_run, "policy")
    _advance(round, 5)
    assert round.status == "evaluating"
    succeed(round.evaluate_run, None, win_rate=0.7)
    _advance(round, 5)
    assert round.status == "awaiting_approval"
    reward, ppo, evaluate = Run.objects.order_by("pk")
    assert [r.config for r in (reward, ppo, evaluate)] == [{"epochs": 2}, {"updates": 4}, {"seed": 5}]
    assert (ppo.base, ppo.reward_model) == (round.policy, reward.model)
    assert (evaluate.base, evaluate.reference, evaluate.reward_model) == (ppo.model, round.policy, reward.model)
    assert round.evaluation == {"win_rate": 0.7}


def _at_once(call: Any, times: int) -> list[Any]:
    start, outcomes = threading.Barrier(times), []

    def go() -> None:
        start.wait()
        try:
            outcomes.append(call())
        except Exception as error:
            outcomes.append(error)
        connection.close()

    threads = [threading.Thread(target=go) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


@pytest.mark.django_db(transaction=True)
def test_two_who_push_at_once_start_one_run() -> None:
    project = Project.objects.create(name="Plaza", slug="plaza")
    policy, prompt = make_model(project), make_prompt(project)
    reward = make_run(project, "reward")
    round = Round.objects.create(project=project, number=1, policy=policy, status="training_reward", reward_run=reward)
    Task.objects.create(project=project, kind="rank", prompt=prompt, round=round)
    succeed(reward, "reward", **GOOD)
    assert _at_once(lambda: rounds.advance_round(round), times=3) == [None] * 3
    round.refresh_from_db()
    assert round.status == "optimizing"
    assert Run.objects.filter(stage="ppo").count() == 1


def test_below_the_gate_the_round_stands_still_and_says_why(ready: Project, bob: User) -> None:
    round = _at_gate(ready, bob, **BAD)
    _advance(round, 5)
    assert round.status == "training_reward"
    for part in ("0.51", "100", "0.55"):
        assert part in round.error.replace(",", ".")
    assert not Run.objects.filter(stage="ppo").exists()


@pytest.mark.parametrize("result", [{}, {"val_accuracy": None, "val_pairs": 0}])
def test_an_unmeasured_reward_model_does_not_pass(ready: Project, bob: User, result: dict[str, Any]) -> None:
    round = _at_gate(ready, bob, **result)
    assert round.status == "training_reward"
    assert round.error


def test_a_manager_may_go_on_anyway(ready: Project, bob: User, alice: User) -> None:
    round = rounds.continue_anyway(_at_gate(ready, bob, **BAD), alice)
    assert (round.status, round.error) == ("optimizing", "")
    rounds.advance_round(round)
    assert Run.objects.filter(stage="ppo").count() == 1
    with pytest.raises(LabelingError):
        rounds.continue_anyway(round, alice)


def test_nobody_goes_on_without_a_reward_model(ready: Project, bob: User) -> None:
    round = _closed(ready, bob)
    with pytest.raises(LabelingError):
        rounds.continue_anyway(round)
    assert Run.objects.count() == 1


def test_reopened_for_more_rankings_there_is_something_to_rank(ready: Project, bob: User, dana: User) -> None:
    round = rounds.reopen_ranking(_at_gate(ready, bob, **BAD))
    assert (round.status, round.error, round.closed_at, round.overlap) == ("ranking", "", None, 2)
    assert _rank_all(round, dana) == 2
    assert Ranking.objects.exclude(slot=None).count() == 4
    rounds.close_round(round)
    assert Run.objects.filter(stage="reward").count() == 2
    succeed(round.reward_run, "reward", **GOOD)
    assert _advance(round).status == "optimizing"
    assert ModelVersion.objects.filter(kind="reward").count() == 2


def test_a_round_with_work_left_is_reopened_as_it_was(ready: Project, bob: User) -> None:
    round = _open(ready)
    _write(round)
    slot = next_task(ready, bob, "rank")
    submit_ranking(task=slot.task, user=bob, key=uuid4(), tiers=[[pk] for pk in ids(slot.task)])
    rounds.close_round(round)
    succeed(round.reward_run, "reward", **BAD)
    round = rounds.reopen_ranking(_advance(round))
    assert (round.overlap, Slot.objects.count()) == (1, 2)
    assert next_task(ready, bob, "rank") is not None


def test_only_a_round_that_stands_still_is_reopened(ready: Project, bob: User) -> None:
    with pytest.raises(LabelingError):
        rounds.reopen_ranking(_closed(ready, bob))


def test_a_failed_run_stops_the_round_and_two_clicks_retry_it_once(ready: Project, bob: User) -> None:
    round = _closed(ready, bob)
    failed = round.reward_run
    fail_run(claimed(failed), "Only 2 comparisons; this run needs 32.")
    _advance(round, 3)
    assert (round.status, round.error) == ("training_reward", "Only 2 comparisons; this run needs 32.")
    also = Round.objects.get()
    rounds.retry_round(round)
    with pytest.raises(LabelingError):
        rounds.retry_round(also)
    assert Run.objects.filter(stage="reward").count() == 2
    assert round.reward_run != failed
    assert _advance(round).error == ""


@pytest.mark.parametrize("stage", ["ppo", "evaluate"])
def test_later_steps_are_retried_with_the_same_models(ready: Project, bob: User, stage: str) -> None:
    round = _at_gate(ready, bob, **GOOD)
    if stage == "evaluate":
        succeed(round.ppo_run, "policy")
        _advance(round)
    first = getattr(round, f"{stage}_run")
    fail_run(claimed(first), "Out of memory.")
    rounds.retry_round(_advance(round))
    again = getattr(round, f"{stage}_run")
    assert again != first
    for name in ("stage", "base", "reference", "reward_model", "config"):
        assert getattr(again, name) == getattr(first, name)


def test_a_cancelled_run_stops_the_round_with_a_sentence(ready: Project, bob: User) -> None:
    round = _closed(ready, bob)
    Run.objects.update(status="cancelled")
    assert _advance(round).error


def test_nothing_is_retried_in_a_healthy_round(ready: Project, bob: User) -> None:
    round = _closed(ready, bob)
    with pytest.raises(LabelingError):
        rounds.retry_round(round)
    assert Run.objects.count() == 1


def test_a_step_that_cannot_begin_stands_on_the_round(ready: Project, bob: User) -> None:
    round = _closed(ready, bob)
    succeed(round.reward_run, "reward", **GOOD)
    Prompt.objects.filter(project=ready).update(split="holdout")
    assert _advance(round).status == "training_reward"
    assert round.error
    assert not Run.objects.filter(stage="ppo").exists()
    Prompt.objects.filter(project=ready).update(split="train")
    assert _advance(round).status == "optimizing"
    assert round.error == ""


def test_promotion_moves_the_pointer_and_the_next_round_is_written_by_it(
    ready: Project, bob: User, alice: User
) -> None:
    round = _awaiting(ready, bob)
    before, candidate = live_model(ready), round.candidate
    assert before != candidate
    rounds.promote_round(round, alice)
    assert (round.status, round.decided_by, live_model(ready)) == ("promoted", alice, candidate)
    make_model(ready, "policy", 9)  # newer, and not promoted
    following = _open(ready)
    assert (following.number, following.policy) == (2, candidate)
    assert set(Completion.objects.filter(task__round=following).values_list("model", flat=True)) == {candidate.pk}


def test_a_round_is_decided_once(ready: Project, bob: User) -> None:
    round = _awaiting(ready, bob)
    rounds.promote_round(round)
    for decide in (rounds.promote_round, rounds.reject_round):
        with pytest.raises(LabelingError):
            decide(Round.objects.get())
    assert ready.deployments.count() == 2


def test_a_round_is_not_promoted_before_its_time(ready: Project, bob: User) -> None:
    round = _at_gate(ready, bob, **GOOD)
    with pytest.raises(LabelingError):
        rounds.promote_round(round)
    assert live_model(ready) == round.policy


def test_rejection_ends_the_round_and_its_runs_and_keeps_what_people_did(ready: Project, bob: User) -> None:
    round = rounds.reject_round(_at_gate(ready, bob, **GOOD), bob)
    assert (round.status, round.decided_by) == ("rejected", bob)
    assert Run.objects.get(stage="ppo").status == "cancelled"
    assert Ranking.objects.count() == 2
    assert ModelVersion.objects.filter(kind="reward").exists()
    assert live_model(ready) == round.policy
    assert _advance(round, 3).status == "rejected"
    assert _open(ready).number == 2


def test_rejection_asks_a_running_run_to_end(ready: Project, bob: User) -> None:
    round = _closed(ready, bob)
    claimed(round.reward_run)
    rounds.reject_round(round)
    assert Run.objects.get().cancel_requested


def test_a_rejected_round_writes_no_more(ready: Project) -> None:
    round = rounds.reject_round(_open(ready))
    assert set(Completion.objects.values_list("status", flat=True)) == {"failed"}
    assert set(round.tasks.values_list("status", flat=True)) == {"closed"}
