"""What a run's figures say together: how good a reward model is, and where an update's time goes."""

from collections.abc import Iterable
from typing import Any

from django.utils.translation import gettext as _

from accounts.models import User
from registry import figures

# The picture of the calibration, in units of its viewBox; both axes are shares.
LEFT, RIGHT, TOP, BOTTOM = 60.0, 352.0, 12.0, 208.0
LOWEST_PREDICTED, LOWEST_RIGHT = 0.5, 0.3  # a model never claims less than chance; few bins are right less often
PHASES = ("rollout", "scoring", "update")
SMALL_GAP = 1e-3  # nats: fp32 stays far below, bf16 does not
CLEARLY = 0.03  # a distance of prediction and accuracy that deserves a word


def reward_report(result: dict[str, Any]) -> dict[str, Any]:
    """Accuracies with intervals, the calibration as points, and a sentence for each; {} without held-out pairs."""
    if result.get("val_accuracy") is None or "calibration" not in result:
        return {}
    model = {"accuracy": result["val_accuracy"], "pairs": result["val_pairs"]}
    model |= {"low": result["val_accuracy_low"], "high": result["val_accuracy_high"]}
    agreement = result.get("agreement")
    against = [(_("This reward model"), model), (_("“The longer (or shorter) answer wins”"), _length_alone(result))]
    against += [(_("People among themselves"), agreement)] if agreement else []
    return {
        "bars": [bar(label, entry) for label, entry in against if entry],
        "verdicts": [_against_length(result), _against_people(result, agreement)],
        "by_annotator": [bar(label, entry) for label, entry in _named(result.get("by_annotator", {}))],
        "by_policy": [bar(label, entry) for label, entry in result.get("by_policy", {}).items()],
        "calibration": [_point(entry) for entry in result["calibration"]],
        "calibration_words": _calibration_words(result),
        "ticks": [_("%(number)s%%") % {"number": number} for number in (50, 100)],
    }


def bar(label: str, entry: dict[str, Any]) -> dict[str, Any]:
    """An accuracy and its interval as they stand on a bar from 0 to 100."""
    low, high = entry.get("low"), entry.get("high")
    drawn = {"label": label, "accuracy": entry["accuracy"], "low": low, "high": high, "pairs": entry.get("pairs")}
    if entry["accuracy"] is None:
        return drawn
    drawn["at"] = f"{100 * entry['accuracy']:.1f}"
    if low is not None and high is not None:
        verdict = "better" if low > 0.5 else "worse" if high < 0.5 else "open"
        drawn |= {"start": f"{100 * low:.1f}", "wide": f"{100 * max(high - low, 0.005):.1f}", "verdict": verdict}
    return drawn


def _length_alone(result: dict[str, Any]) -> dict[str, Any] | None:
    baseline = result.get("length_baseline")
    return None if baseline is None else {"accuracy": baseline, "pairs": result["val_pairs"]}


def _against_length(result: dict[str, Any]) -> str:
    if result.get("length_baseline") is None:
        return ""
    if result["val_accuracy_low"] > result["length_baseline"]:
        return _("It knows more than the length of an answer.")
    return _("It does not clearly beat the length of an answer alone: rank more before you optimise against it.")


def _against_people(result: dict[str, Any], agreement: dict[str, Any] | None) -> str:
    if not agreement or agreement["accuracy"] is None:
        return _("No two people ranked the same answers, so its ceiling is not known: rank some prompts twice.")
    if result["val_accuracy_high"] >= agreement["low"]:
        return _("It orders answers about as surely as two people agree; their rankings can teach little more.")
    return _("Two people agree more often than it does: more rankings should help.")


def _calibration_words(result: dict[str, Any]) -> str:
    bins, error = result["calibration"], result.get("calibration_error")
    if not bins or error is None:
        return ""
    pairs = sum(entry["pairs"] for entry in bins)
    ahead = sum(entry["pairs"] * (entry["predicted"] - entry["accuracy"]) for entry in bins) / pairs
    if ahead > CLEARLY:
        said = _("It is surer than it should be: where it claims a share, it is right less often.")
    elif ahead < -CLEARLY:
        said = _("It is less sure than it could be: where it claims a share, it is right more often.")
    else:
        said = _("What it claims is about what happens.")
    distance = _("The mean distance of claim and outcome is %(error)s.") % {"error": figures.percent(error)}
    return f"{said} {distance}"


def _named(groups: dict[str, Any]) -> Iterable[tuple[str, dict[str, Any]]]:
    """Annotators by the name they sign in with; files that came in name theirs themselves."""
    numbers = {name: int(name[7:]) for name in groups if name.startswith("person-") and name[7:].isdecimal()}
    known = dict(User.objects.filter(pk__in=numbers.values()).values_list("pk", "username"))
    return [(known.get(numbers.get(name, 0), name), entry) for name, entry in groups.items()]


def _point(entry: dict[str, Any]) -> dict[str, Any]:
    across = (entry["predicted"] - LOWEST_PREDICTED) / (1 - LOWEST_PREDICTED)
    up = (max(entry["accuracy"], LOWEST_RIGHT) - LOWEST_RIGHT) / (1 - LOWEST_RIGHT)
    said = _("claimed %(claimed)s, right in %(right)s of %(n)s pairs") % {
        "claimed": figures.percent(entry["predicted"]),
        "right": figures.percent(entry["accuracy"]),
        "n": figures.compact(entry["pairs"]),
    }
    place = {"x": LEFT + across * (RIGHT - LEFT), "y": BOTTOM - up * (BOTTOM - TOP)}
    return {name: f"{value:.1f}" for name, value in place.items()} | {"said": said}


def phases(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean seconds of an update's parts over the run, and their shares; {} where none were reported."""
    rows = [row for row in metrics if all(f"seconds_{name}" in row for name in PHASES)]
    if not rows:
        return {}
    means = {name: sum(row[f"seconds_{name}"] for row in rows) / len(rows) for name in PHASES}
    whole = sum(means.values()) or 1.0
    labels = {"rollout": _("Rollout"), "scoring": _("Scoring"), "update": _("Update")}
    parts = [
        {"name": name, "label": labels[name], "seconds": f"{figures.number(seconds)}\N{NO-BREAK SPACE}s",
         "share": seconds / whole, "wide": f"{100 * seconds / whole:.1f}"}
        for name, seconds in means.items()
    ]  # fmt: skip
    gap = max((row["sampler_gap"] for row in metrics if row.get("sampler_gap") is not None), default=None)
    written = f"{figures.number(whole)}\N{NO-BREAK SPACE}s"
    return {"parts": parts, "whole": written, "gap": gap, "gap_is_small": gap is not None and gap < SMALL_GAP}
