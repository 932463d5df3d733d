"""The page of methods side by side, and its button."""

import json
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.urls import reverse

from registry.models import Run
from tests.labeling.test_compare import World
from tests.make import make_model


@pytest.fixture(autouse=True)
def _own_artifacts(artifacts: Path) -> None: ...


@pytest.fixture
def world(project):
    return World(project)


@pytest.fixture
def alices(signed_in, alice):
    return signed_in(alice)


def _url(project, name="compare"):
    return reverse(name, args=[project.slug])


def test_a_project_without_policies_is_told_what_to_do(alices, project):
    page = alices.get(_url(project)).content.decode()
    assert "Nothing to compare yet" in page
    assert reverse("run_new", args=[project.slug, "dpo"]) in page


def test_the_page_shows_every_method_with_its_interval_and_its_time(alices, world):
    ppo = world.trained("ppo")
    world.evaluated(ppo.model, 0.613)
    answer = alices.get(_url(world.project))
    page = answer.content.decode()
    assert "61.3%" in page
    assert "56.3%" in page
    assert "a proxy judges itself" in page
    assert reverse("model", args=[world.project.slug, ppo.model.pk]) in page
    assert "not measured yet" in page  # best of n
    labels = [series["label"] for series in answer.context["page_data"]["series"]]
    assert labels == ["Reference · sft-1", f"PPO · {ppo.model.name}"]
    assert answer.context["page_data"]["series"][1]["points"] == [{"kl": 1.0, "reward": 0.4, "win_rate": 0.613}]


def test_the_button_queues_what_is_missing_and_is_gone_then(alices, alice, world):
    world.trained("dpo")
    assert "Evaluate what is missing" in alices.get(_url(world.project)).content.decode()
    answer = alices.post(_url(world.project, "compare_evaluate"), {"reference": world.reference.pk}, follow=True)
    page = answer.content.decode()
    assert "2 runs are in the queue" in page
    assert f"reference={world.reference.pk}" in answer.redirect_chain[0][0]
    assert "Evaluate what is missing" not in page
    assert "Queued" in page
    assert {run.created_by for run in Run.objects.filter(status="queued")} == {alice}
    again = alices.post(_url(world.project, "compare_evaluate"), follow=True).content.decode()
    assert "nothing to evaluate" in again


def test_a_busy_page_asks_again_with_its_own_choices(alices, world):
    world.trained("dpo")
    alices.post(_url(world.project, "compare_evaluate"))
    page = alices.get(_url(world.project), {"reference": world.reference.pk}).content.decode()
    assert f'hx-get="{_url(world.project)}?reference={world.reference.pk}&amp;seen=' in page


def test_a_model_of_another_project_or_kind_is_not_found(alices, world, other_project):
    theirs = make_model(other_project, "sft")
    for given in ({"reference": theirs.pk}, {"judge": world.reference.pk}, {"reference": "x"}, {"judge": "9" * 30}):
        assert alices.get(_url(world.project), given).status_code == 404
        assert alices.post(_url(world.project, "compare_evaluate"), given).status_code == 404
    assert not Run.objects.exists()


def test_only_managers_compare(signed_in, bob, rita, charlie, world):
    world.trained("dpo")
    for name, verb in (("compare", "get"), ("compare_evaluate", "post")):
        url = _url(world.project, name)
        assert getattr(signed_in(bob), verb)(url).status_code == 403
        assert getattr(signed_in(rita), verb)(url).status_code == 403
        assert getattr(signed_in(charlie), verb)(url).status_code == 404
    assert not Run.objects.filter(status="queued").exists()


def test_evaluating_needs_a_post(alices, project):
    assert alices.get(_url(project, "compare_evaluate")).status_code == 405


def test_annotators_have_no_link_to_it(signed_in, bob, alice, project):
    assert _url(project) in signed_in(alice).get(reverse("overview", args=[project.slug])).content.decode()
    assert _url(project) not in signed_in(bob).get(reverse("home")).content.decode()


def _command(*arguments: str) -> dict:
    out = StringIO()
    call_command("compare", *arguments, "--json", stdout=out)
    return json.loads(out.getvalue())


def test_the_command_says_the_same_as_json(world):
    dpo = world.trained("dpo")
    world.evaluated(dpo.model, 0.7)
    said = _command("--project", world.project.slug)
    assert (said["reference"], said["judge"], said["started"]) == ("sft-1", "reward-1", [])
    row = said["rows"][1]
    assert (row["method"], row["model"], row["win_rate"], row["seconds"]) == ("DPO", dpo.model.name, 0.7, 10.0)
    started = _command("--project", world.project.slug, "--evaluate")["started"]
    assert [Run.objects.get(pk=pk).stage for pk in started] == ["best_of_n"]


def test_the_command_refuses_a_model_of_another_project(world, other_project):
    make_model(other_project, "sft", 9)
    with pytest.raises(CommandError, match="no model 'sft-9'"):
        call_command("compare", "--project", world.project.slug, "--reference", "sft-9")
