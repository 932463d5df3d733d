"""Rounds in the browser: open, watch, close, decide, and go on where one stands still."""

import pytest
from django.urls import reverse
from django.utils.timezone import now

from labeling.models import Completion, Prompt, Ranking, Round, Slot, Task
from labeling.rounds import open_round
from registry.models import Deployment, ModelVersion, Run, Sample, WorkerProcess
from registry.services import live_model


@pytest.fixture
def alices(signed_in, alice):
    return signed_in(alice)


def _model(project, kind, run=None):
    number = ModelVersion.objects.filter(project=project, kind=kind).count() + 1
    return ModelVersion.objects.create(project=project, kind=kind, number=number, path="p", sha256="f" * 64, run=run)


@pytest.fixture
def policy(project):
    model = _model(project, "sft")
    Deployment.objects.create(project=project, model=model)
    for n in range(5):
        Prompt.objects.create(project=project, text=f"¿Cuánto cuestan {n} panes?")
    return model


@pytest.fixture
def ranking(project, alice, bob, policy):
    """A round whose completions are written and of whose two rankings one is done."""
    round = open_round(project=project, by=alice, prompts=2, k=2)
    Completion.objects.update(status="done", text="Dos monedas.")
    Task.objects.update(status="open")
    Round.objects.update(status="ranking")
    task = Task.objects.first()
    Slot.objects.filter(task=task).update(done_at=now(), holder=bob)
    Ranking.objects.create(
        project=project, task=task, annotator=bob, source="simulated",
        tiers=[[c.pk] for c in task.completions.all()],
    )  # fmt: skip
    round.refresh_from_db()
    return round


@pytest.fixture
def decided_by_people(project, ranking):
    """The same round, trained and evaluated."""
    run = {s: Run.objects.create(project=project, stage=s, status="succeeded") for s in ("reward", "ppo", "evaluate")}
    _model(project, "reward", run["reward"])
    _model(project, "policy", run["ppo"])
    run["evaluate"].result = {
        "win_rate": 0.71, "win_rate_low": 0.65, "win_rate_high": 0.76, "reward_new": 1.2, "reward_old": 0.1,
        "kl": 4.4, "eos_new": 0.99, "eos_old": 0.9, "prompts": 240,
    }  # fmt: skip
    run["evaluate"].save()
    values = {"step": 0, "prompt": "¿Pan?", "new": "Con gusto.", "old": "No.", "reward_new": 1.0, "reward_old": -1.0}
    Sample.objects.create(run=run["evaluate"], position=0, values=values)
    Round.objects.update(
        status="awaiting_approval", reward_run=run["reward"], ppo_run=run["ppo"], evaluate_run=run["evaluate"]
    )
    ranking.refresh_from_db()
    return ranking


def _page(client, round):
    return client.get(reverse("round", args=[round.project.slug, round.number]))


def _act(client, round, action, **more):
    return client.post(reverse("round_act", args=[round.project.slug, round.number, action]), **more)


def _form(client, project, **changes):
    form = client.get(reverse("round_new", args=[project.slug])).context["form"]
    values = {field.name: field.value() for field in form}
    return {**values, **changes}


def test_opening_a_round(alices, alice, project, policy):
    body = _form(alices, project, prompts=3, k=4, temperature="0.7", ppo_updates=12)
    answer = alices.post(reverse("round_new", args=[project.slug]), body)
    made = Round.objects.get()
    assert answer["Location"] == reverse("round", args=[project.slug, 1])
    assert (made.policy, made.k, made.opened_by, made.sampling["temperature"]) == (policy, 4, alice, 0.7)
    assert made.plan["ppo"] == {"updates": 12, "max_new_tokens": 48}
    assert Completion.objects.count() == 12


def test_the_live_model_writes_unless_another_is_chosen(alices, project, policy):
    newer = _model(project, "sft")
    form = alices.get(reverse("round_new", args=[project.slug])).context["form"]
    assert form["policy"].value() == policy.pk
    alices.post(reverse("round_new", args=[project.slug]), _form(alices, project, policy=newer.pk))
    assert Round.objects.get().policy == newer


def test_more_prompts_than_there_are_is_one_sentence(alices, project, policy):
    page = alices.post(reverse("round_new", args=[project.slug]), _form(alices, project, prompts=99))
    assert "5" in page.context["error"]
    assert not Round.objects.exists()


def test_a_second_round_waits_for_the_first(alices, project, ranking):
    page = alices.get(reverse("round_new", args=[project.slug]))
    assert "disabled" in page.content.decode()
    page = alices.post(reverse("round_new", args=[project.slug]), _form(alices, project, prompts=2))
    assert page.context["error"]
    assert Round.objects.count() == 1


def test_k_must_lie_between_two_and_nine(alices, project, policy):
    page = alices.post(reverse("round_new", args=[project.slug]), _form(alices, project, k=1))
    assert page.context["form"].errors["k"]


def test_page_shows_progress_and_marks_simulated_rankings(alices, ranking):
    page = _page(alices, ranking)
    assert page.context is not None
    text = page.content.decode()
    assert "1 simulated" in text
    assert 'aria-valuenow="1"' in text
    assert 'aria-current="step"' in text


def test_page_says_which_worker_it_waits_for(alices, project, alice, policy):
    round = open_round(project=project, by=alice, prompts=2, k=2)
    assert "serve worker" in _page(alices, round).content.decode()
    WorkerProcess.objects.create(name="s", queue="serve", seen_at=now())
    assert "waits for a serve worker" not in _page(alices, round).content.decode()


def test_closing_starts_the_reward_model(alices, ranking):
    _act(alices, ranking, "close")
    ranking.refresh_from_db()
    assert ranking.status == "training_reward"
    assert ranking.reward_run.stage == "reward"


def test_closing_twice_starts_one_run(alices, ranking):
    _act(alices, ranking, "close")
    assert "cannot be closed" in _act(alices, ranking, "close", follow=True).content.decode()
    assert Run.objects.filter(stage="reward").count() == 1


def test_decision_page_shows_the_figures_and_answers_side_by_side(alices, decided_by_people):
    text = _page(alices, decided_by_people).content.decode()
    for part in ("71.0%", "65.0%", "76.0%", "1.2", "4.4", "Con gusto.", "The new policy is better."):
        assert part in text


@pytest.mark.parametrize(
    ("low", "high", "said"), [(0.4, 0.6, "does not settle"), (0.2, 0.4, "is worse"), (0.6, 0.8, "is better")]
)
def test_interval_decides_what_is_said(alices, decided_by_people, low, high, said):
    result = {**decided_by_people.evaluate_run.result, "win_rate": (low + high) / 2}
    Run.objects.filter(stage="evaluate").update(result={**result, "win_rate_low": low, "win_rate_high": high})
    assert said in _page(alices, decided_by_people).content.decode()


def test_promotion_makes_the_new_policy_live(alices, project, decided_by_people):
    _act(alices, decided_by_people, "promote")
    assert live_model(project).name == "policy-1"
    assert "every 3s" not in _page(alices, decided_by_people).content.decode()


def test_rejection_keeps_the_old_policy(alices, project, policy, decided_by_people):
    _act(alices, decided_by_people, "reject")
    decided_by_people.refresh_from_db()
    assert decided_by_people.status == "rejected"
    assert live_model(project) == policy


def test_round_that_stands_still_shows_why_and_offers_the_ways_on(alices, project, ranking):
    run = Run.objects.create(project=project, stage="reward", status="succeeded", result={"val_accuracy": 0.4})
    _model(project, "reward", run)
    Round.objects.update(status="training_reward", reward_run=run, error="Below the gate.")
    text = _page(alices, ranking).content.decode()
    assert "Below the gate." in text
    for action in ("retry", "reopen", "continue"):
        assert reverse("round_act", args=[project.slug, 1, action]) in text
    _act(alices, ranking, "reopen")
    ranking.refresh_from_db()
    assert (ranking.status, ranking.error) == ("ranking", "")


def test_retry_starts_the_failed_step_again(alices, project, ranking):
    failed = Run.objects.create(project=project, stage="reward", status="failed", error="It broke.")
    Round.objects.update(status="training_reward", reward_run=failed, error="It broke.")
    _act(alices, ranking, "retry")
    ranking.refresh_from_db()
    assert ranking.reward_run != failed
    assert ranking.error == ""


def test_unknown_action_and_foreign_round_are_not_found(alices, signed_in, charlie, other_project, ranking):
    assert _act(alices, ranking, "explode").status_code == 404
    assert _act(signed_in(charlie), ranking, "close").status_code == 404
    assert signed_in(charlie).get(reverse("round", args=[other_project.slug, 1])).status_code == 404


def test_only_managers_steer(signed_in, bob, rita, ranking):
    for person in (bob, rita):
        assert _page(signed_in(person), ranking).status_code == 403
        assert _act(signed_in(person), ranking, "close").status_code == 403
    ranking.refresh_from_db()
    assert ranking.status == "ranking"


def test_list_shows_the_win_rate(alices, project, decided_by_people):
    assert "71.0%" in alices.get(reverse("rounds", args=[project.slug])).content.decode()


def test_part_is_204_until_something_changes(alices, ranking):
    url = reverse("round", args=[ranking.project.slug, 1])
    seen = _page(alices, ranking).content.decode().split('data-seen="')[1].split('"')[0]
    assert alices.get(f"{url}?seen={seen}", headers={"HX-Request": "true"}).status_code == 204
    Slot.objects.update(done_at=now())
    assert alices.get(f"{url}?seen={seen}", headers={"HX-Request": "true"}).status_code == 200
