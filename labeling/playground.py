"""Asking a model one thing, outside any round."""

import secrets
from typing import Any

from django.db import transaction
from django.utils.translation import gettext as _

from accounts.models import Project, User
from labeling.errors import LabelingError
from labeling.models import Completion
from registry.bell import ring_on_commit
from registry.models import ModelVersion

SAMPLING = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": 48}


def check_sampling(sampling: dict[str, Any]) -> dict[str, Any]:
    """The sampling settings with defaults filled in; raises a sentence where one is out of range."""
    full = {**SAMPLING, **sampling}
    limits = {"temperature": (0, 10), "top_k": (0, 1_000_000), "top_p": (0, 1), "max_new_tokens": (1, 4096)}
    for name, (low, high) in limits.items():
        if not low <= full[name] <= high:
            raise LabelingError(
                _("%(name)s is %(value)s: it must lie between %(low)s and %(high)s.")
                % {"name": name, "value": full[name], "low": low, "high": high}
            )
    return full


@transaction.atomic
def ask(
    *, project: Project, user: User | None, model: ModelVersion, prompt: str, sampling: dict[str, Any], seed: int | None
) -> Completion:
    """Queue one completion; the serve worker writes it and streams it to `completion:<pk>`."""
    if not prompt.strip():
        raise LabelingError(_("The prompt is empty: ask something."))
    if model.project_id != project.pk or not model.can_write:
        raise LabelingError(_("%(name)s cannot write here: choose another model.") % {"name": model.name})
    completion = Completion.objects.create(
        project=project, model=model, prompt_text=prompt, sampling=check_sampling(sampling), created_by=user,
        seed=secrets.randbelow(2**31) if seed is None else seed,
    )  # fmt: skip
    ring_on_commit("workers.serve.write", completion.pk)
    return completion
