"""What people ask of the registry: it is done, or refused with one sentence and nothing half-written."""

import time
from typing import Any

import pytest
from django.utils.timezone import now, timedelta

from accounts.models import Project, User
from registry.lifecycle import reconcile_runs
from registry.models import Dataset, Deployment, Run
from registry.services import (
    RegistryError,
    cancel_run,
    check_settings,
    find_model,
    find_project,
    live_model,
    promote,
    settings_of,
    start_run,
)  # fmt: skip
from tests.make import claimed, make_model, make_run


def test_a_started_run_is_queued_and_rung_for_after_the_commit(
    project: Project, alice: User, bell: Any, django_capture_on_commit_callbacks: Any
) -> None:
    base = make_model(project, "base")
    with django_capture_on_commit_callbacks(execute=True):
        run = start_run(project=project, stage="sft", base=base, config={"epochs": 2}, by=alice)
        assert bell.rung == []
    assert bell.rung == [("workers.train", run.pk)]
    run.refresh_from_db()
    assert (run.status, run.config, run.base, run.created_by) == ("queued", {"epochs": 2}, base, alice)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"epoch": 2}, "did you mean 'epochs'"),
        ({"epochs": "many"}, "epochs is 'many': it must be a whole number"),
        ({"epochs": 0}, "epochs is 0: it must be at least 1"),
        ({"data": "/etc/passwd"}, "data is chosen by the platform"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_and_no_run_made(
    project: Project, config: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(RegistryError, match=sentence):
        start_run(project=project, stage="sft", config=config)
    assert not Run.objects.exists()


def test_nothing_of_another_project_goes_into_a_run(project: Project, other_project: Project) -> None:
    with pytest.raises(RegistryError, match="sft-1 belongs to another project: choose one of Plaza"):
        start_run(project=project, stage="sft", base=make_model(other_project))
    theirs = Dataset.objects.create(project=other_project, kind="corpus", name="secret.txt", path="x", sha256="0")
    with pytest.raises(RegistryError, match=r"secret\.txt belongs to another project"):
        start_run(project=project, stage="pretrain", datasets=[theirs])
    assert not Run.objects.exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("how", ["refused", "silent"])
def test_without_redis_a_run_starts_at_once_and_is_rung_for_later(
    how: str, silent_url: str, use_redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_redis(silent_url if how == "silent" else "redis://127.0.0.1:1/0")
    project = Project.objects.create(name="Plaza", slug="plaza")
    began = time.monotonic()
    run = start_run(project=project, stage="sft", base=make_model(project, "base"))
    assert time.monotonic() - began < 3
    assert Run.objects.get(pk=run.pk).status == "queued"
    rung: list[Any] = []
    monkeypatch.setattr("registry.lifecycle.ring", lambda *args: bool(rung.append(args)) or True)
    Run.objects.update(rung_at=now() - timedelta(minutes=1))
    reconcile_runs()
    assert rung == [("workers.train", run.pk)]


def test_a_queued_run_is_cancelled_at_once(project: Project) -> None:
    run, other = make_run(project), make_run(project)
    assert cancel_run(run)
    run.refresh_from_db()
    other.refresh_from_db()
    assert (run.status, other.status) == ("cancelled", "queued")
    assert run.finished_at


def test_a_running_run_is_asked_to_end(project: Project) -> None:
    run = claimed(make_run(project))
    assert cancel_run(run)
    run.refresh_from_db()
    assert (run.status, run.cancel_requested) == ("running", True)


@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled"])
def test_a_run_that_is_over_cannot_be_cancelled(project: Project, status: str) -> None:
    run = make_run(project, status=status)
    assert not cancel_run(run)
    run.refresh_from_db()
    assert (run.status, run.cancel_requested) == (status, False)


def test_promotion_moves_the_pointer_and_keeps_the_history(
    project: Project, alice: User, other_project: Project
) -> None:
    first, second = make_model(project, "sft"), make_model(project, "policy")
    assert live_model(project) is None
    promote(model=first, by=alice)
    promote(model=second, by=alice)
    assert live_model(project) == second
    promote(model=first, by=alice)
    assert live_model(project) == first
    assert Deployment.objects.count() == 3
    assert live_model(other_project) is None


@pytest.mark.parametrize("kind", ["tokenizer", "reward"])
def test_what_cannot_write_is_not_promoted(project: Project, kind: str) -> None:
    with pytest.raises(RegistryError, match=rf"{kind}-1 is of kind '.+' and cannot write"):
        promote(model=make_model(project, kind))
    assert not Deployment.objects.exists()


def test_a_model_is_found_by_its_name_and_by_its_project(project: Project, other_project: Project) -> None:
    mine, theirs = make_model(project, "policy", 3), make_model(other_project, "policy", 3)
    assert find_model("plaza/policy-3") == mine
    assert find_model("policy-3", other_project) == theirs
    with pytest.raises(RegistryError, match=r"2 projects have a policy-3: write (plaza|puerto)/policy-3"):
        find_model("policy-3")
    for name in ("policy-4", "policy-²", "nonsense", "", "policy-99999999999999999999999", "plaza/policy-"):
        with pytest.raises(RegistryError, match=r"there are: .*plaza/policy-3"):
            find_model(name)


def test_a_wrong_project_is_answered_with_those_there_are(project: Project) -> None:
    assert find_project("plaza") == project
    with pytest.raises(RegistryError, match="no project 'plazza'; there are: plaza"):
        find_project("plazza")


def test_people_choose_settings_the_platform_fills_in_the_files() -> None:
    names = {field.name for field in settings_of("ppo")}
    assert {"updates", "kl_coef", "seed"} <= names
    assert not names & {"base", "reward_model", "prompts", "demonstrations"}
    check_settings("ppo", {"ptx_coef": 0.5})
    for stage in Run.Stage.values:
        check_settings(stage, {})
