"""Models: lineage, what is live, promotion."""

import pytest
from django.urls import reverse

from registry.models import Deployment, ModelVersion, Run
from registry.services import live_model


def _model(project, kind, parent=None, **changes):
    number = ModelVersion.objects.filter(project=project, kind=kind).count() + 1
    run = Run.objects.create(project=project, stage="sft", status="succeeded")
    return ModelVersion.objects.create(
        **{"project": project, "kind": kind, "number": number, "parent": parent, "run": run, "path": "p",
           "sha256": "f" * 64, "parameters": 1_234_567, **changes}
    )  # fmt: skip


@pytest.fixture
def alices(signed_in, alice):
    return signed_in(alice)


def _url(name, model):
    return reverse(name, args=[model.project.slug, model.pk])


def test_list_marks_the_live_model_and_only_it(alices, project):
    base = _model(project, "base")
    sft = _model(project, "sft", base)
    Deployment.objects.create(project=project, model=sft)
    text = alices.get(reverse("models", args=[project.slug])).content.decode()
    assert text.count("is-live") == 1
    assert text.index("is-live") < text.index("sft-1") < text.index("base-1")


def test_page_shows_the_whole_line_of_ancestors(alices, project):
    base = _model(project, "base")
    sft = _model(project, "sft", base)
    policy = _model(project, "policy", sft, figures={"kl": 4.321})
    page = alices.get(_url("model", policy))
    assert [m.name for m in page.context["lineage"]] == ["policy-1", "sft-1", "base-1"]
    assert "4.32" in page.content.decode()
    assert "policy-1" in alices.get(_url("model", sft)).content.decode()


def test_promotion_moves_the_pointer(alices, project, alice):
    old, new = _model(project, "sft"), _model(project, "policy")
    for model in (old, new):
        alices.post(_url("model_promote", model))
    assert live_model(project) == new
    assert Deployment.objects.filter(project=project).first().promoted_by == alice


def test_model_that_cannot_write_is_not_promoted(alices, project):
    reward = _model(project, "reward")
    assert "model_promote" not in alices.get(_url("model", reward)).content.decode()
    page = alices.post(_url("model_promote", reward), follow=True)
    assert "cannot write" in page.content.decode()
    assert live_model(project) is None


def test_live_model_offers_no_promotion(alices, project):
    model = _model(project, "sft")
    promote = _url("model_promote", model)
    assert promote in alices.get(_url("model", model)).content.decode()
    Deployment.objects.create(project=project, model=model)
    assert promote not in alices.get(_url("model", model)).content.decode()


def test_model_of_another_project_is_not_found(alices, project, other_project):
    theirs = _model(other_project, "sft")
    assert alices.get(reverse("model", args=[project.slug, theirs.pk])).status_code == 404
    assert alices.post(reverse("model_promote", args=[project.slug, theirs.pk])).status_code == 404
    assert live_model(other_project) is None


def test_only_managers_promote(signed_in, bob, charlie, project):
    model = _model(project, "sft")
    assert signed_in(bob).post(_url("model_promote", model)).status_code == 403
    assert signed_in(charlie).post(_url("model_promote", model)).status_code == 404
    assert live_model(project) is None
