"""Forms of the data page."""

from typing import Any

from django import forms
from django.conf import settings
from django.core.files.uploadedfile import UploadedFile
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from labeling.models import Prompt

KINDS = [
    ("corpus", _("Text to pretrain on (.txt)")),
    ("prompts", _("Prompts")),
    ("demonstrations", _("Demonstrations")),
    ("preferences", _("Preferences: one answer chosen, one rejected")),
    ("rankings", _("Rankings of two to nine answers")),
]
DOCUMENTS = [
    ("file", _("the file is one document")),
    ("paragraphs", _("an empty line ends a document")),
    ("lines", _("every line is a document")),
]


class ImportForm(forms.Form):
    kind = forms.ChoiceField(label=_("What it is"), choices=KINDS)
    file = forms.FileField(
        label=_("File"),
        error_messages={
            "required": _("No file was chosen: choose one."),
            "empty": _("The file is empty: there is nothing in it."),
        },
        widget=forms.FileInput(attrs={"accept": ".txt,.jsonl,.gz,text/plain,application/gzip"}),
    )
    split = forms.ChoiceField(label=_("Prompts are for"), choices=Prompt.Split, required=False)
    documents = forms.ChoiceField(label=_("Documents in the text"), choices=DOCUMENTS, required=False)
    weight = forms.FloatField(
        label=_("Mixture weight"), initial=1.0, min_value=0.001, max_value=1000, required=False,
        widget=forms.NumberInput(attrs={"step": "any"}),
    )  # fmt: skip
    ignore_unknown = forms.BooleanField(label=_("Ignore fields that are not known"), required=False)

    def clean_file(self) -> "UploadedFile[Any]":
        file: UploadedFile[Any] = self.cleaned_data["file"]
        size = (file.size or 0) // 2**20
        if size >= settings.UPLOAD_LIMIT_MB:
            raise forms.ValidationError(
                gettext(
                    "The file has %(size)d MB and the page takes %(limit)d: "
                    "import it with “python manage.py import_data”, which has no limit."
                )
                % {"size": size, "limit": settings.UPLOAD_LIMIT_MB}
            )
        return file

    def clean(self) -> dict[str, Any]:
        """What does not belong to the kind keeps its default."""
        cleaned = super().clean() or {}
        cleaned["split"] = cleaned.get("split") or Prompt.Split.TRAIN
        cleaned["documents"] = cleaned.get("documents") or "file"
        if cleaned.get("weight") is None:
            cleaned["weight"] = 1.0
        return cleaned


class WeightForm(forms.Form):
    weight = forms.FloatField(label=_("Mixture weight"), min_value=0.001, max_value=1000, localize=False)
