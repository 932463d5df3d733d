"""Figures seen together: a reward model's worth and where an update's time goes."""

from typing import Any

import pytest
from django.urls import reverse

from registry import reports
from registry.models import Metric, Run


def _result(**changes: Any) -> dict[str, Any]:
    group = {"accuracy": 0.7, "low": 0.6, "high": 0.79, "pairs": 90}
    result = {
        "val_accuracy": 0.72, "val_accuracy_low": 0.68, "val_accuracy_high": 0.76, "val_pairs": 500,
        "length_baseline": 0.55, "agreement": {"accuracy": 0.8, "low": 0.77, "high": 0.83, "pairs": 600},
        "by_annotator": {"person-3": group, "imported": group}, "by_policy": {"sft-1": group},
        "calibration": [{"gap": 0.1, "predicted": 0.55, "accuracy": 0.5, "pairs": 100},
                        {"gap": 2.0, "predicted": 0.88, "accuracy": 0.8, "pairs": 400}],
        "calibration_error": 0.07,
    }  # fmt: skip
    return {**result, **changes}


@pytest.fixture
def _no_people(db: None) -> None: ...


@pytest.mark.usefixtures("_no_people")
class TestReward:
    def test_three_accuracies_stand_side_by_side(self) -> None:
        said = reports.reward_report(_result())
        assert [bar["accuracy"] for bar in said["bars"]] == [0.72, 0.55, 0.8]
        assert said["bars"][0] | {"at": "72.0", "start": "68.0", "wide": "8.0", "verdict": "better"} == said["bars"][0]
        assert "wide" not in said["bars"][1]  # what length alone reaches has no interval

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({}, "more than the length"),
            ({"length_baseline": 0.7}, "does not clearly beat the length"),
            ({}, "Two people agree more often"),
            ({"agreement": {"accuracy": 0.74, "low": 0.7, "high": 0.78, "pairs": 9}}, "about as surely as two people"),
            ({"agreement": None}, "No two people ranked the same answers"),
        ],
    )
    def test_a_sentence_says_what_the_bars_mean(self, changes: dict[str, Any], words: str) -> None:
        assert words in " ".join(reports.reward_report(_result(**changes))["verdicts"])

    @pytest.mark.parametrize(("accuracy", "words"), [(0.8, "surer"), (0.88, "about what"), (0.95, "less sure")])
    def test_calibration_in_words(self, accuracy: float, words: str) -> None:
        bins = [{"gap": 2.0, "predicted": 0.88, "accuracy": accuracy, "pairs": 400}]
        assert words in reports.reward_report(_result(calibration=bins))["calibration_words"]

    def test_points_stand_where_the_axes_say(self) -> None:
        bins = [{"gap": 9.0, "predicted": 1.0, "accuracy": 1.0, "pairs": 5},
                {"gap": 0.0, "predicted": 0.5, "accuracy": 0.1, "pairs": 5}]  # fmt: skip
        points = reports.reward_report(_result(calibration=bins))["calibration"]
        assert (points[0]["x"], points[0]["y"]) == ("352.0", "12.0")
        assert (points[1]["x"], points[1]["y"]) == ("60.0", "208.0")  # below the picture: at its edge

    def test_nothing_is_said_without_held_out_pairs(self) -> None:
        assert reports.reward_report({"val_accuracy": None, "val_pairs": 0}) == {}
        assert reports.reward_report({}) == {}
        assert reports.reward_report({"val_accuracy": 0.7}) == {}  # a run of an older version


def test_annotators_have_the_names_they_sign_in_with(bob):
    group = {"accuracy": None, "low": 0.0, "high": 1.0, "pairs": 0}
    said = reports.reward_report(_result(by_annotator={f"person-{bob.pk}": group, "person-99": group, "expert": group}))
    assert [bar["label"] for bar in said["by_annotator"]] == ["bob", "person-99", "expert"]


def test_phases_are_means_and_shares():
    rows = [
        {"seconds_rollout": 1.0, "seconds_scoring": 0.5, "seconds_update": 0.5, "sampler_gap": 1e-6},
        {"seconds_rollout": 3.0, "seconds_scoring": 0.5, "seconds_update": 2.5, "sampler_gap": 3e-6},
        {"loss": 1.0},
    ]
    said = reports.phases(rows)
    assert [part["wide"] for part in said["parts"]] == ["50.0", "12.5", "37.5"]
    assert said["whole"].startswith("4")
    assert (said["gap"], said["gap_is_small"]) == (3e-6, True)
    assert not reports.phases([{**rows[0], "sampler_gap": 0.02}])["gap_is_small"]
    assert reports.phases([{"loss": 1.0}]) == {}


def test_the_page_of_a_run_shows_both(signed_in, alice, project):
    client = signed_in(alice)
    reward = Run.objects.create(project=project, stage="reward", status="succeeded", result=_result())
    page = client.get(reverse("run", args=[project.slug, reward.pk])).content.decode()
    assert "How good this reward model is" in page
    assert "People among themselves" in page
    assert "claimed 88.0%, right in 80.0% of 400 pairs" in page
    ppo = Run.objects.create(project=project, stage="ppo", status="running")
    figures = {"seconds_rollout": 1.0, "seconds_scoring": 0.5, "seconds_update": 0.5, "sampler_gap": 0.02}
    Metric.objects.create(run=ppo, step=1, values=figures)
    page = client.get(reverse("run", args=[project.slug, ppo.pk])).content.decode()
    assert "2 s for each update".replace(" s", "\N{NO-BREAK SPACE}s") in page
    assert "Products in bf16 round that much" in page
    assert "How good this reward model is" not in page
