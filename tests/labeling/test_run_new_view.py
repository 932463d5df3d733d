"""The form of a new run is made from the stage's own settings."""

import pytest
from django.urls import reverse

from registry.models import Dataset, ModelVersion, Run
from registry.services import settings_of


@pytest.fixture
def alices(signed_in, alice):
    return signed_in(alice)


@pytest.fixture
def text(project):
    return Dataset.objects.create(project=project, kind="corpus", name="plaza.txt", path="p", sha256="0" * 64)


def _model(project, kind):
    return ModelVersion.objects.create(project=project, kind=kind, number=1, path="p", sha256="f" * 64)


def _url(project, stage):
    return reverse("run_new", args=[project.slug, stage])


@pytest.mark.parametrize("stage", Run.Stage.values)
def test_every_setting_of_every_stage_has_a_field(alices, project, stage):
    form = alices.get(_url(project, stage)).context["form"]
    offered = [field.name for field in [*form.basic(), *form.advanced()]]
    assert sorted(offered) == sorted(setting.name for setting in settings_of(stage))
    assert len(form.basic()) >= 2


@pytest.mark.parametrize("stage", sorted(set(Run.Stage.values) - {"pretrain"}))
def test_what_a_stage_lacks_is_said_before_anything_is_filled_in(alices, project, stage):
    page = alices.get(_url(project, stage))
    assert page.context["lacking"]
    assert "disabled" in page.content.decode()


def test_only_what_differs_from_the_defaults_is_kept(alices, alice, project, text):
    tokenizer = _model(project, "tokenizer")
    form = alices.get(_url(project, "pretrain")).context["form"]
    body = {
        field.html_name: "" if field.initial is None else field.initial for field in form if field.name[:3] != "in_"
    }
    answer = alices.post(_url(project, "pretrain"), {**body, "steps": "50", "tie_head": "false"})
    run = Run.objects.get()
    assert answer["Location"] == reverse("run", args=[project.slug, run.pk])
    assert run.config == {"steps": 50, "tie_head": False}
    assert (run.tokenizer, run.base, run.created_by, list(run.datasets.all())) == (tokenizer, None, alice, [text])


def test_a_setting_out_of_range_is_said_at_its_field(alices, project, text):
    page = alices.post(_url(project, "tokenizer"), {"vocab_size": "3"})
    assert page.context["form"].errors["vocab_size"]
    assert not Run.objects.exists()


def test_a_mistake_in_the_folded_part_unfolds_it(alices, project, text):
    _model(project, "tokenizer")
    page = alices.post(_url(project, "pretrain"), {"beta2": "7"})
    assert page.context["form"].advanced_wrong()


def test_missing_base_model_is_one_sentence(alices, project, text):
    page = alices.post(_url(project, "pretrain"), {"steps": "5"})
    assert page.context["error"]
    assert page.context["error"] in page.content.decode()
    assert not Run.objects.exists()


def test_model_of_another_project_cannot_be_chosen(alices, project, other_project, text):
    theirs = _model(other_project, "tokenizer")
    page = alices.post(_url(project, "pretrain"), {"in_tokenizer": theirs.pk})
    assert page.context["form"].errors["in_tokenizer"]


def test_unknown_stage_is_not_found(alices, project):
    assert alices.get(_url(project, "magic")).status_code == 404


def test_only_managers_start_runs(signed_in, bob, charlie, project, text):
    assert signed_in(bob).post(_url(project, "tokenizer")).status_code == 403
    assert signed_in(charlie).post(_url(project, "tokenizer")).status_code == 404
    assert not Run.objects.exists()
