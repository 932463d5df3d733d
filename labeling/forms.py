"""Forms of the ranking and the writing screen; a draft is a form that need not be complete."""

from typing import Any
from uuid import UUID, uuid4

from django import forms
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from labeling.judging import LONGEST
from labeling.models import AXES, Completion, Demonstration, Ranking

LETTERS = "ABCDEFGHI"


class RankingForm(forms.Form):
    """A place for every completion (equal places tie), scores where somebody wants to give them, a comment."""

    key = forms.UUIDField(widget=forms.HiddenInput)
    seconds = forms.IntegerField(required=False, min_value=0, widget=forms.HiddenInput)
    none_good = forms.BooleanField(required=False, label=gettext_lazy("None of them is good"))
    comment = forms.CharField(
        required=False,
        max_length=LONGEST,
        strip=False,
        label=gettext_lazy("Comment (optional)"),
        widget=forms.Textarea(attrs={"rows": 2, "class": "form-control"}),
    )

    def __init__(self, *args: Any, completions: list[Completion], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.completions = completions
        places = [("", "–"), *((str(n), str(n)) for n in range(1, len(completions) + 1))]
        marks = [("", "–"), *((str(n), str(n)) for n in range(1, 6))]
        for letter, completion in zip(LETTERS, completions, strict=False):
            self.fields[f"place-{completion.pk}"] = forms.TypedChoiceField(
                choices=places, coerce=int, empty_value=None, required=False,
                label=_("Place of text %(letter)s") % {"letter": letter},
                widget=forms.Select(attrs={"class": "form-select place-select"}),
            )  # fmt: skip
            for axis, label in AXES.items():
                self.fields[f"score-{completion.pk}-{axis}"] = forms.TypedChoiceField(
                    choices=marks, coerce=int, empty_value=None, required=False, label=label, widget=forms.RadioSelect
                )

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        missing = sum(cleaned.get(f"place-{c.pk}") is None for c in self.completions)
        if missing:
            self.add_error(
                None,
                ngettext(
                    "%(missing)d of %(all)d texts has no place yet: give it one; equal numbers tie.",
                    "%(missing)d of %(all)d texts have no place yet: give each one; equal numbers tie.",
                    missing,
                )
                % {"missing": missing, "all": len(self.completions)},
            )
        return cleaned

    def tiers(self) -> list[list[int]]:
        """Best first; a number that nobody has is left out."""
        places = {c.pk: self.cleaned_data[f"place-{c.pk}"] for c in self.completions}
        return [[pk for pk, place in places.items() if place == n] for n in sorted(set(places.values()))]

    def scores(self) -> dict[str, dict[str, int]]:
        given: dict[str, dict[str, int]] = {}
        for completion in self.completions:
            for axis in AXES:
                if mark := self.cleaned_data[f"score-{completion.pk}-{axis}"]:
                    given.setdefault(str(completion.pk), {})[axis] = mark
        return given

    def cards(self) -> list[dict[str, Any]]:
        """What the template shows, one entry a completion."""
        first: dict[str, str] = {}
        cards = []
        for letter, completion in zip(LETTERS, self.completions, strict=False):
            same_as = first.setdefault(completion.text.strip(), letter)
            cards.append(
                {
                    "letter": letter,
                    "completion": completion,
                    "same_as": "" if same_as == letter else same_as,
                    "place": self[f"place-{completion.pk}"],
                    "scores": [self[f"score-{completion.pk}-{axis}"] for axis in AXES],
                }
            )
        return cards


def ranking_initial(ranking: Ranking) -> dict[str, Any]:
    """The form as it was sent."""
    places = {f"place-{pk}": n for n, tier in enumerate(ranking.tiers, start=1) for pk in tier}
    scores = {f"score-{pk}-{axis}": mark for pk, axes in ranking.scores.items() for axis, mark in axes.items()}
    return {
        **places,
        **scores,
        "none_good": ranking.none_good,
        "comment": ranking.comment,
        "seconds": ranking.seconds,
    }


class DemonstrationForm(forms.Form):
    key = forms.UUIDField(widget=forms.HiddenInput)
    response = forms.CharField(
        max_length=LONGEST,
        strip=False,  # a draft ends where the writer stopped, space included
        label=gettext_lazy("Your answer"),
        error_messages={"required": gettext_lazy("The answer is empty: write at least one sentence.")},
        widget=forms.Textarea(attrs={"rows": 10, "class": "form-control reading", "spellcheck": "true"}),
    )


def demonstration_initial(demonstration: Demonstration) -> dict[str, Any]:
    return {"response": demonstration.response}


def draft_data(form: forms.Form) -> dict[str, Any]:
    """What of a half-filled form is worth keeping: the fields that say something and are not wrong."""
    form.is_valid()
    kept = {name: value for name, value in form.cleaned_data.items() if value not in (None, "", False)}
    # A text beyond the limit is refused at the end, but it is not thrown away on the way there.
    for name in form.errors.keys() & {"response", "comment"}:
        kept[name] = str(form.data.get(name, ""))[: 10 * LONGEST]
    return {name: str(value) if isinstance(value, UUID) else value for name, value in kept.items()}


def is_worth_keeping(draft: dict[str, Any]) -> bool:
    """Whether somebody has done something, more than opening the page."""
    return bool(set(draft) - {"key", "seconds"})


def fresh_key() -> str:
    return str(uuid4())
