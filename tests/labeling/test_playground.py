"""Asking a model: one pending completion, or one sentence."""

from typing import Any

import pytest

from accounts.models import Project, User
from labeling.errors import LabelingError
from labeling.models import Completion
from labeling.playground import SAMPLING, ask, check_sampling
from tests.make import make_model


def _ask(project: Project, **changes: Any) -> Completion:
    asked = {"project": project, "user": None, "prompt": "¿Sube?", "sampling": {}, "seed": None}
    return ask(**{**asked, **changes})


def test_a_question_waits_for_the_serve_worker_which_is_rung_after_the_commit(
    project: Project, bob: User, monkeypatch: pytest.MonkeyPatch, django_capture_on_commit_callbacks: Any
) -> None:
    rung: list[Any] = []
    monkeypatch.setattr("registry.bell.ring", lambda *args: rung.append(args))
    model = make_model(project)
    with django_capture_on_commit_callbacks(execute=True):
        asked = _ask(project, model=model, user=bob, seed=7, sampling={"top_k": 5})
    assert (asked.status, asked.model, asked.created_by, asked.seed, asked.task) == ("pending", model, bob, 7, None)
    assert asked.sampling == {**SAMPLING, "top_k": 5}
    assert rung == [("workers.serve.write", asked.pk)]


def test_without_a_seed_each_question_gets_its_own(project: Project) -> None:
    model = make_model(project)
    assert _ask(project, model=model).seed != _ask(project, model=model).seed


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_question_is_refused(project: Project, prompt: str) -> None:
    with pytest.raises(LabelingError):
        _ask(project, model=make_model(project), prompt=prompt)
    assert not Completion.objects.exists()


def test_models_of_others_and_those_that_cannot_write_are_not_asked(project: Project, other_project: Project) -> None:
    for model in (make_model(other_project), make_model(project, "reward"), make_model(project, "tokenizer")):
        with pytest.raises(LabelingError, match=model.name):
            _ask(project, model=model)
    assert not Completion.objects.exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1), ("temperature", 11), ("temperature", float("nan")), ("top_p", 1.1), ("top_k", -1),
        ("max_new_tokens", 0), ("max_new_tokens", 5000),
    ],
)  # fmt: skip
def test_sampling_out_of_range_is_refused_with_its_limits(name: str, value: float) -> None:
    with pytest.raises(LabelingError, match=name):
        check_sampling({name: value})
