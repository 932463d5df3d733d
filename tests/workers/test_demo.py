"""The demo's steps: each is done once, and what people are to do is left to them."""

import stat

import pytest

from accounts.models import Membership, Project
from labeling.models import Demonstration, Prompt, Task
from labeling.world import recipe
from registry.models import Dataset
from workers import demo

SMALL = {"CHARACTERS": 3_000, "DEMONSTRATIONS": 80, "PROMPTS": {"train": 30, "holdout": 10}, "LEFT_TO_WRITE": 4}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, settings, tmp_path) -> None:
    settings.BUCLE_HOME, settings.ARTIFACTS = tmp_path, tmp_path / "artifacts"
    demo.folder().mkdir(parents=True)
    for name, value in SMALL.items():
        monkeypatch.setattr(recipe, name, value)


def _counts(project: Project) -> list[int]:
    tables = (Dataset, Prompt, Demonstration, Task)
    return [table.objects.filter(project=project).count() for table in tables]


def test_passwords_are_made_once_and_kept_from_others(db: None) -> None:
    project = demo.project_for(1)
    first = demo.people(project)
    assert demo.people(project) == first
    assert set(first) == set(demo.PEOPLE)
    assert stat.S_IMODE((demo.folder() / "passwords.json").stat().st_mode) == 0o600
    assert Membership.objects.get(project=project, user__username="alice").user.check_password(first["alice"])


def test_a_password_can_be_chosen(db: None) -> None:
    assert set(demo.people(demo.project_for(1), "chosen-by-the-person").values()) == {"chosen-by-the-person"}


def test_each_seed_and_language_has_a_project_of_its_own(db: None) -> None:
    slugs = [demo.project_for(seed, language).slug for seed, language in [(1, "es"), (2, "es"), (1, "en"), (1, "es")]]
    assert slugs == ["la-plaza", "la-plaza-2", "the-market", "la-plaza"]


@pytest.mark.parametrize("language", ["es", "en"])
def test_data_comes_in_once(db: None, language: str) -> None:
    project = demo.project_for(1, language)
    demo.data(project, 1, language)
    before = _counts(project)
    demo.data(project, 1, language)
    assert _counts(project) == before
    assert before[0] == 4


def test_questions_are_left_to_people_and_held_out_ones_are_never_shown(db: None) -> None:
    project = demo.project_for(1)
    demo.data(project, 1, "es")
    assert Task.objects.filter(project=project, kind=Task.Kind.WRITE).count() >= SMALL["LEFT_TO_WRITE"]
    shown = Demonstration.objects.filter(project=project)
    assert shown.exists()
    assert not shown.filter(prompt__split=Prompt.Split.HOLDOUT).exists()
    assert Prompt.objects.filter(project=project, split=Prompt.Split.HOLDOUT).count() == 10
