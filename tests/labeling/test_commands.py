"""train, round, promote and simulate: one JSON object, or one sentence."""

import json
from io import StringIO
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command

from accounts.models import Project, User
from labeling import rounds, world
from labeling.judging import submit_ranking
from labeling.management.commands.train import parse_setting
from labeling.models import Completion, Demonstration, Ranking, Round
from labeling.queue import next_task
from registry.lifecycle import fail_run
from registry.models import Run
from registry.services import RegistryError, live_model, promote
from tests.make import claimed, ids, make_model, make_prompt, succeed


def _manage(*args: Any, **options: Any) -> dict[str, Any]:
    out = StringIO()
    call_command(*args, project="plaza", json=True, stdout=out, stderr=StringIO(), **options)
    said = json.loads(out.getvalue())
    assert isinstance(said, dict)
    return said


@pytest.fixture
def ready(project: Project) -> Project:
    promote(model=make_model(project, "sft"))
    for prompt in world.prompts(1, 3, "es", split="train"):
        make_prompt(project, prompt.text)
    return project


def _ranked_round(project: Project, user: User) -> Round:
    _manage("round", "open", prompts=2, k=2)
    Completion.objects.update(status="done", text="Sube.")
    round = Round.objects.get()
    rounds.advance_round(round)
    while (slot := next_task(project, user, "rank")) is not None:
        submit_ranking(task=slot.task, user=user, key=uuid4(), tiers=[[pk] for pk in ids(slot.task)])
    return round


def test_train_queues_a_run_with_its_settings_and_model(project: Project) -> None:
    older = make_model(project, "base", 1)
    make_model(project, "base", 2)
    Demonstration.objects.create(project=project, prompt=make_prompt(project), response="Sí.")
    said = _manage("train", "sft", base="base-1", set=["epochs=2", "learning_rate=1e-3"])
    run = Run.objects.get()
    assert (said["run"], said["stage"], said["status"]) == (run.pk, "sft", "queued")
    assert (run.config, run.base) == ({"epochs": 2, "learning_rate": 0.001}, older)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("preset=gpt2", "gpt2"), ("steps=30", 30), ("learning_rate=3e-4", 3e-4), ("norm=post", "post"),
        ("tie_head=false", False), ("dropout=None", None), ("sample_prompt=1=2", "1=2"), ("sample_prompt=007", "007"),
    ],
)  # fmt: skip
def test_a_setting_is_read_in_its_own_type(text: str, value: Any) -> None:
    assert parse_setting("pretrain", text) == (text.split("=")[0], value)


@pytest.mark.parametrize("text", ["steps", "stepz=3"])
def test_a_setting_that_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(RegistryError, match="step"):
        parse_setting("pretrain", text)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"project": "nowhere"}, "There is no project 'nowhere'; there are: plaza."),
        ({"base": "base-9"}, "There is no model 'base-9'"),
        ({"set": ["epochs=0"]}, "epochs is 0: it must be at least 1."),
        ({"set": ["data=x"]}, "data is chosen by the platform"),
    ],
)
def test_train_says_in_one_sentence_what_is_wrong(project: Project, options: dict[str, Any], sentence: str) -> None:
    make_model(project, "base")
    Demonstration.objects.create(project=project, prompt=make_prompt(project), response="Sí.")
    with pytest.raises(CommandError) as caught:
        call_command("train", "sft", **{"project": "plaza", **options})
    assert sentence in str(caught.value)
    assert not Run.objects.exists()


@pytest.mark.parametrize("ends_well", [True, False])
def test_train_waits_for_the_end(project: Project, monkeypatch: pytest.MonkeyPatch, ends_well: bool) -> None:
    make_model(project, "base")
    Demonstration.objects.create(project=project, prompt=make_prompt(project), response="Sí.")

    def end(_seconds: float) -> None:
        run = Run.objects.get()
        succeed(run, "sft", val_loss=1.0) if ends_well else fail_run(claimed(run), "Out of memory.")

    monkeypatch.setattr("labeling.management.commands.train.time.sleep", end)
    if ends_well:
        said = _manage("train", "sft", wait=True)
        assert (said["status"], said["model"], said["result"]) == ("succeeded", "sft-1", {"val_loss": 1.0})
    else:
        with pytest.raises(CommandError, match=r"failed: Out of memory\."):
            _manage("train", "sft", wait=True)


def test_a_round_from_the_command_line(ready: Project, bob: User) -> None:
    opened = _manage("round", "open", prompts=2, k=3, overlap=2, temperature=0.5, seed=4)
    assert (opened["round"], opened["status"], opened["policy"]) == (1, "generating", "sft-1")
    assert (opened["completions"], opened["slots"]) == (6, 4)
    assert Round.objects.get().sampling["temperature"] == 0.5
    assert _manage("round", "status")["completions_done"] == 0
    with pytest.raises(CommandError):
        _manage("round", "open")
    assert _manage("round", "reject")["status"] == "rejected"
    assert _manage("round", "status")["round"] == 1
    with pytest.raises(CommandError, match="No round is open in plaza"):
        _manage("round", "close")


def test_a_round_is_closed_continued_and_promoted(ready: Project, bob: User) -> None:
    round = _ranked_round(ready, bob)
    assert _manage("round", "close")["status"] == "training_reward"
    succeed(Run.objects.get(), "reward", val_accuracy=0.4, val_pairs=9)
    rounds.advance_round(round)
    assert _manage("round", "status")["error"]
    assert _manage("round", "continue")["status"] == "optimizing"
    succeed(Run.objects.get(stage="ppo"), "policy")
    rounds.advance_round(round)
    succeed(Run.objects.get(stage="evaluate"), None, win_rate=0.6)
    rounds.advance_round(round)
    said = _manage("round", "promote")
    assert (said["status"], said["candidate"], said["evaluation"]) == ("promoted", "policy-1", {"win_rate": 0.6})
    assert live_model(ready).name == "policy-1"


def test_a_round_is_reopened_and_retried(ready: Project, bob: User) -> None:
    round = _ranked_round(ready, bob)
    _manage("round", "close")
    fail_run(claimed(Run.objects.get()), "Only 2 comparisons.")
    rounds.advance_round(round)
    assert _manage("round", "reopen")["status"] == "ranking"
    _manage("round", "close")
    fail_run(claimed(Run.objects.first()), "Only 2 comparisons.")
    rounds.advance_round(round)
    assert _manage("round", "retry")["error"] == ""
    assert Run.objects.count() == 3


def test_promote_ends_the_round_that_waits_for_it(ready: Project, bob: User) -> None:
    round = _ranked_round(ready, bob)
    _manage("round", "close")
    for kind, result in (("reward", {"val_accuracy": 0.9, "val_pairs": 9}), ("policy", {}), (None, {})):
        succeed(Run.objects.first(), kind, **result)
        rounds.advance_round(round)
    assert _manage("promote", "policy-1") == {"project": "plaza", "live": "policy-1"}
    assert Round.objects.get().status == "promoted"
    assert _manage("promote", "sft-1")["live"] == "sft-1"
    assert live_model(ready).name == "sft-1"


def test_simulate_ranks_what_waits(ready: Project) -> None:
    _manage("round", "open", prompts=2, k=2)
    Completion.objects.update(status="done", text="Sube.")
    rounds.advance_round(Round.objects.get())
    assert _manage("simulate", annotators=2, noise=0.1) == {"project": "plaza", "simulated_rankings": 2}
    assert Ranking.objects.filter(source="simulated").count() == 2
    with pytest.raises(CommandError):
        _manage("simulate", noise=0.9)
