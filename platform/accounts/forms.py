"""Forms for members and projects."""

from django import forms
from django.contrib.auth.validators import UnicodeUsernameValidator
from django.utils.translation import gettext_lazy as _

from accounts.models import Role


class MemberForm(forms.Form):
    username = forms.CharField(
        label=_("Username"),
        max_length=150,
        validators=[UnicodeUsernameValidator()],
        widget=forms.TextInput(attrs={"autocomplete": "off", "autocapitalize": "none", "spellcheck": "false"}),
    )
    role = forms.ChoiceField(
        label=_("Role"),
        choices=Role.choices,
        initial=Role.ANNOTATOR,
        widget=forms.Select(attrs={"class": "form-select"}),
    )


class ProjectForm(forms.Form):
    name = forms.CharField(label=_("Name"), max_length=120)
    description = forms.CharField(
        label=_("What is being taught, in one or two sentences"),
        required=False,
        widget=forms.Textarea(attrs={"rows": 2}),
    )
    guidelines = forms.CharField(
        label=_("Guidelines for those who write and rank"), required=False, widget=forms.Textarea(attrs={"rows": 6})
    )
